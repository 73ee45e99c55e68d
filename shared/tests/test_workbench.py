"""``sim2or run --in-process``: a whole pipeline in one process, on the in-memory queue."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from sim2or.artifacts.store import Store
from sim2or.cli.in_process import run_in_process
from sim2or.errors import ConfigError, JobError

PIPELINE = """\
name: toy
stages:
  - stage: write
    shards: 2
    with: {{count: 6, flags: {flags}, fault: {fault}}}
  - id: each
    stage: copy
    each: write
    inputs: {{numbers: write}}
  - stage: join
    inputs: {{numbers: write}}
"""

SERVED = """\
name: served
stages:
  - stage: collect
    with: {demos: 1}
  - id: trials
    stage: rollout
    with: {actor: expert, trials: 1}
"""


class Place:
    """A directory in which a user works."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.flags = root / "flags"
        self.flags.mkdir()

    def run(self, fault: str = "none", *, text: str = PIPELINE, until: str = "", force: bool = False) -> str:
        """Runs a pipeline in this process and returns what was printed."""
        path = self.root / "toy.yaml"
        path.write_text(text.format(flags=self.flags, fault=fault) if text is PIPELINE else text)
        told = io.StringIO()
        run_in_process(path, name="", until=until, force=force, console=Console(file=told, width=200))
        return told.getvalue()

    def marks(self, prefix: str) -> list[str]:
        return sorted(path.name for path in self.flags.glob(f"{prefix}*"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A directory where the toy service is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIM2OR_PLUGINS", "sim2or_toy.plugin")
    monkeypatch.setenv("TRACEPARENT", "")
    return Place(tmp_path)


def test_a_pipeline_runs_in_this_process(place: Place) -> None:
    """Every stage runs here, where a breakpoint stops it, and makes the artifacts that services would."""
    told = place.run()
    assert {mark.split("-")[2] for mark in place.marks("started-")} == {str(os.getpid())}
    run = json.loads((place.root / "runs/toy-in-process/run.json").read_text())
    assert run["finished"]
    assert {job["state"] for stage in run["stages"].values() for job in stage["jobs"]} == {"done"}
    (joined,) = run["stages"]["join"]["jobs"]
    assert joined["summary"] == {"sum": 15}
    store = Store(place.root / "runs/toy-in-process/store")
    assert store.checkout(joined["outputs"]["report"]).exists()
    assert "done in" in told
    assert list((place.root / "runs/toy-in-process/work").iterdir()) == []


def test_what_is_finished_is_not_run_again(place: Place) -> None:
    """The queue is gone with its process, but the journal knows what is done; --force asks anew."""
    place.run(until="write")
    began = {mark: (place.flags / mark).stat().st_mtime_ns for mark in place.marks("started-")}
    place.run()
    assert {mark: (place.flags / mark).stat().st_mtime_ns for mark in place.marks("started-")} == began
    place.run(force=True)
    assert {mark: (place.flags / mark).stat().st_mtime_ns for mark in place.marks("started-")} != began


def test_an_error_is_raised_where_it_happened(place: Place) -> None:
    """A stage's exception comes through as it is, for a debugger to look at; nothing is retried."""
    with pytest.raises(ZeroDivisionError, match="a bug"):
        place.run("bug")
    with pytest.raises(JobError, match="3 wheels"):
        place.run("permanent")
    assert len(place.marks("finished-")) == 0


def test_a_step_that_needs_a_server_is_refused(place: Place) -> None:
    """Before anything runs, the error names the step, the server, and where to stop before it."""
    with pytest.raises(ConfigError, match=r"step 'trials' needs policy.*--until \(collect\)"):
        place.run(text=SERVED)
    assert place.run(text=PIPELINE, until="write")
