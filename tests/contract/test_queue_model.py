"""The queue against a model of a few dozen lines: hypothesis makes up what submitters, workers and time do.

Time passes in steps of a thousand seconds, far from every limit, so that how fast the machine is decides
nothing: a lease ends in the third step, a delayed retry is due in the next one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

sys.path.insert(0, str(Path(__file__).parent))
from desks import Desk
from sim2or.bus.jobs import Claim, Lease
from sim2or.messages.job import Job, JobFailure, JobResult

STAGE = "train"
STEP_S, LEASE_S, MAX_DELIVERIES = 1000.0, 2500.0, 3
MOMENT_S = 0.002
DELAYS_S = {"transient": 60.0, "crashed": 30.0}
PRIORITIES = ("high", "normal", "low")

jobs_of = {job.job_id: job for job in (Job(stage=STAGE, key=key) for key in "abc")}
names = st.sampled_from(sorted(jobs_of))
workers = st.sampled_from(["w1", "w2", "w3"])
kinds = st.sampled_from(["permanent", "transient", "crashed"])


@dataclass
class Known:
    """What the model knows of a job.

    Attributes:
        place: Its turn in the queue; None while it is delayed or has ended.
        silent_s: How long its worker was not heard of [s]; infinite when it was handed back.
        due_s: When its retry is due, by the model's clock [s].
    """

    state: str = "unknown"
    priority: str = "normal"
    place: int | None = None
    worker: str = ""
    attempts: int = 0
    strikes: int = 0
    silent_s: float | None = None
    due_s: float | None = None
    cancelling: bool = False
    wanted_again: bool = False
    result: str | None = None
    told: list[str] = field(default_factory=list)


class Model:
    """The rules of the queue, for one stage, with nothing but numbers and names."""

    def __init__(self) -> None:
        self.jobs = {name: Known() for name in jobs_of}
        self.now_s = 0.0
        self.places = 0

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        for job in self.jobs.values():
            job.silent_s = None if job.silent_s is None else job.silent_s + seconds

    def queue(self, name: str) -> None:
        job, self.places = self.jobs[name], self.places + 1
        job.state, job.place, job.worker, job.silent_s, job.due_s = "queued", self.places, "", None, None

    def fresh(self, name: str) -> None:
        job = self.jobs[name]
        job.strikes, job.result, job.cancelling, job.wanted_again = 0, None, False, False
        self.queue(name)

    def end(self, name: str, state: str) -> None:
        job = self.jobs[name]
        job.state, job.place, job.silent_s, job.due_s = state, None, None, None
        job.told.append(state)
        if state == "cancelled" and job.wanted_again:
            self.fresh(name)

    def submit(self, name: str, priority: str) -> tuple[str, bool]:
        job = self.jobs[name]
        if job.state == "running" and job.cancelling:
            job.wanted_again = True
        if job.state in ("queued", "running", "done"):
            return job.state, True
        job.priority = priority
        self.fresh(name)
        job.told.append("submitted")
        return "queued", False

    def claim(self, worker: str) -> tuple[str, int] | None:
        delayed = [(job.due_s, name) for name, job in self.jobs.items() if job.due_s is not None]
        for due_s, name in sorted(delayed):
            if due_s <= self.now_s:
                self.queue(name)
        for name in self.in_order(lambda job: job.state == "running" and job.worker == worker):
            self.jobs[name].silent_s = 0
            return name, self.jobs[name].attempts
        for name in self.in_order(lambda job: job.silent_s is not None and job.silent_s >= LEASE_S):
            if self.survives(name):
                return self.start(name, worker)
        for name in self.in_order(lambda job: job.silent_s is None):
            return self.start(name, worker)
        return None

    def in_order(self, fits: Callable[[Known], bool]) -> list[str]:
        placed = [(name, job) for name, job in self.jobs.items() if job.place and fits(job)]
        return sorted(
            (name for name, _ in placed),
            key=lambda name: (PRIORITIES.index(self.jobs[name].priority), self.jobs[name].place),
        )

    def survives(self, name: str) -> bool:
        job = self.jobs[name]
        if job.state == "queued":
            return True
        job.told.append("lost")
        if job.cancelling:
            self.end(name, "cancelled")
            return False
        job.strikes += 1
        if job.strikes >= MAX_DELIVERIES:
            self.end(name, "dead")
            return False
        return True

    def start(self, name: str, worker: str) -> tuple[str, int]:
        job = self.jobs[name]
        job.state, job.worker, job.silent_s, job.attempts = "running", worker, 0, job.attempts + 1
        job.told.append("started")
        return name, job.attempts

    def owned(self, claim: Claim) -> bool:
        job = self.jobs[claim.job_id]
        return (job.state, job.worker, job.attempts) == ("running", claim.worker, claim.attempt)

    def renew(self, claim: Claim) -> Lease:
        job = self.jobs[claim.job_id]
        if not self.owned(claim):
            return Lease.LOST
        if job.cancelling:
            return Lease.CANCELLED
        job.silent_s = 0
        return Lease.OWNED

    def complete(self, claim: Claim, result: str) -> bool:
        job = self.jobs[claim.job_id]
        if (job.state, job.worker, job.attempts) == ("done", claim.worker, claim.attempt):
            return True
        if not self.owned(claim):
            job.told.append("fenced")
            return False
        if job.cancelling:
            self.end(claim.job_id, "cancelled")
            return False
        job.result = result
        self.end(claim.job_id, "done")
        return True

    def fail(self, claim: Claim, kind: str) -> None:
        name, job = claim.job_id, self.jobs[claim.job_id]
        if not self.owned(claim):
            return
        if job.cancelling:
            self.end(name, "cancelled")
        elif kind == "permanent":
            self.end(name, "failed")
        else:
            job.strikes += 1
            if job.strikes >= MAX_DELIVERIES:
                self.end(name, "dead")
                return
            job.state, job.worker, job.place, job.silent_s = "queued", "", None, None
            job.due_s = self.now_s + min(60.0, DELAYS_S[kind] * 2 ** (job.strikes - 1))
            job.told.append("retry")

    def release(self, claim: Claim) -> None:
        job = self.jobs[claim.job_id]
        if not self.owned(claim):
            return
        if job.cancelling:
            self.end(claim.job_id, "cancelled")
            return
        job.state, job.worker, job.silent_s = "queued", "", math.inf
        job.told.append("released")

    def cancel(self, name: str) -> bool:
        job = self.jobs[name]
        if job.state == "queued":
            self.end(name, "cancelled")
        elif job.state == "running":
            job.cancelling, job.wanted_again = True, False
            job.told.append("cancelling")
        else:
            return False
        return True

    def retry(self, name: str) -> bool:
        if self.jobs[name].state not in ("failed", "dead", "cancelled"):
            return False
        self.fresh(name)
        self.jobs[name].told.append("retried")
        return True


class Comparison(RuleBasedStateMachine):
    """Does the same to a queue and to the model, and compares every answer and all that is known after it."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        desk.clear()
        self.desk, self.model = desk, Model()
        self.queue = desk.jobs(lease_s=LEASE_S, max_deliveries=MAX_DELIVERIES, retry_delays_s=DELAYS_S)
        self.claims: list[Claim] = []
        self.results = 0

    def a_moment_later(self) -> None:
        """Puts a moment between any two actions, so that no two have the same time."""
        self.pass_time(MOMENT_S)

    def pass_time(self, seconds: float) -> None:
        self.desk.pass_time(seconds)
        self.model.pass_time(seconds)

    @initialize(priorities=st.tuples(*[st.sampled_from(PRIORITIES)] * 2))
    def begin(self, priorities: tuple[str, str]) -> None:
        for name, priority in zip(sorted(jobs_of), priorities, strict=False):
            self.submit(name, priority)

    @rule(name=names, priority=st.sampled_from(PRIORITIES))
    def submit(self, name: str, priority: str) -> None:
        self.a_moment_later()
        submitted = self.queue.submit(jobs_of[name], priority=priority)  # type: ignore[arg-type]
        assert (submitted.state, submitted.existing) == self.model.submit(name, priority)

    @rule(worker=workers)
    def claim(self, worker: str) -> None:
        self.a_moment_later()
        claim = self.queue.claim(STAGE, worker, block_s=0)
        assert (claim and (claim.job_id, claim.attempt)) == self.model.claim(worker)
        if claim and claim not in self.claims:
            self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        assert self.queue.renew(claim) is self.model.renew(claim)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        self.results += 1
        result = f"sha256:{self.results}"
        recorded = self.queue.complete(claim, JobResult(outputs={"model": result}))
        assert recorded == self.model.complete(claim, result)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def complete_and_claim(self, data: st.DataObject) -> None:
        self.a_moment_later()
        claim = data.draw(st.sampled_from(self.claims))
        self.results += 1
        result = f"sha256:{self.results}"
        recorded, following = self.queue.complete_and_claim(claim, JobResult(outputs={"model": result}))
        assert recorded == self.model.complete(claim, result)
        assert (following and (following.job_id, following.attempt)) == self.model.claim(claim.worker)
        if following and following not in self.claims:
            self.claims.append(following)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), kind=kinds)
    def fail(self, data: st.DataObject, kind: str) -> None:
        self.a_moment_later()
        claim = data.draw(st.sampled_from(self.claims))
        self.queue.fail(claim, JobFailure(kind=kind, message="as told"))  # type: ignore[arg-type]
        self.model.fail(claim, kind)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        self.queue.release(claim)
        self.model.release(claim)

    @rule(name=names)
    def cancel(self, name: str) -> None:
        assert self.queue.cancel(name) == self.model.cancel(name)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def change_ones_mind(self, data: st.DataObject) -> None:
        """A job that may be running is cancelled and asked for again."""
        claim = data.draw(st.sampled_from(self.claims))
        self.cancel(claim.job_id)
        self.submit(claim.job_id, "normal")

    @rule(name=names)
    def retry(self, name: str) -> None:
        self.a_moment_later()
        assert self.queue.retry(name) == self.model.retry(name)

    @precondition(lambda self: self.claims)
    @rule(worker=workers)
    def lose_all(self, worker: str) -> None:
        """Nobody is heard of for a lease, and then somebody asks for a job."""
        self.wait(3)
        self.claim(worker)

    @rule(steps=st.integers(1, 3))
    def wait(self, steps: int) -> None:
        self.pass_time(steps * STEP_S)

    @invariant()
    def every_job_is_where_the_model_says(self) -> None:
        found = {
            record.job_id: (
                record.state,
                record.attempts,
                record.strikes,
                record.owner if record.state == "running" else "",
                record.cancelling,
                record.priority,
                record.result.outputs["model"] if record.result else None,
            )
            for record in self.queue.list()
        }
        assert found == {
            name: (
                job.state,
                job.attempts,
                job.strikes,
                job.worker if job.state == "running" else "",
                job.cancelling and job.state == "running",
                job.priority,
                job.result,
            )
            for name, job in self.model.jobs.items()
            if job.state != "unknown"
        }

    @invariant()
    def nothing_is_lost(self) -> None:
        known = self.model.jobs
        open_jobs = [name for name, job in known.items() if job.state in ("queued", "running")]
        dead = {name for name, job in known.items() if job.state in ("failed", "dead")}
        figures = self.queue.figures(STAGE)
        assert self.queue.outstanding(STAGE) == figures.outstanding == len(open_jobs)
        assert figures.running == sum(job.state == "running" for job in known.values())
        assert figures.delayed == sum(job.due_s is not None for job in known.values())
        assert figures.dead_letters == len(dead)
        assert {record.job_id for record in self.queue.dead()} == dead

    def teardown(self) -> None:
        """What is told is what happened, in order; each start has an end, each result is told once."""
        told: dict[str, list[str]] = {name: [] for name in jobs_of}
        for event in self.desk.events().read(count=10_000):
            if event.kind.startswith("job."):
                told[event.job_id].append(event.kind.removeprefix("job."))
        assert told == {name: job.told for name, job in self.model.jobs.items()}
        assert all(kinds.count("done") <= 1 for kinds in told.values())


def test_the_queue_does_what_the_model_does(desk: Desk) -> None:
    """Whatever submitters, workers and time do, queue and model agree on every answer and every job."""
    run_state_machine_as_test(
        lambda: Comparison(desk),
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
