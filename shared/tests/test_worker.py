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
from sim2or.workspace import inherit
from sim2or_toy.plugin import STAGES

JOIN = next(info for info in STAGES if info.name == "join")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in a directory of its own."""
    return Store(tmp_path / "store")


def assigned(store: Store, job: Path, number: int, times: int = 2) -> Assignment:
    """An attempt of a job that adds up one number, 21."""
    (job.parent / "0.txt").write_text("21")
    numbers = store.put(job.parent / "0.txt", kind="numbers").digest
    return Assignment(
        job_id="j",
        attempt=number,
        stage="join",
        key="k",
        spec={"times": times},
        inputs={"numbers": (numbers,)},
        work=job / str(number),
        store=store.root,
    )


def test_a_second_attempt_leaves_the_first_ones_artifact_alone(store: Store, tmp_path: Path) -> None:
    """An attempt that overwrites the files of one that was stored already does not write into the store."""

    def attempt(number: int, times: int) -> str:
        assignment = assigned(store, tmp_path / "work", number, times)
        outputs: dict[str, str] = run_assignment(assignment, JOIN, lambda _: None, lambda: False)["outputs"]
        return outputs["report"]

    first, second = attempt(1, times=2), attempt(2, times=3)
    assert [(store.checkout(d) / "sum.txt").read_text() for d in (first, second)] == ["42", "63"]


def test_an_output_that_another_attempt_took_is_worth_another_try(store: Store, tmp_path: Path) -> None:
    """A workspace that is taken away before its outputs are stored fails no job: the next attempt has it."""
    job = tmp_path / "work"

    def taken(_: object) -> None:
        inherit(job / "1-zombie")

    with pytest.raises(TransientError, match="another attempt of the job has its workspace") as told:
        run_assignment(assigned(store, job, 2), JOIN, taken, lambda: False)
    assert isinstance(told.value.__cause__, JobError)
    assert (job / "1-zombie" / "sum.txt").read_text() == "42"
    run_assignment(assigned(store, job, 3), JOIN, lambda _: None, lambda: False)
    assert [path.name for path in job.iterdir()] == ["3"]


def test_a_workspace_that_cannot_be_inherited_is_worth_another_try(store: Store, tmp_path: Path) -> None:
    """What an earlier attempt left is gone between the look and the move: no failure for good."""
    job = tmp_path / "work"
    inherit(job / "1-a")
    (job / "1-a").rename(tmp_path / "elsewhere")
    (job / "1-a").symlink_to(tmp_path / "elsewhere")  # a rename of it gives no directory of one's own
    (tmp_path / "elsewhere").rmdir()
    with pytest.raises(TransientError, match="another attempt of the job has its workspace"):
        run_assignment(assigned(store, job, 2), JOIN, lambda _: None, lambda: False)


def test_what_fails_in_ones_own_workspace_fails(store: Store, tmp_path: Path) -> None:
    """A stage that cannot write where nobody interferes has its own fault."""
    (tmp_path / "work" / "1" / "sum.txt").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run_assignment(assigned(store, tmp_path / "work", 2), JOIN, lambda _: None, lambda: False)


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
