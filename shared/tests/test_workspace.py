"""Workspaces: attempts inherit what was done, and share no file with whoever had the job before."""

from __future__ import annotations

import resource
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sim2or.artifacts.store import Store
from sim2or.workspace import COPIES, inherit


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's directory with one attempt, which made ``out/x`` and ``checkpoint``."""
    first = tmp_path / "job" / "1-a"
    inherit(first)
    (first / "out").mkdir()
    (first / "out" / "x").write_text("one")
    (first / "checkpoint").write_text("1")
    return first.parent


def files(workspace: Path) -> dict[str, str]:
    """Name to content."""
    return {
        path.relative_to(workspace).as_posix(): path.read_text()
        for path in workspace.rglob("*")
        if path.is_file()
    }


def test_an_attempt_inherits_everything(job: Path) -> None:
    """What the attempt before wrote is there, under the new name alone."""
    inherit(job / "2-b")
    assert files(job / "2-b") == {"out/x": "one", "checkpoint": "1"}
    assert [path.name for path in job.iterdir()] == ["2-b"]


def test_who_had_the_job_before_finds_its_paths_gone(job: Path) -> None:
    """A late write by name fails, and makes nothing."""
    inherit(job / "2-b")
    with pytest.raises(FileNotFoundError):
        (job / "1-a" / "out" / "x").write_text("late")
    assert files(job / "2-b")["out/x"] == "one"


def test_a_file_held_open_is_not_the_heirs(job: Path, tmp_path: Path) -> None:
    """A late write to an open file reaches neither the heir's file nor the artifact that is linked to it."""
    store = Store(tmp_path / "store")
    with (job / "1-a" / "out" / "x").open("r+") as held:
        inherit(job / "2-b")
        digest = store.put(job / "2-b" / "out", kind="thing").digest
        held.write("late")
    assert files(job / "2-b")["out/x"] == "one"
    assert (store.checkout(digest) / "x").read_text() == "one"


def test_what_was_put_into_the_store_is_not_written_to_again(job: Path, tmp_path: Path) -> None:
    """An attempt stored its output and was killed: the next may overwrite the file, the artifact stays."""
    store = Store(tmp_path / "store")
    digest = store.put(job / "1-a" / "out", kind="thing").digest
    inherit(job / "2-b")
    (job / "2-b" / "out" / "x").write_text("two")
    assert (store.checkout(digest) / "x").read_text() == "one"


def test_the_latest_attempt_of_several_is_inherited(job: Path) -> None:
    """What a zombie makes anew under its old name is thrown away, however late it does so."""
    inherit(job / "2-b")
    (job / "1-a").mkdir()
    (job / "1-a" / "junk").write_text("junk")
    inherit(job / "10-c")
    assert files(job / "10-c") == {"out/x": "one", "checkpoint": "1"}
    assert [path.name for path in job.iterdir()] == ["10-c"]


def test_of_two_who_inherit_at_the_same_moment_nothing_is_lost(job: Path) -> None:
    """However their steps fall between one another: who has no workspace is told, and the next has all."""
    outcomes = Counter[bool]()

    def attempt(workspace: Path) -> bool:
        together.wait(30)
        try:
            inherit(workspace)
        except FileNotFoundError:
            assert not workspace.exists()
            return False
        return True

    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        for number in range(2, 300, 3):
            outcomes.update(pool.map(attempt, [job / f"{number}-a", job / f"{number + 1}-b"]))
            inherit(job / f"{number + 2}-c")
            assert files(job / f"{number + 2}-c") == {"out/x": "one", "checkpoint": "1"}
    assert [path.name for path in job.iterdir()] == ["301-c"]
    assert outcomes[True] >= 100


def test_an_inheritance_that_broke_off_leaves_nothing_between_the_files(job: Path) -> None:
    """No space for a copy: no half copy lies in the workspace, and the next attempt inherits all of it."""
    (job / "1-a" / "out" / "large").write_text("x" * 10000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            inherit(job / "2-b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    whole = {"out/x": "one", "out/large": "x" * 10000, "checkpoint": "1"}
    assert {name: text for name, text in files(job / "2-b").items() if COPIES not in name} == whole
    inherit(job / "3-c")
    assert files(job / "3-c") == whole
    assert [path.name for path in job.iterdir()] == ["3-c"]
