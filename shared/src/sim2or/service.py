"""The agent of a service: takes jobs from the bus and has its worker process run them.

The agent is small (Redis and pydantic, no torch, no simulator). It renews the lease from outside the job,
so a stage that blocks in C keeps its job, and a stage that outlives its lease is stopped: SIGTERM, grace,
SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

from sim2or import log
from sim2or.bus.jobs import Claim, Jobs, Lease
from sim2or.bus.server import connect
from sim2or.errors import ConfigError, MessageError, TransientError
from sim2or.messages.job import JobFailure, JobResult, Progress, bounded
from sim2or.process import (
    PARENT_VARIABLE,
    describe_exit,
    die_with_parent,
    on_end_of_input,
    start,
    stop,
    wait_readable,
)
from sim2or.settings import Settings, load_settings
from sim2or.stages import StageInfo, Table, load_table
from sim2or.worker import Assignment

POLL_S = 0.2
PROGRESS_S = 0.5
COMPLETION_S = 60.0


class WorkerEnded(Exception):
    """The worker process ended by itself; the argument is its exit status."""


class WorkerProcess:
    """The agent's end of a worker.

    Args:
        service: Whose stages the worker imports.
        grace_s: How long it may take to unwind [s].
    """

    def __init__(self, service: str, *, grace_s: float) -> None:
        self._grace_s = grace_s
        self._buffer = b""
        self._process = start([sys.executable, "-m", "sim2or.worker", service], stdout=subprocess.PIPE)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one message; a worker that has ended is noticed by ``receive``."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """Returns the next message, or None when there was none in time.

        Raises:
            WorkerEnded: The process ended.
        """
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            if not wait_readable(self._process.stdout, timeout_s):
                return None
            chunk = os.read(self._process.stdout.fileno(), 65536)
            if not chunk:
                raise WorkerEnded(self.stop())
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def stop(self) -> int:
        """Ends it and whatever it started; returns its exit status."""
        return stop(self._process, grace_s=self._grace_s)


class Agent:
    """Runs a service's jobs, one at a time.

    Args:
        service: The service's name in the table.
        settings: Where the bus, the store and the run directory are.
        jobs: The queue.
        table: Which stages the service offers.
    """

    def __init__(self, service: str, *, settings: Settings, jobs: Jobs, table: Table) -> None:
        self.name = f"{service}@{socket.gethostname()}:{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._service = service
        self._settings = settings
        self._jobs = jobs
        self._stages = offered(service, table)
        self._worker: WorkerProcess | None = None
        self._warm_at_s = 0.0
        self._stopping = threading.Event()
        self._log = log.get_logger(worker=self.name)

    def stop(self) -> None:
        """Asks the agent to hand back its job and end."""
        self._stopping.set()

    def run(self) -> None:
        """Takes and runs jobs until ``stop``."""
        self._log.info("serving", stages=sorted(self._stages))
        try:
            while not self._stopping.is_set():
                self._warm()
                claim = self._claim()
                if claim:
                    self._run(claim)
        finally:
            self._drop_worker()
            self._log.info("stopped")

    def _claim(self) -> Claim | None:
        block_s = 0.5 / len(self._stages)
        for stage in self._stages:
            try:
                claim = self._jobs.claim(stage, self.name, block_s=block_s)
            except TransientError as error:
                self._log.warning("bus", error=str(error))
                self._stopping.wait(1.0)
                return None
            if claim:
                return claim
        return None

    def _warm(self) -> None:
        """Starts the worker ahead of its first job, once the stage before it is under way."""
        now_s = time.monotonic()
        if (self._worker and self._worker.alive) or now_s < self._warm_at_s:
            return
        self._warm_at_s = now_s + 1.0
        with contextlib.suppress(TransientError):
            before = {info.warm_after for info in self._stages.values()}
            if "" in before or any(self._jobs.outstanding(stage) for stage in before):
                self._start_worker()

    def _start_worker(self) -> WorkerProcess:
        self._drop_worker()
        self._worker = WorkerProcess(self._service, grace_s=self._settings.grace_s)
        return self._worker

    def _drop_worker(self) -> None:
        if self._worker:
            self._worker.stop()
            self._worker = None

    def _run(self, claim: Claim) -> None:
        started_s = time.monotonic()
        worker = self._worker if self._worker and self._worker.alive else self._start_worker()
        worker.send({"run": self._assignment(claim).model_dump(mode="json")})
        try:
            end = self._follow(claim, worker)
        except WorkerEnded as ended:
            self._worker = None
            message = f"the worker process was {describe_exit(ended.args[0])}"
            end = {"failure": {"kind": "crashed", "message": message}}
        outcome = self._settle(claim, end)
        self._log.info(
            "job",
            job=claim.job_id,
            stage=claim.job.stage,
            attempt=claim.attempt,
            outcome=outcome,
            wall_s=round(time.monotonic() - started_s, 3),
            **({"error": end["failure"]["message"]} if "failure" in end else {}),
        )

    def _assignment(self, claim: Claim) -> Assignment:
        job = claim.job
        return Assignment(
            job_id=claim.job_id,
            attempt=claim.attempt,
            stage=job.stage,
            key=job.key,
            spec=job.spec,
            inputs=job.inputs,
            shard=job.shard,
            shards=job.shards,
            work=self._settings.work_dir(claim.job_id).absolute(),
            store=self._settings.store_root.absolute(),
            run_id=job.run_id,
            traceparent=job.traceparent,
            lease_s=claim.lease_s,
        )

    def _follow(self, claim: Claim, worker: WorkerProcess) -> dict[str, Any]:
        """Keeps the lease and passes progress on until the worker is done or must stop.

        Returns:
            ``{"result"|"failure": …}`` from the worker, or ``{"stopped": reason}``.
        """
        beat_s = claim.lease_s / 4
        renewed_s, next_renewal_s = time.monotonic(), 0.0
        progress: Progress | None = None
        next_progress_s = 0.0
        while True:
            now_s = time.monotonic()
            if self._stopping.is_set():
                return self._stopped("released")
            if now_s >= next_renewal_s or (progress and now_s >= next_progress_s):
                lease = self._renew(claim, progress)
                next_renewal_s = now_s + beat_s
                if lease is Lease.OWNED:
                    renewed_s, next_progress_s, progress = now_s, now_s + PROGRESS_S, None
                    worker.send({"alive": True})
                elif lease or now_s > renewed_s + claim.lease_s:
                    return self._stopped(lease.value if lease else "lost")
                else:
                    next_renewal_s = next_progress_s = now_s + min(1.0, beat_s)
            message = worker.receive(POLL_S) or {}
            if "progress" in message:
                progress = Progress.model_validate(message["progress"])
            if "result" in message or "failure" in message:
                return message

    def _stopped(self, reason: str) -> dict[str, Any]:
        self._drop_worker()
        return {"stopped": reason}

    def _renew(self, claim: Claim, progress: Progress | None) -> Lease | None:
        """Renews the lease; None when the bus does not answer."""
        try:
            return self._jobs.progress(claim, progress) if progress else self._jobs.renew(claim)
        except TransientError as error:
            self._log.warning("bus", error=str(error))
            return None

    def _settle(self, claim: Claim, end: Mapping[str, Any]) -> str:
        """Tells the bus how the job ended, again and again while the bus does not answer."""
        deadline_s = time.monotonic() + COMPLETION_S
        while True:
            try:
                return self._settle_once(claim, end)
            except TransientError as error:
                self._log.warning("bus", error=str(error))
                if time.monotonic() > deadline_s or self._stopping.wait(0.5):
                    return "unrecorded"

    def _settle_once(self, claim: Claim, end: Mapping[str, Any]) -> str:
        if "stopped" in end:
            if end["stopped"] != Lease.LOST.value:
                self._jobs.release(claim)
            return str(end["stopped"])
        if "failure" in end:
            self._jobs.fail(claim, JobFailure(**end["failure"]))
            return str(end["failure"]["kind"])
        if not self._jobs.complete(
            claim, result_message(end["result"], self._stages[claim.job.stage].outputs)
        ):
            return "fenced"
        remove_tree(self._settings.work_dir(claim.job_id))
        return "done"


def result_message(result: Mapping[str, Any], kinds: Mapping[str, str]) -> JobResult:
    """The result for the bus; a summary too large for it is left to the artifacts' manifests."""
    message = JobResult(outputs=result["outputs"], kinds=dict(kinds), summary=result["summary"])
    try:
        bounded(message)
    except MessageError:
        return message.model_copy(update={"summary": {"note": "too large for the bus; see the manifest"}})
    return message


def remove_tree(path: os.PathLike[str]) -> None:
    """Removes a work directory whose result is recorded; what resists is left behind."""
    shutil.rmtree(path, ignore_errors=True)


def serve(service: str, *, settings: Settings | None = None, table: Table | None = None) -> None:
    """Runs a service's agent until SIGTERM, SIGINT or the death of its supervisor."""
    die_with_parent(signal.SIGTERM)
    settings = settings or load_settings()
    log.configure(service)
    jobs = Jobs(connect(settings.redis_url), lease_s=settings.lease_s)
    agent = Agent(service, settings=settings, jobs=jobs, table=table or load_table(settings.plugins))
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: agent.stop())
    if PARENT_VARIABLE in os.environ:
        on_end_of_input(sys.stdin.buffer, lambda: _end(agent, settings.grace_s))
    agent.run()


def _end(agent: Agent, grace_s: float) -> None:
    """The supervisor is gone: hand back the job, and end in any case."""
    agent.stop()
    time.sleep(grace_s + 1.0)
    os._exit(1)


def offered(service: str, table: Table) -> dict[str, StageInfo]:
    """The stages of a service.

    Raises:
        ConfigError: It offers none.
    """
    stages = table.of_service(service)
    if not stages:
        raise ConfigError(f"service {service!r} offers no stage; see `sim2or stages`")
    return stages
