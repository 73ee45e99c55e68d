"""A bench for tests of the real thing: a private Redis, agents as processes, and waits with deadlines."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sim2or.artifacts.store import Store
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import connect
from sim2or.bus.server import start as start_redis
from sim2or.messages.job import Job, JobRecord
from sim2or.process import PARENT_VARIABLE, start_ticks

LEASE_S = 2.0


def toy_environment() -> dict[str, str]:
    """Environment in which the toy service is installed and the leases are short."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "SIM2OR_PLUGINS": "sim2or_toy.plugin",
        "SIM2OR_LEASE_S": str(LEASE_S),
        "SIM2OR_GRACE_S": "1",
    }


def until[T](probe: Callable[[], T], what: str, *, timeout_s: float = 30.0) -> T:
    """Polls until ``probe`` gives something true, and returns it; says what it waited for in vain."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if found := probe():
            return found
        time.sleep(0.02)
    raise AssertionError(f"no {what} in {timeout_s:g} s")


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    return start_ticks(pid) is None


def marked(text: str) -> list[int]:
    """Ids of the processes whose command line or environment holds ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            held = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
            if text.encode() in held and not gone(int(path.name)):
                found.append(int(path.name))
    return [pid for pid in found if pid != os.getpid()]


@dataclass
class Bench:
    """A run directory with a bus, and agents of the toy service.

    Attributes:
        root: The run directory.
        jobs: The queue.
        url: The bus.
    """

    root: Path
    jobs: Jobs
    url: str
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def flags(self) -> Path:
        """Where the toy leaves its marks."""
        path = self.root / "flags"
        path.mkdir(exist_ok=True)
        return path

    @property
    def store(self) -> Store:
        """The run's store."""
        return Store(self.root / "store")

    def marks(self, prefix: str) -> list[str]:
        """Names of the toy's marks, sorted."""
        return sorted(p.name for p in self.flags.glob(f"{prefix}*"))

    def worker_pid(self) -> int:
        """The worker process that started a job last."""
        marks = until(
            lambda: sorted(self.flags.glob("started-*"), key=lambda p: p.stat().st_mtime_ns), "start"
        )
        return int(marks[-1].name.split("-")[2])

    def agent(self) -> subprocess.Popen[bytes]:
        """Starts an agent of the toy service, as a container would."""
        environment = (
            os.environ | toy_environment() | {"SIM2OR_REDIS_URL": self.url, "SIM2OR_RUN_DIR": str(self.root)}
        )
        environment.pop(PARENT_VARIABLE, None)
        agent = subprocess.Popen(
            [sys.executable, "-m", "sim2or_toy"], env=environment, stdout=subprocess.DEVNULL
        )
        self.agents.append(agent)
        return agent

    def submit(self, stage: str = "write", *, key: str = "k", traceparent: str = "", **spec: object) -> str:
        """Submits a job of the toy service."""
        job = Job(stage=stage, key=key, traceparent=traceparent, spec={"flags": str(self.flags)} | spec)
        return self.jobs.submit(job).job_id

    def wait(self, job_id: str, *states: str, timeout_s: float = 30.0) -> JobRecord:
        """Waits until a job is in one of the states."""
        return until(
            lambda: r if (r := self.jobs.get(job_id)).state in states else None,
            f"{' or '.join(states)} of {job_id}",
            timeout_s=timeout_s,
        )

    def events(self, job_id: str) -> list[str]:
        """What happened to a job."""
        from sim2or.bus.events import Events

        return [event.kind for event in Events(connect(self.url)).read() if event.job_id == job_id]


@contextlib.contextmanager
def bench(root: Path) -> Iterator[Bench]:
    """Sets up a bench; kills its agents and its Redis at the end."""
    server = start_redis(root / "redis")
    made = Bench(root, Jobs(connect(server.url), lease_s=LEASE_S), server.url)
    try:
        yield made
    finally:
        for agent in made.agents:
            agent.kill()
            agent.wait()
        server.stop()


def variables(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A whole environment for a command of the toy installation."""
    environment = os.environ | toy_environment() | (extra or {})
    environment.pop(PARENT_VARIABLE, None)
    return environment
