"""A yard for fault drills: a real Redis, agents as processes, and what they did, seen from outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "shared" / "tests" / "toy"))
sys.path.insert(0, str(Path(__file__).parent / "drill"))
from sim2or.artifacts.store import Store
from sim2or.bus.events import Events
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import PrivateRedis, connect
from sim2or.bus.server import start as start_redis
from sim2or.messages.event import Event
from sim2or.messages.job import Job, JobRecord
from sim2or.process import PARENT_VARIABLE
from sim2or_drill import effects
from sim2or_toy.bench import gone, until

__all__ = ["LEASE_S", "PATHS", "Yard", "effects", "environment", "gone", "until", "yard"]

PATHS = sys.path[:2]
LEASE_S = 1.0
GRACE_S = 1.0


def environment(root: Path, url: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """In which the drill service is installed and leases are short."""
    whole = os.environ | {
        "PYTHONPATH": os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")]),
        "SIM2OR_PLUGINS": "sim2or_drill.plugin",
        "SIM2OR_LEASE_S": str(LEASE_S),
        "SIM2OR_GRACE_S": str(GRACE_S),
        "SIM2OR_REDIS_URL": url,
        "SIM2OR_RUN_DIR": str(root),
        "OMP_NUM_THREADS": "1",
    }
    whole.pop(PARENT_VARIABLE, None)
    return whole | dict(extra or {})


@dataclass
class Yard:
    """A run directory with a bus and agents of the drill service.

    Attributes:
        root: The run directory.
        redis: Its Redis.
        jobs: The queue.
        agents: Every agent that was started.
    """

    root: Path
    redis: PrivateRedis
    jobs: Jobs
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def effects(self) -> Path:
        """Where the stage leaves its lines."""
        path = self.root / "effects"
        path.mkdir(exist_ok=True)
        return path

    @property
    def store(self) -> Store:
        """The run's store."""
        return Store(self.root / "store")

    def agent(self, extra: Mapping[str, str] | None = None, *, url: str = "") -> subprocess.Popen[bytes]:
        """Starts an agent, as a container would; its log lies in the run directory."""
        with (self.root / f"agent-{len(self.agents)}.log").open("wb") as log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "sim2or_drill"],
                env=environment(self.root, url or self.redis.url, extra),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.agents.append(agent)
        return agent

    def job(self, key: str, **spec: Any) -> Job:
        """A question to the drill stage."""
        return Job(stage="drill", key=key, run_id="drill", spec={"effects": str(self.effects)} | spec)

    def submit(self, key: str = "k", **spec: Any) -> str:
        """Submits a job of the drill stage."""
        return self.jobs.submit(self.job(key, **spec)).job_id

    def wait(self, job_id: str, *states: str, timeout_s: float = 30.0) -> JobRecord:
        """Waits until a job is in one of the states."""
        return until(
            lambda: record if (record := self.jobs.get(job_id)).state in states else None,
            f"{' or '.join(states)} of {job_id}",
            timeout_s=timeout_s,
        )

    def lines(self, name: str, job_id: str = "") -> list[dict[str, Any]]:
        """The stage's lines of one kind: of one job, or all."""
        return [line for line in effects.read(self.effects, name) if job_id in ("", line["job"])]

    def started(self, job_id: str, times: int = 1) -> dict[str, Any]:
        """Waits until a job was started so often; returns the line of its last start."""
        return until(
            lambda: lines[-1] if len(lines := self.lines("starts", job_id)) >= times else None,
            f"start {times} of {job_id}",
        )

    def stepped(self, job_id: str, times: int = 1) -> dict[str, Any]:
        """Waits until a job took so many steps; returns the line of the last."""
        return until(
            lambda: lines[-1] if len(lines := self.lines("steps", job_id)) >= times else None,
            f"step {times} of {job_id}",
        )

    def events(self, job_id: str = "") -> list[Event]:
        """Everything that happened, to one job or to all."""
        return [one for one in all_events(self.redis.url) if job_id in ("", one.job_id)]

    def kinds(self, job_id: str) -> Counter[str]:
        """How often what happened to a job."""
        return Counter(event.kind for event in self.events(job_id))

    def owner(self, job_id: str) -> subprocess.Popen[bytes]:
        """The agent that has a job."""
        pid = int(self.jobs.get(job_id).owner.rpartition(":")[2].partition("-")[0])
        return next(agent for agent in self.agents if agent.pid == pid)

    def files(self, record: JobRecord) -> dict[str, str]:
        """What a job's artifact holds, its bytes verified."""
        assert record.result is not None
        out = self.store.checkout(record.result.outputs["steps"])
        return {path.name: path.read_text() for path in out.iterdir()}

    def leftovers(self) -> list[str]:
        """Unfinished writes and work directories that still lie about."""
        work, partial = self.root / "work", self.root / "store/partial"
        return [str(path) for place in (work, partial) if place.is_dir() for path in place.iterdir()]


def all_events(url: str) -> list[Event]:
    """The whole record of events."""
    client = connect(url)
    try:
        events, read = [], Events(client)
        while page := read.read(events[-1].id if events else "0-0"):
            events += page
        return events
    finally:
        client.close()


@contextlib.contextmanager
def yard(root: Path, program: Path | None = None) -> Iterator[Yard]:
    """Sets up a yard; kills its agents and its Redis at the end."""
    server = start_redis(root / "redis", server=program)
    made = Yard(root, server, Jobs(connect(server.url), lease_s=LEASE_S))
    try:
        yield made
    finally:
        for agent in made.agents:
            agent.kill()
            agent.wait()
        server.stop()
