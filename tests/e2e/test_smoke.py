"""The whole product on ``pipelines/smoke.yaml``: killed in the middle, resumed, finished, checked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sim2or.artifacts.lineage import chain
from sim2or.artifacts.store import Store
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import connect
from sim2or.messages.job import JobRecord
from sim2or.process import is_running, start_ticks
from sim2or.supervisor import SupervisorState, read_state

PIPELINE = Path(__file__).parents[2] / "pipelines" / "smoke.yaml"
COMMAND = [sys.executable, "-c", "from sim2or.cli.main import app; app()"]
SUMMARY_KEYS = {
    "expert_success",
    "demos",
    "frames",
    "train_s",
    "trials",
    "successes",
    "success_lower95",
    "per_instrument",
    "onnx_max_abs_diff",
    "latency_ms",
    "bridge",
    "wall_s",
}

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def until[T](probe: Callable[[], T], what: str, *, timeout_s: float) -> T:
    """Polls until ``probe`` gives something true; fails with what was waited for."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if found := probe():
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {what} in {timeout_s:g} s")


class Journey:
    """One user's directory, and the commands given in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_dir = root / "runs" / "smoke"
        self.log = root / "output.txt"
        self.command: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """``sim2or run pipelines/smoke.yaml``."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SIM2OR_")}
        with self.log.open("ab") as log:
            self.command = subprocess.Popen(
                [*COMMAND, "run", str(PIPELINE)],
                cwd=self.root,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.command

    def finish(self, *, timeout_s: float) -> None:
        """Waits for a good end."""
        assert self.command is not None
        assert self.command.wait(timeout=timeout_s) == 0, self.log.read_text()[-4000:]

    def state(self) -> SupervisorState:
        """The supervisor that is running."""
        found = until(
            lambda: s if (s := read_state(self.run_dir)) and s.ready and is_running(s.identity) else None,
            "supervisor",
            timeout_s=30,
        )
        assert found is not None
        return found

    def busy(self, jobs: Jobs, stage: str, *, timeout_s: float) -> JobRecord:
        """Waits until a job of a stage is in the middle of its work."""

        def probe() -> JobRecord | None:
            assert self.command is not None
            assert self.command.poll() is None, self.log.read_text()[-4000:]
            running = [r for r in jobs.list("running", stage) if r.progress and r.progress.done > 0]
            return running[0] if running else None

        found = until(probe, f"running {stage}", timeout_s=timeout_s)
        assert found is not None
        return found

    def run_json(self) -> dict[str, Any]:
        """What the runner wrote."""
        found: dict[str, Any] = json.loads((self.run_dir / "run.json").read_text())
        return found


@pytest.fixture
def journey(tmp_path: Path) -> Iterator[Journey]:
    """An empty directory; a command that is still running at the end is killed, services and all."""
    made = Journey(tmp_path)
    yield made
    if made.command and made.command.poll() is None:
        made.command.kill()
        made.command.wait()


def children(agent_pid: int) -> list[int]:
    """The processes that an agent started."""
    path = Path(f"/proc/{agent_pid}/task/{agent_pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def agent_of(record: JobRecord) -> int:
    """The process id in a worker's name, ``service@host:pid-nonce``."""
    return int(record.owner.rpartition(":")[2].partition("-")[0])


def kill_worker(record: JobRecord) -> None:
    """kill -9 of the process that runs a job."""
    for pid in children(agent_of(record)):
        os.kill(pid, signal.SIGKILL)


def outputs(run: dict[str, Any], step: str) -> list[str]:
    """Digests that a step made."""
    return [digest for job in run["stages"][step]["jobs"] for digest in job["outputs"].values()]


def test_the_whole_job_survives_kills_and_keeps_its_evidence(journey: Journey) -> None:
    """Sim worker, trainer and supervisor are killed; the same command finishes, and the chain is whole."""
    journey.start()
    state = journey.state()
    jobs = Jobs(connect(state.redis_url))
    collecting = journey.busy(jobs, "collect", timeout_s=90)
    kill_worker(collecting)
    training = journey.busy(jobs, "train", timeout_s=240)
    kill_worker(training)
    again = until(
        lambda: next((r for r in jobs.list("running", "train") if r.attempts == 2 and r.progress), None),
        "second attempt of the training",
        timeout_s=90,
    )
    assert again is not None
    everyone = [p.identity.pid for p in state.processes.values() if p.identity]
    everyone += [child for pid in everyone for child in children(pid)]
    os.kill(state.identity.pid, signal.SIGKILL)
    until(lambda: all(start_ticks(pid) is None for pid in everyone), "end of all processes", timeout_s=5)
    assert journey.command is not None
    assert journey.command.wait(timeout=30) == 2

    journey.start()
    journey.finish(timeout_s=400)
    run = journey.run_json()
    assert all(job["reused"] for job in run["stages"]["collect"]["jobs"])
    assert run["stages"]["dataset"]["jobs"][0]["reused"]
    assert run["stages"]["train"]["jobs"][0]["attempts"] >= 3

    check_evidence(journey, run)

    journey.start()
    journey.finish(timeout_s=60)
    again_run = journey.run_json()
    reused = {
        name: all(job["reused"] for job in stage["jobs"]) for name, stage in again_run["stages"].items()
    }
    assert all(reused.values()), reused


def check_evidence(journey: Journey, run: dict[str, Any]) -> None:
    """The report is there with all its figures, and the deployment's lineage reaches the episodes."""
    report = journey.run_dir / "report"
    assert (report / "index.html").stat().st_size > 1000
    summary = json.loads((report / "summary.json").read_text())
    assert set(summary) >= SUMMARY_KEYS
    assert summary["bridge"]["trials"] == 1
    assert summary["bridge"]["stale_executed"] == 0
    assert summary["bridge"]["violations"] == 0
    store = Store(journey.run_dir / "store")
    (deployment,) = outputs(run, "deploy")
    behind = {ancestor.digest for ancestor in chain(store, deployment)}
    for step in ("collect", "convert", "dataset", "train", "export", "trials", "evaluate"):
        assert set(outputs(run, step)) <= behind, step
