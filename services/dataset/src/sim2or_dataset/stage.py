"""The dataset service's stages: episodes to parts, parts to one dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sim2or.artifacts.store import fresh_directory
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.dataset_card import DatasetCard, check_against, load_card
from sim2or.episode import EpisodeFile, read_index
from sim2or.errors import JobError
from sim2or.messages.convert import ConvertSpec
from sim2or.messages.dataset import DatasetSpec
from sim2or.stage import Context, Stage, StageResult

from sim2or_dataset.merge import merge_parts
from sim2or_dataset.part import PartWriter
from sim2or_dataset.readme import readme


def convert(spec: ConvertSpec, context: Context) -> StageResult:
    """Converts the episodes of one or more shards into a dataset part.

    Raises:
        JobError: An episode is damaged or does not fit, or a video lacks frames.
    """
    robot, task = load_robot(spec.robot), load_task(spec.task)
    shards = context.inputs["episodes"]
    entries = [(directory, entry) for directory in shards for entry in read_index(directory)]
    root = fresh_directory(context.work / "part")
    writer = PartWriter(root, robot, task, spec.video)
    for done, (directory, entry) in enumerate(entries):
        context.progress(done, len(entries), "episodes", frames=writer.frames)
        with EpisodeFile(directory / entry.file) as file:
            if file.index_entry != entry:
                raise JobError(
                    f"{file.path}: differs from its line in {directory / 'index.jsonl'}; collect it again"
                )
            writer.add(file)
    card = writer.finish(name=f"{task.name}-part", parents=_digests(context, "episodes"))
    context.progress(len(entries), len(entries), "episodes", frames=writer.frames)
    return StageResult(outputs={"part": root}, summary=_summary(card))


def merge(spec: DatasetSpec, context: Context) -> StageResult:
    """Merges parts into one dataset, split by parent demonstration.

    Raises:
        ConfigError: A part does not fit the robot or the task.
        JobError: Too few episodes, parts that do not go together, or a video that lacks frames.
    """
    robot, task = load_robot(spec.robot), load_task(spec.task)
    parts = [(path, load_card(path)) for path in context.inputs["parts"]]
    for path, card in parts:
        check_against(card, robot, task, origin=path)
    kept = sum(len(card.episodes) for _, card in parts)
    if kept < spec.min_episodes:
        reasons = Counter(dropped.reason for _, card in parts for dropped in card.dropped)
        raise JobError(
            f"{kept} successful episodes in {len(parts)} parts; valid: at least {spec.min_episodes} "
            f"(min_episodes). Left out: {dict(reasons) or 'none'}; collect more demonstrations"
        )
    context.progress(0, kept, "episodes")
    root = fresh_directory(context.work / "dataset")
    card = merge_parts(
        root,
        parts,
        name=spec.name,
        validation_fraction=spec.validation_fraction,
        split_seed=spec.split_seed,
        parents=_digests(context, "parts"),
    )
    (root / "README.md").write_text(readme(card))
    context.progress(kept, kept, "episodes", frames=card.frames)
    return StageResult(outputs={"dataset": root}, summary=_summary(card))


STAGES: Mapping[str, Stage[Any]] = {
    "convert": Stage("convert", ConvertSpec, convert),
    "dataset": Stage("dataset", DatasetSpec, merge),
}


def _summary(card: DatasetCard) -> dict[str, Any]:
    return {
        "episodes": len(card.episodes),
        "frames": card.frames,
        "dropped": len(card.dropped),
        "dropped_by_reason": dict(Counter(dropped.reason for dropped in card.dropped)),
        "episodes_by_request": dict(Counter(episode.request for episode in card.episodes)),
        "splits": {name: end - first for name, (first, end) in card.splits.items()},
        "fps_measured": card.fps_measured,
        "fps_declared": card.fps_declared,
    }


def _digests(context: Context, role: str) -> tuple[str, ...]:
    return tuple(context.digests.get(role, ()))
