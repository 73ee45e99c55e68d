"""The lease queue: jobs run at least once and are recorded exactly once.

Every operation is one atomic script (``jobs.lua``) and one round trip; Redis's clock is the only one. A
worker is a process with a unique name that has one job at a time::

    claim = jobs.claim("train", worker)
    while not finished:                       # every lease_s / 4, from outside the job's process
        jobs.renew(claim)                     # owned | lost | cancelled
    jobs.complete(claim, result)              # False: another worker has it now, or it was cancelled
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from typing import Any, cast, get_args

from pydantic import ValidationError
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sim2or.errors import ConfigError, MessageError, TransientError, choices
from sim2or.messages.codec import explain
from sim2or.messages.job import (
    Job,
    JobFailure,
    JobRecord,
    JobResult,
    JobState,
    Priority,
    Progress,
    bounded,
    check_payload,
)

RETRY_DELAYS_S: Mapping[str, float] = {"transient": 1.0, "crashed": 0.2}
"""Before the first retry [s], by kind of failure; each further one waits twice as long, at most a minute."""

ALL, DEAD = "jobs:all", "jobs:dead"
"""Indices of jobs: every one, and those that failed for good."""

MAX_TRACEBACK = 8000
MAX_FIGURES = 16
MAX_FIGURE_CHARACTERS = 200
_MAX_WAIT_S = 1.0
_PAGE = 1000
# Redis 6.2 truncates a BLPOP timeout to whole milliseconds, and 1 ms may become 0: wait for ever.
_MIN_WAIT_S = 0.01
_NO_RIGHTS = ("no permissions", "No permissions", "ACL failure", "The user executing the script")
_NO_WRITES = (
    "OOM ",
    "command not allowed when used memory",
    "READONLY ",
    "read only replica",
    "MISCONF ",
    "NOREPLICAS ",
)

Records = list[JobRecord]
Reply = list[Any]


class Lease(StrEnum):
    """What a worker learns when it renews."""

    OWNED = "owned"
    LOST = "lost"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Submitted:
    """What became of a submission.

    Attributes:
        job_id: Names the job.
        state: Its state now.
        existing: Whether the same question was already queued, running or answered.
    """

    job_id: str
    state: JobState
    existing: bool


@dataclass(frozen=True)
class Claim:
    """A job that a worker holds.

    Attributes:
        job_id: Names the job.
        job: The question.
        worker: Who holds it.
        attempt: Counts the starts of this job, from 1.
        lease_s: How long it is held without a renewal [s].
    """

    job_id: str
    job: Job
    worker: str
    attempt: int
    lease_s: float


@dataclass(frozen=True)
class QueueFigures:
    """How a stage's queue stands, and what happened in it since this bus exists.

    Attributes:
        queued: Jobs that wait for a worker.
        delayed: Jobs that wait for the time of their retry.
        running: Jobs that a worker holds.
        outstanding: All three.
        dead_letters: Jobs that failed for good and were neither retried nor asked again.
        oldest_age_s: How long the job that waits longest has waited for a worker [s]; 0 when none waits.
        submitted: Submissions that queued a job.
        started: Attempts.
        done: Results recorded.
        failed: Permanent failures.
        retried: Failures that are tried again after a delay.
        released: Jobs that a worker handed back.
        lost: Leases that ended because the worker was silent.
        fenced: Results that were discarded because another worker had the job.
        dead: Jobs given up after too many failures.
        cancelled: Jobs cancelled.
    """

    queued: int
    delayed: int
    running: int
    outstanding: int
    dead_letters: int
    oldest_age_s: float
    submitted: int = 0
    started: int = 0
    done: int = 0
    failed: int = 0
    retried: int = 0
    released: int = 0
    lost: int = 0
    fenced: int = 0
    dead: int = 0
    cancelled: int = 0


COUNTED: Mapping[str, str] = {
    "submitted": "submitted",
    "started": "started",
    "done": "done",
    "failed": "failed",
    "retry": "retried",
    "released": "released",
    "lost": "lost",
    "fenced": "fenced",
    "dead": "dead",
    "cancelled": "cancelled",
}
"""Kind of event, after ``job.``, to the figure that counts it."""


@dataclass(frozen=True)
class Pruned:
    """What was forgotten.

    Attributes:
        jobs: Records of jobs.
        events: Events.
    """

    jobs: int
    events: int


class Jobs:
    """The queue.

    Args:
        redis: A client from ``connect`` (it decodes responses).
        lease_s: How long a silent worker keeps its job [s].
        max_deliveries: Starts that may fail before a job is dead.
        run_id: The run whose submissions these are, for jobs that name none.
        retry_delays_s: Delay before the first retry [s], by kind of failure.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        lease_s: float = 10.0,
        max_deliveries: int = 5,
        run_id: str = "",
        retry_delays_s: Mapping[str, float] = RETRY_DELAYS_S,
    ) -> None:
        if not redis.get_encoder().decode_responses:
            raise ConfigError(
                "Jobs needs a client with decode_responses=True: make it with bus.server.connect"
            )
        self.lease_s = lease_s
        self.max_deliveries = max_deliveries
        self.run_id = run_id
        self._retry_delays_s = retry_delays_s
        self._redis = redis
        self._script = redis.register_script((files("sim2or.bus") / "jobs.lua").read_text())

    def submit(self, job: Job, *, priority: Priority = "normal") -> Submitted:
        """Queues a job; the same question is queued and answered once.

        A job that failed, died or was cancelled is queued anew.

        Raises:
            MessageError: The job is larger than the bus carries.
            TransientError: Redis did not answer or is full; the job may or may not be queued: submit again.
        """
        if priority not in get_args(Priority):
            raise ConfigError(f"priority {priority!r}; {choices(priority, get_args(Priority))}")
        if not job.run_id and self.run_id:
            job = job.model_copy(update={"run_id": self.run_id})
        asked = _asked(job)
        again = {**asked, "run_id": job.run_id, "traceparent": job.traceparent}
        state, existing = self._call(
            "submit",
            *(job.job_id, bounded(job), job.stage, priority, job.run_id, job.traceparent),
            *(json.dumps(asked), json.dumps(again)),
        )
        return Submitted(job_id=job.job_id, state=state, existing=bool(existing))

    def claim(self, stages: str | Sequence[str], worker: str, *, block_s: float = 1.0) -> Claim | None:
        """Takes one job: first what another worker lost, then the highest priority.

        Args:
            stages: Whose jobs: one stage's, or those of several, the earlier ones first.
            worker: A name that only this process uses.
            block_s: How long to wait for a job [s].
        """
        deadline = time.monotonic() + block_s
        order = [stages] if isinstance(stages, str) else list(stages)
        reply = None
        while True:
            due_ms = []
            for stage in order:
                found = self._look(stage, worker, reply)
                if isinstance(found, Claim):
                    return found
                due_ms.append(found)
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return None
            patience_s = self._patience_s(remaining_s, min((ms for ms in due_ms if ms >= 0), default=-1))
            if len(order) == 1:
                reply = self._wait_and_call(order[0], patience_s, *self._question(order[0], worker))
            else:
                woken = self._wait(order, patience_s)
                order = sorted(stages, key=lambda stage: stage != woken)

    def renew(self, claim: Claim) -> Lease:
        """Extends the lease of a job that is still this worker's."""
        return Lease(self._call("renew", *_owner(claim), ""))

    def progress(self, claim: Claim, progress: Progress) -> Lease:
        """Records progress and extends the lease; call it at most once a second."""
        return Lease(self._call("renew", *_owner(claim), bounded(progress)))

    def complete(self, claim: Claim, result: JobResult) -> bool:
        """Records the result, its events, and frees the job, in one step.

        The events are ``artifact.stored`` for each output, ``verdict.recorded`` for a verdict, ``job.done``.
        A full Redis takes it all the same: what ends makes room.

        Returns:
            False when another worker has the job now or it was cancelled: the result is discarded. A
            completion that is sent again after its reply was lost counts as success.
        """
        return bool(self._call("complete", *_owner(claim), *_told(claim.job, result)))

    def complete_and_claim(self, claim: Claim, result: JobResult) -> tuple[bool, Claim | None]:
        """Does what ``complete`` does and takes the stage's next job in the same round trip.

        Returns:
            What ``complete`` returns, and the next job, or None where none waits. Sent again after its reply
            was lost, it returns the same.
        """
        recorded, reply = self._call(
            "complete_and_claim",
            *_owner(claim),
            *_told(claim.job, result),
            claim.job.stage,
            *self._terms(),
        )
        following = self._claimed(reply, claim.worker) if isinstance(reply, list) else None
        return bool(recorded), following

    def fail(self, claim: Claim, error: JobFailure) -> bool:
        """Records a failure: retried after a delay, or put among the dead letters.

        Returns:
            False when the job is not this worker's any more.
        """
        short = error.model_copy(
            update={"message": error.message[:MAX_TRACEBACK], "traceback": error.traceback[-MAX_TRACEBACK:]}
        )
        delay_ms = int(self._retry_delays_s.get(error.kind, 0.0) * 1000)
        return bool(
            self._call(
                "fail", *_owner(claim), short.model_dump_json(), error.kind, delay_ms, self.max_deliveries
            )
        )

    def release(self, claim: Claim) -> None:
        """Hands a job back at once, for a worker that is told to stop; it counts as no failure."""
        self._call("release", *_owner(claim))

    def cancel(self, job_id: str) -> bool:
        """Cancels a job; a running one stops at its worker's next renewal and is never recorded as done.

        Returns:
            False when it had already ended.
        """
        return bool(self._call("cancel", job_id))

    def retry(self, job_id: str) -> bool:
        """Queues a failed, dead or cancelled job anew with no strikes; False when it is none of these."""
        return bool(self._call("retry", job_id))

    def get(self, job_id: str) -> JobRecord:
        """Returns all that is known about a job.

        Raises:
            ConfigError: There is no such job.
        """
        fields = self._fields(job_id)
        if not fields:
            raise ConfigError(f"no job {job_id!r}; `sim2or jobs ls` lists them")
        return parse_record(job_id, fields)

    def list(self, state: JobState | None = None, stage: str | None = None) -> Records:
        """Returns jobs, oldest submission first."""
        return [
            record
            for record in self._records(ALL)
            if (state is None or record.state == state) and (stage is None or record.job.stage == stage)
        ]

    def dead(self) -> Records:
        """Returns jobs that failed for good, oldest first, with reason, worker and traceback."""
        return self._records(DEAD)

    def outstanding(self, stage: str) -> int:
        """Counts a stage's jobs that are queued, delayed or running."""
        with redis_errors():
            return self._redis.scard(f"jobs:{stage}:outstanding")

    def figures(self, stage: str) -> QueueFigures:
        """Returns how a stage's queue stands."""
        delayed, running, outstanding, dead_letters, age_ms, pairs = self._call("figures", stage)
        counts = dict(zip(pairs[::2], map(int, pairs[1::2]), strict=True))
        return QueueFigures(
            queued=outstanding - delayed - running,
            delayed=delayed,
            running=running,
            outstanding=outstanding,
            dead_letters=dead_letters,
            oldest_age_s=age_ms / 1000,
            **{figure: counts.get(f"job.{kind}", 0) for kind, figure in COUNTED.items()},
        )

    def epoch(self) -> str:
        """Returns the random name of this bus; a Redis that came back empty, or another one, has another."""
        return str(self._call("epoch", secrets.token_hex(8)))

    def restore(self, record: JobRecord) -> bool:
        """Makes a job done that was done on a bus which is lost, with its events; the job is not run again.

        Args:
            record: What a journal kept of it; its state is ``done``.

        Returns:
            False when this bus knows the job: nothing is changed.

        Raises:
            ConfigError: The record is of a job that is not done.
        """
        if record.state != "done" or record.result is None:
            raise ConfigError(f"{record.job_id} is {record.state}; only a done job is restored")
        job, times = record.job, (record.submitted_ms, record.started_ms, record.finished_ms)
        result, detail, facts = _told(job, record.result, restored=True)
        return bool(
            self._call(
                "restore",
                *(record.job_id, bounded(job), job.stage, record.priority, job.run_id, job.traceparent),
                *(record.owner, record.attempts),
                *("" if time_ms is None else time_ms for time_ms in times),
                *(result, detail, facts, json.dumps(_asked(job))),
            )
        )

    def prune(self, older_s: float) -> Pruned:
        """Forgets jobs that ended, and events that happened, longer ago than ``older_s`` [s].

        Without it nothing is ever forgotten. The answer of a forgotten job is asked anew.
        """
        older_ms = int(older_s * 1000)
        forgotten = kept = 0
        while True:
            gone, stayed = self._call("prune", older_ms, kept, _PAGE)
            forgotten, kept = forgotten + gone, kept + stayed
            if gone + stayed < _PAGE:
                return Pruned(jobs=forgotten, events=self._call("prune_events", older_ms))

    def _question(self, stage: str, worker: str) -> tuple[str | int, ...]:
        return "claim", stage, worker, *self._terms()

    def _look(self, stage: str, worker: str, reply: Any = None) -> Claim | int:
        """A stage's next job, or how long none is to be expected there [ms]; -1: for ever.

        Args:
            stage: Whose job.
            worker: Who asks.
            reply: What the bus said, where it was asked already.
        """
        while True:
            reply = self._call(*self._question(stage, worker)) if reply is None else reply
            if not isinstance(reply, list):
                return int(reply)
            claim = self._claimed(reply, worker)
            if claim:
                return claim
            reply = None

    def _terms(self) -> tuple[int, int]:
        return int(self.lease_s * 1000), self.max_deliveries

    def _fields(self, job_id: str) -> dict[str, str]:
        with redis_errors():
            return cast("dict[str, str]", self._redis.hgetall(f"job:{job_id}"))

    def _records(self, index: str) -> Records:
        with redis_errors():
            ids = cast("Sequence[str]", self._redis.zrange(index, 0, -1))
            pipeline = self._redis.pipeline(transaction=False)
            for job_id in ids:
                pipeline.hgetall(f"job:{job_id}")
            return [
                parse_record(job_id, fields)
                for job_id, fields in zip(ids, pipeline.execute(), strict=True)
                if fields
            ]

    def _claimed(self, reply: Reply, worker: str) -> Claim | None:
        """Parses a claimed job; one that this version cannot read is a dead letter at once."""
        job_id, text, attempt = reply[0], reply[1] or "", reply[2]
        try:
            check_payload(Job.type_name, text)
            job = Job.model_validate_json(text, extra="ignore")
        except (ValidationError, MessageError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else str(error)
            failure = JobFailure(kind="permanent", message=f"job {job_id} cannot be read: {reason}")
            self._call("fail", job_id, worker, attempt, failure.model_dump_json(), "permanent", 0, 1)
            return None
        return Claim(job_id=job_id, job=job, worker=worker, attempt=attempt, lease_s=self.lease_s)

    def _wait(self, stages: Sequence[str], patience_s: float) -> str:
        """Waits for a submission to one of several stages; returns which, or "" when there was none."""
        lists = {f"jobs:{stage}:wake": stage for stage in stages}
        with redis_errors():
            woken = cast("tuple[str, str] | None", self._redis.blpop(list(lists), timeout=patience_s))
        return lists[woken[0]] if woken else ""

    def _wait_and_call(self, stage: str, patience_s: float, *question: str | int) -> Any:
        """Waits for a submission, a due retry, or time to look for lost leases; then does the operation.

        Both travel together: Redis does the second as soon as the first no longer blocks.
        """
        with redis_errors():
            both = self._redis.pipeline(transaction=False)
            both.blpop([f"jobs:{stage}:wake"], timeout=patience_s)
            both.evalsha(self._script.sha, 0, *question)
            woken, reply = both.execute(raise_on_error=False)
            for answer in (woken, reply):
                if isinstance(answer, Exception) and not isinstance(answer, NoScriptError):
                    raise answer
        return self._call(*question) if isinstance(reply, NoScriptError) else reply

    def _patience_s(self, remaining_s: float, due_ms: int) -> float:
        """How long a claim waits before it looks again [s]."""
        limits = [remaining_s, self.lease_s / 4, _MAX_WAIT_S]
        if due_ms >= 0:
            limits.append(due_ms / 1000)
        return max(min(limits), _MIN_WAIT_S)

    def _call(self, *question: str | int) -> Any:
        with redis_errors():
            try:
                return self._redis.evalsha(self._script.sha, 0, *question)
            except NoScriptError:
                return self._script(args=question)


def short(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a summary that fit into an event: the first few numbers, truths and short texts."""
    plain = {
        name: value
        for name, value in summary.items()
        if value is None or isinstance(value, bool | int) or _is_finite(value) or _is_short(value)
    }
    return dict(list(plain.items())[:MAX_FIGURES])


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_short(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_FIGURE_CHARACTERS


def _facts(job: Job, result: JobResult) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a completed job adds to the record of events: kind and detail of each."""
    for role, digest in sorted(result.outputs.items()):
        kind = result.kinds.get(role, "")
        yield "artifact.stored", {"role": role, "kind": kind, "digest": digest, "parents": job.inputs}
        if kind == "verdict":
            yield "verdict.recorded", {"digest": digest, "summary": short(result.summary)}


def _asked(job: Job) -> dict[str, Any]:
    """What the events say of a question, so that a run's chain can be told from them alone."""
    return {"name": job.name, "key": job.key, "shard": job.shard, "shards": job.shards, "inputs": job.inputs}


def _told(job: Job, result: JobResult, **more: bool) -> tuple[str, str, str]:
    """A result, what ``job.done`` says of it, and the facts that come with it, as JSON."""
    facts = [(kind, json.dumps(fact)) for kind, fact in _facts(job, result)]
    detail = {"summary": short(result.summary), **more}
    return bounded(result), json.dumps(detail), json.dumps(facts)


def _owner(claim: Claim) -> tuple[str, str, int]:
    return claim.job_id, claim.worker, claim.attempt


def parse_record(job_id: str, fields: dict[str, str]) -> JobRecord:
    """Reads what is kept of a job, as text by name.

    Raises:
        MessageError: This version cannot read it.
    """

    def parsed[M: (Job, Progress, JobResult, JobFailure)](kind: type[M], name: str) -> M | None:
        return kind.model_validate_json(fields[name], extra="ignore") if fields.get(name) else None

    def number(name: str) -> int | None:
        return int(fields[name]) if fields.get(name) else None

    try:
        return JobRecord(
            job_id=job_id,
            job=_job_of(job_id, fields),
            state=cast(JobState, fields["state"]),
            priority=cast(Priority, fields.get("priority", "normal")),
            attempts=number("attempts") or 0,
            strikes=number("strikes") or 0,
            owner=fields.get("owner", ""),
            cancelling=fields.get("cancel") == "1" and fields["state"] == "running",
            progress=parsed(Progress, "progress"),
            result=parsed(JobResult, "result"),
            error=parsed(JobFailure, "error"),
            submitted_ms=number("submitted_ms"),
            started_ms=number("started_ms"),
            finished_ms=number("finished_ms"),
            due_ms=number("due_ms"),
            progress_ms=number("progress_ms"),
        )
    except ValidationError as error:
        raise MessageError(f"record of job {job_id}: {explain(error)}") from error


def _job_of(job_id: str, fields: Mapping[str, str]) -> Job:
    """A record's question; a stand-in where this version cannot read it, so that dead letters are listed."""
    try:
        return Job.model_validate_json(fields.get("job", ""), extra="ignore")
    except ValidationError:
        run_id = fields.get("run_id", "")
        return Job(stage=fields.get("stage", "unknown"), key=job_id, run_id=run_id, name="cannot be read")


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turns what Redis may recover from into ``TransientError``."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise TransientError(f"Redis does not answer: {error}") from error
    except ResponseError as error:
        if any(code in str(error) for code in _NO_RIGHTS):
            raise ConfigError(
                f"this Redis user may not do that: {error}; users.acl gives each service the rights to its "
                "own stages: log in as the right one, SIM2OR_REDIS_URL=redis://USER@HOST"
            ) from error
        if not any(code in str(error) for code in _NO_WRITES):
            raise
        raise TransientError(
            f"Redis accepts no writes: {error}; free memory or disk, or raise maxmemory"
        ) from error
