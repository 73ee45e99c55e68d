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
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sim2or.errors import ConfigError, MessageError, TransientError, choices
from sim2or.messages.codec import explain
from sim2or.messages.job import Job, JobFailure, JobRecord, JobResult, JobState, Priority, Progress, bounded

RETRY_DELAYS_S: Mapping[str, float] = {"transient": 1.0, "crashed": 0.2}
"""Before the first retry [s], by kind of failure; each further one waits twice as long, at most a minute."""

MAX_TRACEBACK = 8000
MAX_FIGURES = 16
MAX_FIGURE_CHARACTERS = 200
_MAX_WAIT_S = 1.0
# Redis 6.2 truncates a BLPOP timeout to whole milliseconds, and 1 ms may become 0: wait for ever.
_MIN_WAIT_S = 0.01
_NO_WRITES = ("OOM ", "command not allowed when used memory", "READONLY ", "read only replica", "MISCONF ")

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
        state, existing = self._call(
            "submit", job.job_id, bounded(job), job.stage, priority, job.run_id, job.traceparent
        )
        return Submitted(job_id=job.job_id, state=state, existing=bool(existing))

    def claim(self, stage: str, worker: str, *, block_s: float = 1.0) -> Claim | None:
        """Takes one job: first what another worker lost, then the highest priority.

        Args:
            stage: Whose jobs.
            worker: A name that only this process uses.
            block_s: How long to wait for a job [s].
        """
        deadline = time.monotonic() + block_s
        while True:
            reply = self._call("claim", stage, worker, int(self.lease_s * 1000), self.max_deliveries)
            if isinstance(reply, list):
                claim = self._claimed(reply, worker)
                if claim:
                    return claim
                continue
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return None
            self._wait(stage, remaining_s, due_ms=reply)

    def renew(self, claim: Claim) -> Lease:
        """Extends the lease of a job that is still this worker's."""
        return Lease(self._call("renew", *_owner(claim), ""))

    def progress(self, claim: Claim, progress: Progress) -> Lease:
        """Records progress and extends the lease; call it at most once a second."""
        return Lease(self._call("renew", *_owner(claim), bounded(progress)))

    def complete(self, claim: Claim, result: JobResult) -> bool:
        """Records the result, its events, and frees the job, in one step.

        The events are ``artifact.stored`` for each output, ``verdict.recorded`` for a verdict, ``job.done``.

        Returns:
            False when another worker has the job now or it was cancelled: the result is discarded. A
            completion that is sent again after its reply was lost counts as success.
        """
        detail = json.dumps({"summary": short(result.summary)})
        facts = json.dumps([(kind, json.dumps(fact)) for kind, fact in _facts(claim.job, result)])
        return bool(self._call("complete", *_owner(claim), bounded(result), detail, facts))

    def fail(self, claim: Claim, error: JobFailure) -> None:
        """Records a failure: retried after a delay, or put among the dead letters."""
        short = error.model_copy(
            update={"message": error.message[:MAX_TRACEBACK], "traceback": error.traceback[-MAX_TRACEBACK:]}
        )
        delay_ms = int(self._retry_delays_s.get(error.kind, 0.0) * 1000)
        self._call("fail", *_owner(claim), short.model_dump_json(), error.kind, delay_ms, self.max_deliveries)

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
        with redis_errors():
            fields = cast("dict[str, str]", self._redis.hgetall(f"job:{job_id}"))
        if not fields:
            raise ConfigError(f"no job {job_id!r}; `sim2or jobs ls` lists them")
        return _record(job_id, fields)

    def list(self, state: JobState | None = None, stage: str | None = None) -> Records:
        """Returns jobs, oldest submission first."""
        return [
            record
            for record in self._records("jobs:all")
            if (state is None or record.state == state) and (stage is None or record.job.stage == stage)
        ]

    def dead(self) -> Records:
        """Returns jobs that failed for good, oldest first, with reason, worker and traceback."""
        return self._records("jobs:dead")

    def outstanding(self, stage: str) -> int:
        """Counts a stage's jobs that are queued, delayed or running."""
        with redis_errors():
            return self._redis.scard(f"jobs:{stage}:outstanding")

    def _records(self, index: str) -> Records:
        with redis_errors():
            ids = cast("Sequence[str]", self._redis.zrange(index, 0, -1))
            pipeline = self._redis.pipeline(transaction=False)
            for job_id in ids:
                pipeline.hgetall(f"job:{job_id}")
            return [
                _record(job_id, fields)
                for job_id, fields in zip(ids, pipeline.execute(), strict=True)
                if fields
            ]

    def _claimed(self, reply: Reply, worker: str) -> Claim | None:
        """Parses a claimed job; one that this version cannot read is a dead letter at once."""
        job_id, text, attempt = reply
        try:
            job = Job.model_validate_json(text, extra="ignore")
        except ValidationError as error:
            failure = JobFailure(kind="permanent", message=f"job {job_id} cannot be read: {explain(error)}")
            self._call("fail", job_id, worker, attempt, failure.model_dump_json(), "permanent", 0, 1)
            return None
        return Claim(job_id=job_id, job=job, worker=worker, attempt=attempt, lease_s=self.lease_s)

    def _wait(self, stage: str, remaining_s: float, *, due_ms: int) -> None:
        """Waits for a submission, a due retry, or time to look for lost leases."""
        limits = [remaining_s, self.lease_s / 4, _MAX_WAIT_S]
        if due_ms >= 0:
            limits.append(due_ms / 1000)
        with redis_errors():
            self._redis.blpop([f"jobs:{stage}:wake"], timeout=max(min(limits), _MIN_WAIT_S))

    def _call(self, operation: str, *arguments: str | int) -> Any:
        with redis_errors():
            return self._script(args=[operation, *arguments])


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


def _owner(claim: Claim) -> tuple[str, str, int]:
    return claim.job_id, claim.worker, claim.attempt


def _record(job_id: str, fields: dict[str, str]) -> JobRecord:
    def parsed[M: (Job, Progress, JobResult, JobFailure)](kind: type[M], name: str) -> M | None:
        return kind.model_validate_json(fields[name], extra="ignore") if fields.get(name) else None

    def number(name: str) -> int | None:
        return int(fields[name]) if fields.get(name) else None

    try:
        return JobRecord(
            job_id=job_id,
            job=Job.model_validate_json(fields["job"], extra="ignore"),
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


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turns what Redis may recover from into ``TransientError``."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise TransientError(f"Redis does not answer: {error}") from error
    except ResponseError as error:
        if not any(code in str(error) for code in _NO_WRITES):
            raise
        raise TransientError(
            f"Redis accepts no writes: {error}; free memory or disk, or raise maxmemory"
        ) from error
