"""The agent of a service: takes jobs from the bus and has its worker process run them.

The agent is small (Redis and pydantic, no torch, no simulator). It renews the lease from outside the job,
so a stage that blocks in C keeps its job. A stage that must stop is told so (SIGTERM), has its grace to
unwind, and is ended (SIGKILL); the job stays its own until then. One whose lease is lost is ended at once. A
heartbeat proves that the agent lives, progress that the job does: where a stage has a limit (``stall_s``),
one that tells no progress for that long is stopped likewise and tried again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sim2or import log, tracing
from sim2or.artifacts.mirrored import check_mirror
from sim2or.artifacts.store import Store
from sim2or.bus.jobs import Claim, Jobs, Lease
from sim2or.bus.queue import JobQueue
from sim2or.bus.server import connect
from sim2or.clock import now_ns
from sim2or.code_digest import code_digest
from sim2or.counts import DURATION_BOUNDS_S, LIVE, PULSE, Distribution, Reading
from sim2or.errors import ConfigError, JobError, MessageError, TransientError
from sim2or.messages.job import JobFailure, JobResult, Progress, bounded
from sim2or.metrics import expose, queue_source
from sim2or.process import (
    PARENT_VARIABLE,
    describe_exit,
    die_with_parent,
    on_end_of_input,
    start,
    stop,
    wait_readable,
    wait_writable,
)
from sim2or.settings import Settings, load_settings
from sim2or.stages import StageInfo, Table, load_table
from sim2or.tenure import Tenure
from sim2or.worker import Assignment
from sim2or.workspace import remove

POLL_S = 0.2
RETRY_S = 0.5
"""How soon a bus that did not answer is told again [s]."""

CLAIM_S = 0.5
"""How long it waits for a job before it looks at what else there is to do [s]."""

GOOD_ENDS = ("done", "released", "cancelled")
"""Outcomes of an attempt that are nobody's fault."""

RELEASED, CANCELLED, LOST = ({"stopped": reason} for reason in ("released", "cancelled", "lost"))
"""What became of an attempt that was told to stop."""


@dataclass
class AttemptCounts:
    """What became of the attempts of one stage's jobs on this agent.

    Attributes:
        started: Attempts begun.
        ended: Attempts by outcome: done; permanent, transient, crashed (failures); released, cancelled;
            lost (its lease), fenced (its result), unrecorded (no bus to tell).
        duration_s: How long they took, from the claim to the record.
    """

    started: int = 0
    ended: Counter[str] = field(default_factory=Counter, metadata={"label": "outcome"})
    duration_s: Distribution = field(default_factory=lambda: Distribution(DURATION_BOUNDS_S))


@dataclass
class WorkerCounts:
    """The worker processes of one agent.

    Attributes:
        starts: Worker processes started; more than one: the others ended or had to be ended.
        crashes: Worker processes that ended by themselves in the middle of a job.
    """

    starts: int = 0
    crashes: int = 0


class WorkerEnded(Exception):
    """The worker process ended by itself; the argument is its exit status."""


class OtherCode(JobError):
    """A job was asked of other code than this service runs."""


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

    def beat(self, message: Mapping[str, Any]) -> None:
        """Sends a message if there is room for it: a worker that is stuck in C does not read for hours."""
        assert self._process.stdin is not None
        if wait_writable(self._process.stdin, 0.0):
            self.send(message)

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

    def ask_to_stop(self) -> None:
        """Tells it to unwind."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends it and whatever it started, at once."""
        stop(self._process, grace_s=0.0)

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

    def __init__(self, service: str, *, settings: Settings, jobs: JobQueue, table: Table) -> None:
        self.name = f"{service}@{socket.gethostname()}:{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._service = service
        self._settings = settings
        self._jobs = jobs
        self._stages = offered(service, table)
        self._module = table.services[service].module
        self._code = ""
        self._worker: WorkerProcess | None = None
        self._warm_at_s = 0.0
        self._busy_s = time.monotonic()
        self.workers = WorkerCounts()
        self.attempts = {stage: AttemptCounts() for stage in self._stages}
        self._figures: list[dict[str, Any]] = []
        LIVE.watch(self, self.workers)
        for stage, counts in self.attempts.items():
            LIVE.watch(self, counts, stage=stage)
        self._stopping = threading.Event()
        self._log = log.get_logger(worker=self.name)

    def stop(self) -> None:
        """Asks the agent to hand back its job and end."""
        self._stopping.set()

    @property
    def idle_s(self) -> float:
        """How long it has found no job [s]."""
        return time.monotonic() - self._busy_s

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Takes and runs jobs until ``stop``, or until there is reason to end between two jobs.

        Args:
            until: Asked after every look for a job.
        """
        self._log.info("serving", stages=sorted(self._stages))
        self._busy_s = time.monotonic()
        try:
            while not self._stopping.is_set() and not until():
                PULSE.beat()
                self._warm()
                claim = self._claim()
                if claim:
                    self._run(claim)
                    self._busy_s = time.monotonic()
        finally:
            self._drop_worker()
            self._log.info("stopped")

    def _tidy(self) -> None:
        """Removes what killed processes left: unfinished writes, and work directories of recorded jobs."""
        Store(self._settings.store_root).sweep()
        for path in self._settings.work_dir("").glob("*"):
            with contextlib.suppress(ConfigError, MessageError):
                if self._jobs.get(path.name).state == "done":
                    remove(path)

    def worker_readings(self) -> list[Reading]:
        """What the worker process counted, as it told last: a few seconds ago at most."""
        return [Reading(**figure) for figure in self._figures]

    def _claim(self) -> Claim | None:
        try:
            return self._jobs.claim(tuple(self._stages), self.name, block_s=CLAIM_S)
        except TransientError as error:
            self._log.warning("bus", error=str(error))
            self._stopping.wait(1.0)
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
                self._tidy()
                self._start_worker()

    def _start_worker(self) -> WorkerProcess:
        self._drop_worker()
        self.workers.starts += 1
        self._code = code_digest(self._module)
        self._worker = WorkerProcess(self._service, grace_s=self._settings.grace_s)
        return self._worker

    def _drop_worker(self) -> None:
        if self._worker:
            self._worker.stop()
            self._worker = None

    def _run(self, claim: Claim) -> None:
        started_ns = now_ns()
        self.attempts[claim.job.stage].started += 1
        own = tracing.new_traceparent(claim.job.traceparent)
        try:
            end = self._follow(claim, self._worker_for(claim), assignment_of(claim, self._settings, own))
        except OtherCode as error:
            end = {"failure": {"kind": "permanent", "message": str(error)}}
        except WorkerEnded as ended:
            self._worker = None
            self.workers.crashes += 1
            message = f"the worker process was {describe_exit(ended.args[0])}"
            end = {"failure": {"kind": "crashed", "message": message}}
        outcome = self._settle(claim, end)
        self._tell(claim, own, outcome, end.get("failure", {}).get("message", ""), started_ns)

    def _worker_for(self, claim: Claim) -> WorkerProcess:
        """A worker that runs the code which the job's key names; one with older code is replaced.

        Raises:
            OtherCode: This installation has other code.
        """
        worker = self._worker if self._worker and self._worker.alive else self._start_worker()
        if claim.job.code in ("", self._code):
            return worker
        worker = self._start_worker()
        if claim.job.code != self._code:
            raise OtherCode(
                f"the job asks for {self._service} code {claim.job.code[:19]}…, here is {self._code[:19]}…: "
                "its result would stand under a wrong key; build all images from one commit, or run "
                "`sim2or run` in the checkout whose services run"
            )
        return worker

    def _tell(self, claim: Claim, own: str, outcome: str, error: str, started_ns: int) -> None:
        """Counts, traces and logs an attempt that ended."""
        wall_s = (now_ns() - started_ns) / 1e9
        counts = self.attempts[claim.job.stage]
        counts.ended[outcome] += 1
        counts.duration_s.add(wall_s)
        tracing.record(
            f"job {claim.job.stage}",
            own=own,
            parent=claim.job.traceparent,
            started_ns=started_ns,
            error=error or ("" if outcome in GOOD_ENDS else outcome),
            job=claim.job_id,
            stage=claim.job.stage,
            attempt=claim.attempt,
            outcome=outcome,
            worker=self.name,
            run=claim.job.run_id,
        )
        self._log.info(
            "job",
            job=claim.job_id,
            stage=claim.job.stage,
            attempt=claim.attempt,
            outcome=outcome,
            wall_s=round(wall_s, 3),
            **({"error": error} if error else {}),
        )

    def _follow(self, claim: Claim, worker: WorkerProcess, assignment: Assignment) -> Mapping[str, Any]:
        """Keeps the lease and passes progress on until the worker is done or must stop.

        The worker begins when the lease was renewed once: the answer to a claim may have been under way for
        longer than the lease, and then the job is somebody else's.

        Returns:
            ``{"result"|"failure": …}`` from the worker, or ``{"stopped": reason}``.
        """
        stall_s = self._stages[claim.job.stage].stall_s or self._settings.stall_s
        tenure, told_s, begun = Tenure(claim, self._renew), time.monotonic(), False
        while True:
            PULSE.beat()
            if self._stopping.is_set():
                return self._unwind(tenure, worker, RELEASED)
            lease = tenure.keep()
            if lease is Lease.OWNED and begun:
                worker.beat(self._word(tenure))
            elif lease is Lease.OWNED:
                worker.send(self._word(tenure) | {"run": assignment.model_dump(mode="json")})
                begun = True
            elif lease:
                return self._unwind(tenure, worker, LOST if lease is Lease.LOST else CANCELLED)
            message = self._hear(worker, tenure)
            if message.keys() - {"figures"}:
                told_s = time.monotonic()
            if "result" in message or "failure" in message:
                return message
            if 0 < stall_s < time.monotonic() - told_s:
                return self._unwind(tenure, worker, {"failure": stalled(stall_s)})

    def _unwind(self, tenure: Tenure, worker: WorkerProcess, end: Mapping[str, Any]) -> Mapping[str, Any]:
        """Stops the worker; while it unwinds, its job is nobody else's.

        The lease of a cancelled job is not renewed: its worker has what is left of it.

        Args:
            tenure: Of the job.
            worker: Who does it.
            end: What becomes of the attempt.

        Returns:
            The same, unless the worker was done in its grace, or the job was lost meanwhile.
        """
        deadline_s = time.monotonic() + self._settings.grace_s
        worker.ask_to_stop()
        with contextlib.suppress(WorkerEnded):
            while end != LOST and time.monotonic() < min(deadline_s, tenure.ends_s):
                PULSE.beat()
                message = self._hear(worker, tenure)
                if "result" in message and end != CANCELLED:
                    end = message
                if not message and not worker.alive:
                    break
                lease = tenure.keep()
                if lease is Lease.OWNED:
                    worker.beat(self._word(tenure))
                elif lease is Lease.LOST:
                    end = LOST
        worker.kill()
        self._worker = None
        return end

    def _word(self, tenure: Tenure) -> dict[str, Any]:
        """What a worker hears of its agent after every renewal."""
        return {"alive": tenure.renewed_s, "figures": bool(self._settings.metrics_port)}

    def _hear(self, worker: WorkerProcess, tenure: Tenure) -> dict[str, Any]:
        """The worker's next message; an empty one when there is none for a moment.

        Raises:
            WorkerEnded: The process ended.
        """
        message = worker.receive(POLL_S) or {}
        self._figures = message.get("figures", self._figures)
        if "progress" in message:
            tenure.progress = Progress.model_validate(message["progress"])
        return message

    def _renew(self, claim: Claim, progress: Progress | None) -> Lease | None:
        """Renews the lease; None when the bus does not answer."""
        try:
            return self._jobs.progress(claim, progress) if progress else self._jobs.renew(claim)
        except TransientError as error:
            self._log.warning("bus", error=str(error))
            return None

    def _settle(self, claim: Claim, end: Mapping[str, Any]) -> str:
        """Tells the bus how the job ended, again and again until the bus takes it.

        An agent that stops tries on for another grace where the job is done, and not at all otherwise.
        """
        patience_s = self._settings.grace_s if "result" in end else 0.0
        gives_up_s = math.inf
        while True:
            PULSE.beat()
            try:
                return self._settle_once(claim, end)
            except TransientError as error:
                self._log.warning("bus", error=str(error))
                if self._stopping.is_set():
                    gives_up_s = min(gives_up_s, time.monotonic() + patience_s)
                if time.monotonic() >= gives_up_s:
                    return "unrecorded"
                time.sleep(RETRY_S)

    def _settle_once(self, claim: Claim, end: Mapping[str, Any]) -> str:
        if "stopped" in end:
            if end != LOST:
                self._jobs.release(claim)
            return str(end["stopped"])
        if "failure" in end:
            if self._jobs.fail(claim, JobFailure(**end["failure"])):
                return str(end["failure"]["kind"])
            self._drop_worker()  # it went on with a job that had become another's
            return "fenced"
        if not self._jobs.complete(
            claim, result_message(end["result"], self._stages[claim.job.stage].outputs)
        ):
            return "fenced"
        remove(self._settings.work_dir(claim.job_id))
        return "done"


def assignment_of(claim: Claim, settings: Settings, traceparent: str) -> Assignment:
    """What a worker must know to do a job.

    Args:
        claim: The job.
        settings: Where its work directory and the store are.
        traceparent: W3C trace context of this attempt.
    """
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
        work=settings.work_dir(claim.job_id).absolute() / f"{claim.attempt}-{uuid.uuid4().hex[:6]}",
        store=settings.store_root.absolute(),
        run_id=job.run_id,
        traceparent=traceparent,
        lease_s=claim.lease_s,
    )


def result_message(result: Mapping[str, Any], kinds: Mapping[str, str]) -> JobResult:
    """The result for the bus; a summary too large for it is left to the artifacts' manifests."""
    message = JobResult(outputs=result["outputs"], kinds=dict(kinds), summary=result["summary"])
    try:
        bounded(message)
    except MessageError:
        return message.model_copy(update={"summary": {"note": "too large for the bus; see the manifest"}})
    return message


def stalled(limit_s: float) -> dict[str, str]:
    """The failure of a job that hangs."""
    message = (
        f"no progress for {limit_s:g} s: the job hung and its worker was ended; if so much time between two "
        "reports is normal for it, raise SIM2OR_STALL_S or the stage's stall_s"
    )
    return {"kind": "crashed", "message": message}


def serve(
    service: str, *, settings: Settings | None = None, table: Table | None = None, idle_s: float = 0.0
) -> None:
    """Runs a service's agent until SIGTERM, SIGINT or the death of its supervisor.

    Args:
        service: The service's name in the table.
        settings: Read from the environment when None.
        table: Stages and services; all that are installed when None.
        idle_s: It also ends when it found no job for so long [s]; 0: it waits for ever.
    """
    die_with_parent(signal.SIGTERM)
    settings = settings or load_settings()
    log.configure(service)
    check_mirror(settings.mirror)
    jobs = Jobs(connect(settings.redis_url), lease_s=settings.lease_s)
    agent = Agent(service, settings=settings, jobs=jobs, table=table or load_table(settings.plugins))
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: agent.stop())
    if PARENT_VARIABLE in os.environ:
        on_end_of_input(sys.stdin.buffer, lambda: _end(agent, settings.grace_s))
    tracing.configure(service)
    sources = {"worker": agent.worker_readings, "bus": queue_source(jobs, agent.attempts)}
    expose(settings, service, sources)
    try:
        agent.run(until=lambda: 0 < idle_s <= agent.idle_s)
    finally:
        tracing.flush()


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
