"""Checkpoints to resume from: safetensors and JSON, complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from sim2or.artifacts.store import sync
from sim2or.errors import JobError
from torch import Tensor

from sim2or_trainer.group import Group

STATE_FILE = "state.json"
_NAME = "step-{:08d}"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        question: What the run was asked; another question never resumes it.
        step: Optimisation steps taken.
        train_s: Time spent training, all attempts together [s].
        heldout_loss: The latest; None before the first.
    """

    question: str
    step: int
    train_s: float
    heldout_loss: float | None


def save(root: Path, progress: Progress, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes a checkpoint, then removes the older ones; a kill at any moment leaves a complete one."""
    root.mkdir(exist_ok=True)  # in a workspace that is still there: another attempt may have it
    for cut_short in root.glob(".step-*"):
        shutil.rmtree(cut_short)
    final = root / _NAME.format(progress.step)
    unfinished = root / f".{final.name}"
    unfinished.mkdir()
    for name, group in tensors.items():
        path = unfinished / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in group.items()}, path)
        sync(path)
    state = unfinished / STATE_FILE
    state.write_text(json.dumps(asdict(progress), indent=1))
    sync(state)
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    sync(root)
    for older in root.glob("step-*"):
        if older != final:
            shutil.rmtree(older)


type Checkpoint = tuple[Progress, dict[str, dict[str, Tensor]]]


def shared(group: Group, found: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint that rank 0 found, on every rank.

    Args:
        group: The processes.
        found: On rank 0.

    Raises:
        TransientError: A process was lost.
    """
    if group.alone:
        return found
    told = group.agree(progress=asdict(found[0]) if found else None, names=sorted(found[1]) if found else [])
    if told["progress"] is None:
        return None
    tensors = {name: group.tell_tensors(found[1][name] if found else {}) for name in told["names"]}
    return Progress(**told["progress"]), tensors


def newest(root: Path, question: str) -> Checkpoint | None:
    """Reads the newest checkpoint; None where there is none.

    Raises:
        JobError: It belongs to another question.
    """
    found = sorted(root.glob("step-*"))
    if not found:
        return None
    progress = Progress(**json.loads((found[-1] / STATE_FILE).read_text()))
    if progress.question != question:
        raise JobError(
            f"{found[-1]} was made for question {progress.question[:12]}, this job asks {question[:12]}; "
            f"remove {root} to start over"
        )
    return progress, {path.stem: load_file(path) for path in found[-1].glob("*.safetensors")}
