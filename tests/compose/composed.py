"""The stack in containers as the tests see it: from the host, and from a seat of its own runner."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.errors import APIError
from docker.models.containers import Container
from sim2or.containers import Stack
from sim2or.messages.event import Event
from sim2or.messages.job import JobRecord

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OBSERVE = (HERE / "observe.py").read_text()
SIM2OR = [sys.executable, "-c", "from sim2or.cli.main import app; app()"]
LOG_LINES = 40


def until[T](probe: Callable[[], T | None], what: str, *, timeout_s: float, every_s: float = 0.5) -> T:
    """Polls until ``probe`` gives something true; fails with what was waited for."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if found := probe():
            return found
        time.sleep(every_s)
    raise AssertionError(f"no {what} in {timeout_s:g} s")


class Phases:
    """Tells on the terminal what goes on, and at the end how long each phase took."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._took: dict[str, float] = {}

    def say(self, text: str) -> None:
        """A line with the time since the beginning."""
        print(f"[{time.monotonic() - self._began_s:6.1f} s] {text}", flush=True)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times what is done inside."""
        began_s = time.monotonic()
        self.say(f"{name} …")
        yield
        self._took[name] = time.monotonic() - began_s
        self.say(f"{name}: {self._took[name]:.1f} s")

    def table(self) -> str:
        """Every phase with its time, and the whole."""
        whole = {**self._took, "all of it": time.monotonic() - self._began_s}
        return "\n".join(f"{name:60} {took:7.1f} s" for name, took in whole.items())


class Composed:
    """One compose project of our stack.

    Args:
        engine: A client of the container engine.
        project: Its name, so that it stands beside others.
        files: Compose files, relative to the repository.
        variables: Of the compose files.
    """

    def __init__(self, engine: DockerClient, project: str, files: tuple[str, ...], **variables: str) -> None:
        self.engine = engine
        self.stack = Stack(engine, project)
        self.phases = Phases()
        self._project = project
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SIM2OR_")},
            "COMPOSE_FILE": ":".join(files),
            "COMPOSE_PROJECT_NAME": project,
            **variables,
        }
        self._observer: Container | None = None
        self._told = ""

    def compose(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """Runs ``docker compose`` on the project; fails with what it said."""
        return self._run(["docker", "compose", *arguments], timeout_s)

    def sim2or(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """Runs our own command line on the project; fails with what it said."""
        return self._run([*SIM2OR, *arguments], timeout_s)

    def down(self, *options: str) -> None:
        """Ends everything; volumes stay unless ``--volumes`` is given."""
        if self._observer:
            self._observer.remove(force=True)
            self._observer = None
        self.compose("down", "--remove-orphans", "--timeout", "60", *options, timeout_s=300)

    def container(self, service: str) -> Container:
        """The first container of a service."""
        return self.stack.containers(service)[0]

    def state(self, service: str) -> dict[str, Any]:
        """What the engine says of a service's first container."""
        return dict(self.container(service).attrs["State"])

    def owner(self, record: JobRecord) -> Container:
        """The container whose worker has a job; workers are named ``service@host:pid-nonce``."""
        host = record.owner.partition("@")[2].partition(":")[0]
        return self.engine.containers.get(host)

    def observe(self, what: str, *arguments: str) -> Any:
        """Asks a container of the runner's own, which outlives the pipeline; None while the bus is away."""
        try:
            answer = self._seat().exec_run(["python", "-c", OBSERVE, what, *arguments], demux=True)
        except APIError as error:
            self.phases.say(f"not observed: {error}")
            return None
        out, said = answer.output
        if answer.exit_code:
            self.phases.say(f"not observed: {(said or b'').decode().strip().splitlines()[-1:]}")
            return None
        return json.loads(out.splitlines()[-1])  # before it, what the bus logs

    def job(self, job_id: str) -> JobRecord | None:
        """A job's record; None while the bus is away."""
        return next((record for record in self.jobs() if record.job_id == job_id), None)

    def jobs(self) -> list[JobRecord]:
        """Every job's record; none while the bus is away."""
        return [JobRecord.model_validate_json(json.dumps(found)) for found in self.observe("jobs") or ()]

    def events(self) -> list[Event]:
        """Every event, oldest first."""
        return [Event.model_validate_json(json.dumps(found)) for found in self.observe("events")]

    def busy(self, stage: str, *, beyond: float = 0, attempt: int = 1, timeout_s: float) -> JobRecord:
        """Waits until a job of a stage is in the middle of its work.

        Args:
            stage: The stage.
            beyond: How many units must be done.
            attempt: At least which attempt.
            timeout_s: How long to wait [s].
        """

        def probe() -> JobRecord | None:
            self.watch_pipeline()
            there = [record for record in self.jobs() if record.job.stage == stage]
            assert not there or any(not record.final for record in there), f"{stage} ended before it was seen"
            for record in there:
                done = record.progress.done if record.progress else 0
                far = record.state == "running" and done > beyond and record.attempts >= attempt
                if far and self.owner(record).status == "running":
                    self.phases.say(f"{record.job.name}: {done:g} done in attempt {record.attempts}")
                    return record
            return None

        return until(probe, f"{stage} in the middle of its work", timeout_s=timeout_s)

    def watch_pipeline(self) -> bool:
        """Tells how far the pipeline is and whether it has ended; fails when it ended badly."""
        container = self.container("pipeline")
        state = container.attrs["State"]
        assert state["Status"] != "exited" or state["ExitCode"] == 0, self.last_words()
        lines = container.logs(tail=1).decode(errors="replace").splitlines()
        if lines and lines[0] != self._told:
            self._told = lines[0]
            self.phases.say(f"    {lines[0]}")
        return bool(state["Status"] == "exited")

    def finish(self, *, timeout_s: float) -> None:
        """Waits for the pipeline's good end, telling how far it is."""
        until(self.watch_pipeline, "end of the pipeline", timeout_s=timeout_s, every_s=2)

    def last_words(self) -> str:
        """The end of every container's log, for a failed test."""
        return "\n".join(f"{line.container:12} {line.text}" for line in self.stack.logs(tail=LOG_LINES))

    def _seat(self) -> Container:
        """A container like the pipeline's that only waits."""
        if self._observer is None:
            name = f"{self._project}-observer"
            self.compose(
                "run",
                "--detach",
                "--no-deps",
                "--name",
                name,
                "--entrypoint",
                "sleep",
                "pipeline",
                "infinity",
            )
            self._observer = self.engine.containers.get(name)
        return self._observer

    def _run(self, command: list[str], timeout_s: float) -> str:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, (
            f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-6000:]}"
        )
        return done.stdout
