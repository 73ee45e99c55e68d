"""The queue and its events as those who work with them see them, whatever keeps them.

``Jobs`` and ``Events`` keep them in Redis; ``MemoryJobs`` and ``MemoryEvents`` in this process. Both pass one
contract suite, ``tests/contract/test_queue_contract.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from sim2or.bus.events import START
from sim2or.bus.jobs import Claim, Lease, Pruned, QueueFigures, Records, Submitted
from sim2or.messages.event import Event
from sim2or.messages.job import Job, JobFailure, JobRecord, JobResult, JobState, Priority, Progress


class JobQueue(Protocol):
    """Jobs that run at least once and are recorded exactly once; ``bus.jobs.Jobs`` says more of each call.

    Attributes:
        lease_s: How long a silent worker keeps its job [s].
        max_deliveries: Starts that may fail before a job is dead.
        run_id: The run whose submissions these are, for jobs that name none.
    """

    lease_s: float
    max_deliveries: int
    run_id: str

    def submit(self, job: Job, *, priority: Priority = "normal") -> Submitted:
        """Queues a job; the same question is queued and answered once."""

    def claim(self, stages: str | Sequence[str], worker: str, *, block_s: float = 1.0) -> Claim | None:
        """Takes one job of a stage, or of one of several, waiting at most ``block_s`` [s]."""

    def renew(self, claim: Claim) -> Lease:
        """Extends the lease of a job that is still this worker's."""

    def progress(self, claim: Claim, progress: Progress) -> Lease:
        """Records progress and extends the lease."""

    def complete(self, claim: Claim, result: JobResult) -> bool:
        """Records the result and its events, and frees the job; False when it is no more this worker's."""

    def complete_and_claim(self, claim: Claim, result: JobResult) -> tuple[bool, Claim | None]:
        """Completes a job and takes the stage's next one in the same step."""

    def fail(self, claim: Claim, error: JobFailure) -> bool:
        """Records a failure; False when the job is not this worker's any more."""

    def release(self, claim: Claim) -> None:
        """Hands a job back at once."""

    def cancel(self, job_id: str) -> bool:
        """Cancels a job; False when it had already ended."""

    def retry(self, job_id: str) -> bool:
        """Queues a failed, dead or cancelled job anew; False when it is none of these."""

    def get(self, job_id: str) -> JobRecord:
        """Returns all that is known about a job."""

    def list(self, state: JobState | None = None, stage: str | None = None) -> Records:
        """Returns jobs, oldest submission first."""

    def dead(self) -> Records:
        """Returns jobs that failed for good, oldest first."""

    def outstanding(self, stage: str) -> int:
        """Counts a stage's jobs that are queued, delayed or running."""

    def figures(self, stage: str) -> QueueFigures:
        """Returns how a stage's queue stands."""

    def epoch(self) -> str:
        """Returns the random name of this bus; one that lost everything has another."""

    def restore(self, record: JobRecord) -> bool:
        """Makes a job done that was done on a bus which is lost; False when this bus knows it."""

    def prune(self, older_s: float) -> Pruned:
        """Forgets what ended longer ago than ``older_s`` [s]."""


class EventLog(Protocol):
    """What happened: one append-only, replayable stream.

    Attributes:
        malformed: Events that this version could not read and passed over.
    """

    malformed: int

    def append(self, event: Event) -> str:
        """Writes an event and returns its id."""

    def last(self) -> str:
        """Returns the id of the newest event."""

    def read(self, after: str = START, *, count: int = 1000) -> list[Event]:
        """Returns at most ``count`` events that follow the id ``after``."""

    def follow(self, after: str = START, *, timeout_s: float) -> Iterator[Event]:
        """Yields events as they come, until none came for ``timeout_s`` [s]."""
