"""Evidence: what the artifacts of a run say, read once; what is missing is None and the report says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim2or.dataset_card import DatasetCard, load_card
from sim2or.episode import INDEX_FILE, IndexEntry, read_index
from sim2or.errors import JobError
from sim2or.messages.report import ReportSpec
from sim2or.messages.verdict import Verdict, read_verdict

from sim2or_evaluator.trials import Trial, read_trials

STAGE_OF = {
    "episodes": "collect",
    "dataset": "dataset",
    "checkpoint": "train",
    "model": "export",
    "trials": "rollout",
    "verdict": "evaluate",
    "deployment": "deploy",
}
"""Input role to the stage that made it, in the order of the pipeline."""


@dataclass(frozen=True)
class LossRow:
    """One line of ``train_log.jsonl``: the step, its losses and the time trained so far [s]."""

    step: int
    loss: float | None
    heldout_loss: float | None
    train_s: float | None


@dataclass(frozen=True)
class Evidence:
    """Everything the report shows.

    Attributes:
        episodes: Index entries of the demonstrations with the directory of their file.
        trials: Trials of the model; of every model where there is no verdict.
        recordings: Directories of the trials' frames.
        model: Digest of the exported model that everything here is about: the verdict's.
        log: The training log.
        checkpoint: The checkpoint's card.
        export: ``export.json`` and the export's summary.
        deployment: ``deployment.json``.
        digests: Input role to digests.
    """

    episodes: tuple[tuple[IndexEntry, Path], ...]
    dataset: DatasetCard | None
    log: tuple[LossRow, ...]
    checkpoint: Mapping[str, Any] | None
    export: Mapping[str, Any] | None
    trials: tuple[Trial, ...]
    recordings: tuple[Path, ...]
    model: str | None
    verdict: Verdict | None
    verdict_directory: Path | None
    deployment: Mapping[str, Any] | None
    digests: Mapping[str, tuple[str, ...]]
    spec: ReportSpec

    def summary_of(self, stage: str) -> Mapping[str, Any]:
        """The summary of a stage as the runner passed it; empty when it did not."""
        return self.spec.summaries.get(stage, {})


def gather(
    spec: ReportSpec, inputs: Mapping[str, Sequence[Path]], digests: Mapping[str, Sequence[str]]
) -> Evidence:
    """Reads the run's artifacts.

    Args:
        spec: The report's configuration.
        inputs: Role to directories; every role is optional.
        digests: Role to digests.

    Raises:
        JobError: A file that is there cannot be read as what it should be.
    """
    verdict_directory = _first(inputs, "verdict")
    verdict = read_verdict(verdict_directory) if verdict_directory else None
    digest = verdict.artifact if verdict else None
    model = _model(inputs, digests, verdict)
    checkpoint = _checkpoint(inputs, digests, model)
    trials = [r.trial for r in read_trials(inputs.get("trials") or inputs.get("rollouts", ()))]
    return Evidence(
        episodes=tuple(
            (entry, directory)
            for directory in inputs.get("episodes", ())
            if (directory / INDEX_FILE).exists()
            for entry in read_index(directory)
        ),
        dataset=load_card(found) if (found := _first(inputs, "dataset")) else None,
        log=_read_log(checkpoint),
        checkpoint=_read_json(checkpoint, "card.json"),
        export=_export(_read_json(model, "export.json"), spec.summaries.get("export", {})),
        trials=tuple(t for t in trials if digest is None or t.artifact in (digest, "")),
        recordings=tuple(inputs.get("trials") or inputs.get("rollouts", ())),
        model=digest,
        verdict=verdict,
        verdict_directory=verdict_directory,
        deployment=_read_json(_first(inputs, "deployment"), "deployment.json"),
        digests={role: tuple(values) for role, values in digests.items()},
        spec=spec,
    )


def _model(
    inputs: Mapping[str, Sequence[Path]], digests: Mapping[str, Sequence[str]], verdict: Verdict | None
) -> Path | None:
    """The exported model that the verdict is about; one alone is taken for it.

    Raises:
        JobError: There are several, and the verdict is about none of them.
    """
    if verdict is None or len(inputs.get("model", ())) <= 1:
        return _first(inputs, "model")
    return _named(inputs, digests, "model", (verdict.artifact,), "verdict: artifact")


def _checkpoint(
    inputs: Mapping[str, Sequence[Path]], digests: Mapping[str, Sequence[str]], model: Path | None
) -> Path | None:
    """The checkpoint that the model's card names as its source; one alone is taken for it.

    Raises:
        JobError: There are several, and the card names none of them.
    """
    if len(inputs.get("checkpoint", ())) <= 1:
        return _first(inputs, "checkpoint")
    sources = (_read_json(model, "card.json") or {}).get("sources", {}).get("checkpoint", ())
    return _named(inputs, digests, "checkpoint", sources, f"{model}/card.json: sources.checkpoint")


def _named(
    inputs: Mapping[str, Sequence[Path]],
    digests: Mapping[str, Sequence[str]],
    role: str,
    wanted: Sequence[str],
    where: str,
) -> Path:
    """The one of several inputs whose digest is wanted."""
    given = dict(zip(digests[role], inputs[role], strict=True))
    for digest in wanted:
        if digest in given:
            return given[digest]
    raise JobError(
        f"{where}={', '.join(wanted) or '(none)'} is no input {role!r}; given: {', '.join(given)}. "
        "Pass the one that the verdict is about too"
    )


def _first(inputs: Mapping[str, Sequence[Path]], role: str) -> Path | None:
    found = inputs.get(role, ())
    return found[0] if found else None


def _read_json(directory: Path | None, name: str) -> Mapping[str, Any] | None:
    if directory is None or not (directory / name).is_file():
        return None
    return _parse(directory / name, (directory / name).read_text(encoding="utf-8"))


def _read_log(directory: Path | None) -> tuple[LossRow, ...]:
    path = directory / "train_log.jsonl" if directory else None
    if path is None or not path.is_file():
        return ()
    rows = [_parse(path, line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    found, latest = [], None
    for row in rows:
        held_out = row.get("heldout_loss")
        # the trainer repeats its latest held-out loss on every line; only a new one was measured there
        measured = None if held_out == latest else held_out
        latest = held_out
        found.append(LossRow(int(row["step"]), row.get("loss"), measured, row.get("train_s")))
    return tuple(found)


def _export(report: Mapping[str, Any] | None, summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if report is None and not summary:
        return None
    return {**(report or {}), **summary}


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise JobError(f"{path}: not JSON ({error.msg}); rerun the stage that made it") from error
    if not isinstance(value, dict):
        raise JobError(f"{path}: {type(value).__name__} instead of an object; rerun the stage that made it")
    return value
