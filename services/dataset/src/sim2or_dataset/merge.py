"""Parts to one dataset: episodes re-ordered by split, videos taken over unchanged."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sim2or.dataset_card import DatasetCard
from sim2or.errors import JobError

from sim2or_dataset.audit import check_videos
from sim2or_dataset.backends.lerobot import Record, read_info, read_records, video_path, write_dataset
from sim2or_dataset.backends.video import Clip
from sim2or_dataset.split import train_first, validation_parents

_SHARED = (
    "robot",
    "robot_type",
    "task",
    "calibration_id",
    "channels",
    "cameras",
    "fps_declared",
    "privileged",
)


def merge_parts(
    root: Path,
    parts: Sequence[tuple[Path, DatasetCard]],
    *,
    name: str,
    validation_fraction: float,
    split_seed: int,
    parents: tuple[str, ...],
) -> DatasetCard:
    """Makes one dataset, training episodes first, then validation.

    Args:
        root: Where; empty.
        parts: Directory and card of each part; empty parts are left out.
        name: The dataset's name.
        validation_fraction: Share of parent demonstrations held out.
        split_seed: Chooses which.
        parents: Digests of the parts.

    Returns:
        The dataset's card, saved in it.

    Raises:
        JobError: The parts do not go together, or a video lacks frames.
    """
    filled = [(path, card) for path, card in parts if card.episodes]
    _check_alike(filled)
    records = _gather(root, filled)
    held_out = validation_parents([r.card.parent for r in records], validation_fraction, split_seed)
    order, train = train_first([record.card.parent for record in records], held_out)
    ordered = [records[number] for number in order]
    splits = {"train": (0, train)} | ({"validation": (train, len(ordered))} if train < len(ordered) else {})
    info = read_info(filled[0][0])
    episodes = write_dataset(
        root,
        ordered,
        features=info["features"],
        fps=info["fps"],
        robot_type=info["robot_type"],
        splits=splits,
    )
    check_videos(root, ordered, info["fps"])
    card = filled[0][1].model_copy(
        update={
            "name": name,
            "profiles": _joined(card.profiles for _, card in filled),
            "fps_measured": sum(e.fps_measured for e in episodes) / len(episodes),
            "episodes": episodes,
            "dropped": tuple(dropped for _, card in parts for dropped in card.dropped),
            "splits": splits,
            "parents": parents,
        }
    )
    card = DatasetCard.model_validate(card.model_dump())
    card.save(root)
    return card


def _gather(root: Path, parts: Sequence[tuple[Path, DatasetCard]]) -> list[Record]:
    """Every part's episodes, with their video files copied under new numbers."""
    records: list[Record] = []
    used: dict[str, int] = {}
    for path, card in parts:
        members = read_records(path, card.episodes)
        renumbered: dict[tuple[str, int], int] = {}
        for key, number in sorted({(key, clip.file) for r in members for key, clip in r.clips.items()}):
            renumbered[key, number] = used.get(key, 0)
            used[key] = used.get(key, 0) + 1
            target = video_path(root, key, renumbered[key, number])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(video_path(path, key, number), target)
        for record in members:
            clips = {key: Clip(renumbered[key, clip.file], clip.first) for key, clip in record.clips.items()}
            records.append(dataclasses.replace(record, clips=clips))
    return records


def _check_alike(parts: Sequence[tuple[Path, DatasetCard]]) -> None:
    first_path, first = parts[0]
    features: Any = read_info(first_path)["features"]
    for path, card in parts[1:]:
        for key in _SHARED:
            if getattr(card, key) != getattr(first, key):
                valid = f"{getattr(first, key)!r}, as in {first_path}"
                raise JobError(f"{path}: {key} = {getattr(card, key)!r}; valid: {valid}")
        if read_info(path)["features"] != features:
            raise JobError(f"{path}: meta/info.json: features differ from those of {first_path}")


def _joined(profiles: Any) -> dict[str, tuple[str, ...]]:
    joined: dict[str, set[str]] = {}
    part: Mapping[str, Sequence[str]]
    for part in profiles:
        for kind, digests in part.items():
            joined.setdefault(kind, set()).update(digests)
    return {kind: tuple(sorted(digests)) for kind, digests in joined.items()}
