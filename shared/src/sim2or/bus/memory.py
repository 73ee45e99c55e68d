"""The bus inside one process: the same queue and the same events, without Redis.

It is a product, not a mock: a question is written as JSON, kept as text and parsed again by the code that
does so for Redis, so what breaks there breaks here. Only the storage differs: ``MemoryBus`` keeps what Redis
keeps and takes the steps of ``jobs.lua``. One contract suite (``tests/contract``) runs on both.

What it holds ends with the process; ``sim2or run --in-process`` works on it.
"""

from __future__ import annotations

import json
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sim2or.bus.events import START, Entries, Events, event_fields
from sim2or.bus.jobs import DEAD, RETRY_DELAYS_S, Jobs, Records, parse_record
from sim2or.messages.event import Event
from sim2or.messages.job import FINAL_STATES, JobFailure

PRIORITIES = ("high", "normal", "low")
MAX_DELAY_MS = 60_000
MAX_TOKENS = 64
RELEASED = "released"
"""Who holds a job that was handed back."""

_LONG_AGO_MS = -(10**15)

Fields = dict[str, str]
Stream = tuple[str, str]
Order = tuple[int, int]


@dataclass
class _Entry:
    """A job's place in a queue.

    Attributes:
        job_id: Whose place.
        since_ms: When it was queued [ms].
        worker: Who holds it; empty until somebody took it.
        heard_ms: When that worker was heard of last [ms].
    """

    job_id: str
    since_ms: int
    worker: str = ""
    heard_ms: int = 0


class MemoryBus:
    """What Redis keeps for ``Jobs`` and ``Events``; any number of threads may use it.

    Args:
        clock: Monotonic time [s], the only clock for leases and delays.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_1970_s = time.time() - clock()
        self._changed = threading.Condition()
        self._epoch = ""
        self._jobs: dict[str, Fields] = {}
        self._submitted_ms: dict[str, int] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._streams: dict[Stream, dict[int, _Entry]] = {}
        self._delayed: dict[str, dict[str, int]] = {}
        self._tokens: dict[str, int] = {}
        self._events: list[tuple[Order, Fields]] = []
        self._places = 0
        self._steps: Mapping[str, Callable[..., Any]] = {
            "submit": self._submit,
            "claim": self._claim,
            "renew": self._renew,
            "complete": self._complete,
            "complete_and_claim": self._complete_and_claim,
            "fail": self._fail,
            "release": self._release,
            "cancel": self._cancel,
            "retry": self._retry,
            "figures": self._figures,
            "epoch": self._name,
            "restore": self._restore,
            "prune": self._prune,
            "prune_events": self._prune_events,
        }

    def step(self, operation: str | int, *arguments: str | int) -> Any:
        """Takes one step of the queue, whole and alone, as ``jobs.lua`` does."""
        with self._changed:
            return self._steps[str(operation)](*arguments)

    def wait(self, stages: Sequence[str], timeout_s: float) -> str:
        """Waits for a job of one of some stages to come, at most ``timeout_s`` [s]; returns whose, or ""."""

        def woken() -> str:
            return next((stage for stage in stages if self._tokens.get(stage, 0) > 0), "")

        with self._changed:
            stage = self._changed.wait_for(woken, timeout_s)
            if stage:
                self._tokens[stage] -= 1
            return stage

    def fields(self, job_id: str) -> Fields:
        """Returns all that is kept of a job, as text; empty when there is no such job."""
        with self._changed:
            return dict(self._jobs.get(job_id, {}))

    def job_ids(self) -> list[str]:
        """Returns every job, oldest submission first."""
        with self._changed:
            return [one for _, one in sorted((ms, one) for one, ms in self._submitted_ms.items())]

    def dead_ids(self) -> list[str]:
        """Returns the jobs that failed for good, oldest first."""
        with self._changed:
            ended = [(int(job["finished_ms"]), one) for one, job in self._jobs.items() if _is_dead(job)]
        return [one for _, one in sorted(ended)]

    def outstanding(self, stage: str) -> int:
        """Counts a stage's jobs that are queued, delayed or running."""
        with self._changed:
            return sum(job["stage"] == stage and not _is_final(job) for job in self._jobs.values())

    def write(self, job_id: str, **fields: str) -> None:
        """Overwrites what is kept of a job, as somebody else's hands could in Redis."""
        with self._changed:
            self._jobs[job_id].update(fields)

    def clear(self) -> None:
        """Loses everything, as a Redis without its volume does."""
        with self._changed:
            self._epoch = ""
            for kept in (self._jobs, self._submitted_ms, self._counts, self._streams, self._delayed):
                kept.clear()
            self._tokens.clear()
            self._events.clear()

    def append(self, fields: Mapping[str, str]) -> str:
        """Writes an event and returns its id."""
        with self._changed:
            now_ms = self._now_ms()
            latest_ms, number = self._events[-1][0] if self._events else (0, 0)
            order = (now_ms, 0) if now_ms > latest_ms else (latest_ms, number + 1)
            self._events.append((order, dict(fields)))
            self._changed.notify_all()
            return _identity(order)

    def events(self, after: str, count: int, timeout_s: float = 0.0) -> Entries:
        """Returns at most ``count`` events that follow an id, waiting at most ``timeout_s`` [s] for one."""
        known = _order(after)
        with self._changed:
            self._changed.wait_for(lambda: self._events and self._events[-1][0] > known, timeout_s)
            first = bisect_right(self._events, known, key=itemgetter(0))
            return [(_identity(order), dict(fields)) for order, fields in self._events[first : first + count]]

    def newest_event(self) -> str:
        """Returns the id of the newest event."""
        with self._changed:
            return _identity(self._events[-1][0]) if self._events else START

    def _now_ms(self) -> int:
        return int((self._since_1970_s + self._clock()) * 1000)

    def _tell(self, kind: str, job_id: str, detail: str = "{}") -> None:
        job = self._jobs.get(job_id, {})
        if job:
            self._counts.setdefault(job["stage"], Counter())[kind] += 1
        about = {name: job.get(name, "") for name in ("run_id", "stage", "traceparent")}
        who = {"worker": job.get("owner", ""), "attempt": job.get("attempts", "0")}
        self.append({"kind": kind, "job_id": job_id, "detail": detail, **about, **who})

    def _enqueue(self, job_id: str) -> None:
        job = self._jobs[job_id]
        self._places += 1
        self._streams.setdefault((job["stage"], job["priority"]), {})[self._places] = _Entry(
            job_id, self._now_ms()
        )
        job.update(state="queued", entry=str(self._places), owner="")
        job.pop("due_ms", None)
        self._wake(job["stage"])

    def _wake(self, stage: str) -> None:
        self._tokens[stage] = min(MAX_TOKENS, self._tokens.get(stage, 0) + 1)
        self._changed.notify_all()

    def _fresh(self, job_id: str) -> None:
        _forget(
            self._jobs[job_id], "cancel", "again", "error", "result", "progress", "finished_ms", "strikes"
        )
        self._enqueue(job_id)

    def _drop(self, job_id: str) -> None:
        """Takes a job out of its queue."""
        job = self._jobs[job_id]
        if job["entry"]:
            del self._streams[job["stage"], job["priority"]][int(job["entry"])]
        job["entry"] = ""

    def _settle(self, job_id: str, state: str, detail: str = "{}") -> None:
        """Moves a job to a final state."""
        job = self._jobs[job_id]
        self._drop(job_id)
        self._delayed.get(job["stage"], {}).pop(job_id, None)
        job.update(state=state, finished_ms=str(self._now_ms()))
        job.pop("due_ms", None)
        self._tell(f"job.{state}", job_id, detail)
        if state == "cancelled" and job.get("again") == "1":
            self._fresh(job_id)

    def _owned(self, job_id: str, worker: str, attempt: int) -> bool:
        job = self._jobs.get(job_id, {})
        return (job.get("state"), job.get("owner"), job.get("attempts")) == ("running", worker, str(attempt))

    def _cancelled(self, job_id: str) -> bool:
        return self._jobs[job_id].get("cancel") == "1"

    def _strike(self, job_id: str) -> int:
        job = self._jobs[job_id]
        job["strikes"] = str(int(job.get("strikes", "0")) + 1)
        return int(job["strikes"])

    def _entry(self, job_id: str) -> _Entry:
        job = self._jobs[job_id]
        return self._streams[job["stage"], job["priority"]][int(job["entry"])]

    def _submit(
        self,
        job_id: str,
        text: str,
        stage: str,
        priority: str,
        run_id: str,
        trace: str,
        asked: str,
        again: str,
    ) -> list[Any]:
        job = self._jobs.get(job_id, {})
        state = job.get("state", "")
        if state == "running" and self._cancelled(job_id):
            job["again"] = "1"
        if state in ("queued", "running", "done"):
            if run_id != job["run_id"]:
                self._tell("job.reused", job_id, again)
            return [state, 1]
        job |= {"job": text, "stage": stage, "priority": priority, "run_id": run_id, "traceparent": trace}
        self._submitted_ms[job_id] = self._now_ms()
        job["submitted_ms"] = str(self._submitted_ms[job_id])
        self._jobs[job_id] = job
        self._fresh(job_id)
        self._tell("job.submitted", job_id, asked)
        return ["queued", 0]

    def _claim(self, stage: str, worker: str, lease_ms: int, max_deliveries: int) -> list[Any] | int:
        """Gives a job, or says in how many ms a delayed one is due (-1: none)."""
        self._promote(stage)
        streams = [self._streams.get((stage, priority), {}) for priority in PRIORITIES]
        for takes in (self._already, self._expired, self._unread):
            for stream in streams:
                for place in [place for place, entry in stream.items() if takes(entry, worker, lease_ms)]:
                    job = self._start(stream[place], worker, max_deliveries)
                    if job:
                        return job
        due_ms = min(self._delayed.get(stage, {}).values(), default=None)
        return -1 if due_ms is None else max(0, due_ms - self._now_ms())

    def _promote(self, stage: str) -> None:
        delayed = self._delayed.setdefault(stage, {})
        for due_ms, job_id in sorted((due_ms, job_id) for job_id, due_ms in delayed.items()):
            if due_ms <= self._now_ms():
                del delayed[job_id]
                self._enqueue(job_id)

    def _already(self, entry: _Entry, worker: str, _: int) -> bool:
        """Whether a worker whose claim lost its reply has this job already."""
        job = self._jobs[entry.job_id]
        return entry.worker == worker and (job["owner"], job["state"]) == (worker, "running")

    def _expired(self, entry: _Entry, _: str, lease_ms: int) -> bool:
        return bool(entry.worker) and self._now_ms() - entry.heard_ms >= lease_ms

    def _unread(self, entry: _Entry, *_: object) -> bool:
        return not entry.worker

    def _start(self, entry: _Entry, worker: str, max_deliveries: int) -> list[Any] | None:
        """Starts a job that now belongs to the worker, or settles what its last worker left."""
        job_id, job = entry.job_id, self._jobs[entry.job_id]
        again = self._already(entry, worker, 0)
        if job["state"] == "running" and not again and not self._survives(job_id, max_deliveries):
            return None
        entry.worker, entry.heard_ms = worker, self._now_ms()
        if not again:
            attempts = str(int(job.get("attempts", "0")) + 1)
            job.update(attempts=attempts, state="running", owner=worker, started_ms=str(self._now_ms()))
            _forget(job, "progress", "progress_ms")
            self._tell("job.started", job_id)
        return [job_id, job["job"], int(job["attempts"])]

    def _survives(self, job_id: str, max_deliveries: int) -> bool:
        """Whether a job whose worker was lost is started again."""
        self._tell("job.lost", job_id)
        if self._cancelled(job_id):
            self._settle(job_id, "cancelled")
            return False
        strikes = self._strike(job_id)
        if strikes < max_deliveries:
            return True
        job = self._jobs[job_id]
        reason = f"its workers died or froze {strikes} times, last {job['owner']}"
        job["error"] = JobFailure(kind="crashed", message=reason).model_dump_json()
        self._settle(job_id, "dead", job["error"])
        return False

    def _renew(self, job_id: str, worker: str, attempt: int, progress: str) -> str:
        if not self._owned(job_id, worker, attempt):
            return "lost"
        if self._cancelled(job_id):
            return "cancelled"
        self._entry(job_id).heard_ms = self._now_ms()
        if progress:
            self._jobs[job_id].update(progress=progress, progress_ms=str(self._now_ms()))
        return "owned"

    def _complete(self, job_id: str, worker: str, attempt: int, result: str, detail: str, facts: str) -> int:
        job = self._jobs.get(job_id, {})
        if (job.get("state"), job.get("owner"), job.get("attempts")) == ("done", worker, str(attempt)):
            return 1
        if not self._owned(job_id, worker, attempt):
            self._tell("job.fenced", job_id, json.dumps({"worker": worker, "attempt": attempt}))
            return 0
        if self._cancelled(job_id):
            self._settle(job_id, "cancelled")
            return 0
        job["result"] = result
        job.pop("error", None)
        for kind, fact in json.loads(facts):
            self._tell(kind, job_id, fact)
        self._settle(job_id, "done", detail)
        return 1

    def _complete_and_claim(
        self,
        job_id: str,
        worker: str,
        attempt: int,
        result: str,
        detail: str,
        facts: str,
        stage: str,
        lease_ms: int,
        limit: int,
    ) -> list[Any]:
        recorded = self._complete(job_id, worker, attempt, result, detail, facts)
        return [recorded, self._claim(stage, worker, lease_ms, limit)]

    def _fail(
        self, job_id: str, worker: str, attempt: int, failure: str, kind: str, delay_ms: int, limit: int
    ) -> int:
        if not self._owned(job_id, worker, attempt):
            return 0
        if self._cancelled(job_id):
            self._settle(job_id, "cancelled")
            return 1
        job = self._jobs[job_id]
        job["error"] = failure
        if kind == "permanent":
            self._settle(job_id, "failed", failure)
            return 1
        strikes = self._strike(job_id)
        if strikes >= limit:
            self._settle(job_id, "dead", failure)
            return 1
        self._drop(job_id)
        due_ms = self._now_ms() + min(MAX_DELAY_MS, delay_ms * 2 ** (strikes - 1))
        self._tell("job.retry", job_id, failure)
        job.update(state="queued", owner="", due_ms=str(due_ms))
        self._delayed.setdefault(job["stage"], {})[job_id] = due_ms
        return 1

    def _release(self, job_id: str, worker: str, attempt: int) -> int:
        """Hands a job back: it stays first in its queue and counts as no failure."""
        if not self._owned(job_id, worker, attempt):
            return 0
        if self._cancelled(job_id):
            self._settle(job_id, "cancelled")
            return 1
        self._tell("job.released", job_id)
        entry, job = self._entry(job_id), self._jobs[job_id]
        entry.worker, entry.heard_ms = RELEASED, _LONG_AGO_MS
        job.update(state="queued", owner="")
        self._wake(job["stage"])
        return 1

    def _cancel(self, job_id: str) -> int:
        job = self._jobs.get(job_id, {})
        if job.get("state") == "queued":
            self._settle(job_id, "cancelled")
        elif job.get("state") == "running":
            job["cancel"] = "1"
            job.pop("again", None)
            self._tell("job.cancelling", job_id)
        else:
            return 0
        return 1

    def _retry(self, job_id: str) -> int:
        if self._jobs.get(job_id, {}).get("state") not in ("failed", "dead", "cancelled"):
            return 0
        self._fresh(job_id)
        self._tell("job.retried", job_id)
        return 1

    def _figures(self, stage: str) -> list[Any]:
        now_ms, delayed = self._now_ms(), self._delayed.get(stage, {})
        entries = [entry for p in PRIORITIES for entry in self._streams.get((stage, p), {}).values()]
        waiting = [entry for entry in entries if entry.worker in ("", RELEASED)]
        oldest_ms = min([now_ms, *delayed.values(), *(entry.since_ms for entry in waiting)])
        dead = sum(job["stage"] == stage and _is_dead(job) for job in self._jobs.values())
        counts = [part for count in self._counts.get(stage, {}).items() for part in count]
        running = len(entries) - len(waiting)
        return [len(delayed), running, self.outstanding(stage), dead, now_ms - oldest_ms, counts]

    def _name(self, candidate: str) -> str:
        self._epoch = self._epoch or candidate
        return self._epoch

    def _restore(
        self,
        job_id: str,
        text: str,
        stage: str,
        priority: str,
        run_id: str,
        trace: str,
        worker: str,
        attempts: int,
        submitted_ms: int | str,
        started_ms: int | str,
        finished_ms: int | str,
        result: str,
        detail: str,
        facts: str,
        asked: str,
    ) -> int:
        """Makes a job done that was done on a bus which is lost."""
        if job_id in self._jobs:
            return 0
        job = {"state": "done", "job": text, "stage": stage, "priority": priority, "run_id": run_id}
        job |= {"traceparent": trace, "owner": worker, "attempts": str(attempts), "result": result}
        job["entry"] = ""
        times = {"submitted_ms": submitted_ms, "started_ms": started_ms, "finished_ms": finished_ms}
        job |= {name: str(time_ms) for name, time_ms in times.items()}
        self._jobs[job_id] = job
        self._submitted_ms[job_id] = int(submitted_ms or self._now_ms())
        self._tell("job.submitted", job_id, asked)
        for kind, fact in json.loads(facts):
            self._tell(kind, job_id, fact)
        self._tell("job.done", job_id, detail)
        return 1

    def _prune(self, older_ms: int, offset: int, count: int) -> list[int]:
        before_ms, page = self._now_ms() - older_ms, self.job_ids()[offset : offset + count]
        old = [one for one in page if _is_final(self._jobs[one]) and _ended_ms(self._jobs[one]) < before_ms]
        for job_id in old:
            del self._jobs[job_id], self._submitted_ms[job_id]
        return [len(old), len(page) - len(old)]

    def _prune_events(self, older_ms: int) -> int:
        oldest = bisect_left(self._events, (self._now_ms() - older_ms, 0), key=itemgetter(0))
        del self._events[:oldest]
        return oldest


class MemoryJobs(Jobs):
    """``Jobs`` on a ``MemoryBus``: all that is checked, written and parsed is the same code.

    Args:
        bus: Shared with everybody who works on the same jobs.
        lease_s: How long a silent worker keeps its job [s].
        max_deliveries: Starts that may fail before a job is dead.
        run_id: The run whose submissions these are, for jobs that name none.
        retry_delays_s: Delay before the first retry [s], by kind of failure.
    """

    def __init__(
        self,
        bus: MemoryBus,
        *,
        lease_s: float = 10.0,
        max_deliveries: int = 5,
        run_id: str = "",
        retry_delays_s: Mapping[str, float] = RETRY_DELAYS_S,
    ) -> None:
        self.lease_s = lease_s
        self.max_deliveries = max_deliveries
        self.run_id = run_id
        self._retry_delays_s = retry_delays_s
        self._bus = bus

    def outstanding(self, stage: str) -> int:
        """Counts a stage's jobs that are queued, delayed or running."""
        return self._bus.outstanding(stage)

    def _fields(self, job_id: str) -> Fields:
        return self._bus.fields(job_id)

    def _records(self, index: str) -> Records:
        ids = self._bus.dead_ids() if index == DEAD else self._bus.job_ids()
        return [parse_record(one, fields) for one in ids if (fields := self._bus.fields(one))]

    def _wait(self, stages: Sequence[str], patience_s: float) -> str:
        return self._bus.wait(stages, patience_s)

    def _wait_and_call(self, stage: str, patience_s: float, *question: str | int) -> Any:
        self._bus.wait((stage,), patience_s)
        return self._call(*question)

    def _call(self, *question: str | int) -> Any:
        return self._bus.step(*question)


class MemoryEvents(Events):
    """``Events`` on a ``MemoryBus``.

    Args:
        bus: Shared with the jobs whose events these are.
    """

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self.malformed = 0

    def append(self, event: Event) -> str:
        """Writes an event and returns its id."""
        return self._bus.append(event_fields(event))

    def last(self) -> str:
        """Returns the id of the newest event, to follow from here on."""
        return self._bus.newest_event()

    def _page(self, after: str, count: int) -> Entries:
        return self._bus.events(after, count)

    def _next(self, after: str, timeout_s: float) -> Entries:
        return self._bus.events(after, 1000, timeout_s)


def _is_final(job: Fields) -> bool:
    return job["state"] in FINAL_STATES


def _is_dead(job: Fields) -> bool:
    return job["state"] in ("failed", "dead")


def _ended_ms(job: Fields) -> int:
    return int(job.get("finished_ms") or 0)


def _forget(job: Fields, *names: str) -> None:
    for name in names:
        job.pop(name, None)


def _identity(order: Order) -> str:
    return f"{order[0]}-{order[1]}"


def _order(identity: str) -> Order:
    milliseconds, _, number = identity.partition("-")
    return int(milliseconds), int(number)
