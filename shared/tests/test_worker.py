"""What a worker does with one job, in this process."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from sim2or.artifacts.store import Store
from sim2or.errors import JobError, TransientError
from sim2or.worker import Assignment, failure_of, run_assignment
from sim2or_toy.plugin import STAGES

JOIN = next(info for info in STAGES if info.name == "join")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in a directory of its own."""
    return Store(tmp_path / "store")


def test_a_second_attempt_leaves_the_first_ones_artifact_alone(store: Store, tmp_path: Path) -> None:
    """An attempt that overwrites the files of one that was stored already does not write into the store."""
    (tmp_path / "0.txt").write_text("21")
    numbers = store.put(tmp_path / "0.txt", kind="numbers").digest

    def attempt(number: int, times: int) -> str:
        assignment = Assignment(
            job_id="j",
            attempt=number,
            stage="join",
            key="k",
            spec={"times": times},
            inputs={"numbers": (numbers,)},
            work=tmp_path / "work" / str(number),
            store=store.root,
        )
        outputs: dict[str, str] = run_assignment(assignment, JOIN, lambda _: None, lambda: False)["outputs"]
        return outputs["report"]

    first, second = attempt(1, times=2), attempt(2, times=3)
    assert [(store.checkout(d) / "sum.txt").read_text() for d in (first, second)] == ["42", "63"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TransientError("busy"), "transient"),
        (OSError(errno.ENOSPC, "No space left on device"), "transient"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "transient"),
        (JobError("3 wheels, expected 4"), "permanent"),
        (OSError(errno.EACCES, "Permission denied"), "permanent"),
        (ValueError("a bug"), "permanent"),
    ],
)
def test_a_full_disk_is_worth_another_try(error: Exception, kind: str, tmp_path: Path) -> None:
    """Only what may work in a moment is tried again; a full disk is told with the room that is left."""
    failure = failure_of(error, tmp_path / "work" / "job", tmp_path)
    assert failure["kind"] == kind
    assert ("MB free" in failure["message"]) == ("space" in str(error))


def test_the_cause_of_an_error_counts(tmp_path: Path) -> None:
    """A library's error that wraps a full disk is one."""
    wrapped = RuntimeError("cannot write the checkpoint")
    wrapped.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert failure_of(wrapped, tmp_path)["kind"] == "transient"
