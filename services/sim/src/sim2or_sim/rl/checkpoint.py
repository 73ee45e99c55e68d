"""Checkpoints to resume from: safetensors and JSON, complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from sim2or.artifacts.store import sync
from sim2or.errors import JobError
from torch import Tensor

STATE_FILE = "state.json"
_NAME = "iteration-{:08d}"

Groups = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        question: What the run was asked; another question never resumes it.
        iteration: Iterations done.
        train_s: Time spent, all attempts together [s].
        cpu_s: Processor time spent [s].
        chance: State of the episodes' random generator; empty where the engine draws them itself.
    """

    question: str
    iteration: int
    train_s: float
    cpu_s: float
    chance: dict[str, Any] = field(default_factory=dict)


def save(root: Path, progress: Progress, groups: Groups) -> None:
    """Writes a checkpoint, then removes the older ones; a kill at any moment leaves a complete one.

    One of the same iteration is kept as it is: nothing was learnt since.
    """
    root.mkdir(exist_ok=True)  # in a workspace that is still there: another attempt may have it
    if (root / _NAME.format(progress.iteration)).exists():
        return
    for cut_short in root.glob(".iteration-*"):
        shutil.rmtree(cut_short)
    final = root / _NAME.format(progress.iteration)
    unfinished = root / f".{final.name}"
    unfinished.mkdir()
    write_tensors(unfinished, groups)
    state = unfinished / STATE_FILE
    state.write_text(json.dumps(asdict(progress), indent=1))
    sync(state)
    unfinished.rename(final)
    sync(root)
    for older in root.glob("iteration-*"):
        if older != final:
            shutil.rmtree(older)


def newest(root: Path, question: str) -> tuple[Progress, dict[str, dict[str, Tensor]]] | None:
    """Reads the newest checkpoint; None where there is none.

    Raises:
        JobError: It belongs to another question.
    """
    found = sorted(root.glob("iteration-*"))
    if not found:
        return None
    progress = Progress(**json.loads((found[-1] / STATE_FILE).read_text()))
    if progress.question != question:
        raise JobError(
            f"{found[-1]} was made for question {progress.question[:12]}, this job asks {question[:12]}; "
            f"remove {root} to start over"
        )
    return progress, read_tensors(found[-1])


def write_tensors(directory: Path, groups: Groups) -> None:
    """One safetensors file for each group."""
    for name, group in groups.items():
        path = directory / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in group.items()}, path)
        sync(path)


def read_tensors(directory: Path) -> dict[str, dict[str, Tensor]]:
    """What ``write_tensors`` wrote."""
    return {path.stem: load_file(path) for path in sorted(directory.glob("*.safetensors"))}
