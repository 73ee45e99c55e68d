"""What each operation of the queue costs Redis: CPU time, commands, bytes, memory and round trips.

Each contender has a Redis of its own with the product's settings, prepares what it needs, and then does one
operation again and again from one client.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import questions
from lease_queue import bus
from meter import Meter
from paired import Figures, Section, paired, section
from sim2or.bus.events import Events
from sim2or.bus.jobs import Claim, Jobs
from sim2or.bus.server import connect
from sim2or.messages.event import Event

TIMES = 300
RUNNING = (0, 100, 1000)
AT_A_BUSY_QUEUE = 50
LONG_S = 3600.0
NOTES = (
    f"One client, {TIMES} calls each (claims of a job: {AT_A_BUSY_QUEUE}), jobs and results of the size that "
    "the runner asks and the collect stage answers. redis_us: CPU time of the server process; script_us: of "
    "that, in the queue's script; commands: executed, those in the script included; bytes: on the wire, "
    "appended to the file (appendfsync always), kept in memory. 'N running': so many other jobs of the stage "
    "are held by workers. 'a whole job' is submit, claim and complete, with its four events. round_trip_ms "
    "includes the client and the flush to the disk."
)


def measure(rounds: int, _: int) -> list[Section]:
    """Measures every operation ``rounds`` times, in turn."""
    contenders = {
        "submit": partial(repeated, submit),
        "renew": partial(repeated, renew),
        "renew with progress": partial(repeated, tell_progress),
        "complete": partial(repeated, complete),
        "read a job": partial(repeated, read),
        "append an event": partial(repeated, append_event),
        "a whole job": partial(repeated, whole_job),
    }
    for count in RUNNING:
        contenders[claim_name(count)] = partial(claim_beside, count)
        contenders[empty_name(count)] = partial(ask_in_vain, count)
    return [section("queue operations", NOTES, paired("queue operations", contenders, rounds=rounds))]


def claim_name(running: int) -> str:
    """The contender that claims a job while others run."""
    return f"claim a job, {running} running"


def empty_name(running: int) -> str:
    """The contender that finds no job while others run."""
    return f"claim, none waits, {running} running"


@dataclass
class Desk:
    """One client at a queue of its own.

    Attributes:
        jobs: The queue.
        events: Its events.
        meter: Of its Redis.
    """

    jobs: Jobs
    events: Events
    meter: Meter

    def submitted(self, count: int) -> list[str]:
        """Submits jobs."""
        return [self.jobs.submit(questions.question(number)).job_id for number in range(count)]

    def claimed(self, count: int) -> list[Claim]:
        """Submits jobs and takes them, each for a worker of its own."""
        self.submitted(count)
        return [self.claim(number) for number in range(count)]

    def claim(self, number: int) -> Claim:
        """Takes a job that waits, for a worker of that number."""
        claim = self.jobs.claim(questions.STAGE, worker(number), block_s=0.0)
        assert claim is not None, "a job was submitted for every claim"
        return claim

    def cost(self, count: int, operation: Callable[[int], object]) -> Figures:
        """Does an operation with the numbers 0 to ``count``; what one of them cost."""
        self.meter.start()
        began_s = time.monotonic()
        for number in range(count):
            operation(number)
        took_s = time.monotonic() - began_s
        return {"round_trip_ms": took_s / count * 1e3, **self.meter.work().each(count)}


@contextlib.contextmanager
def desk() -> Iterator[Desk]:
    """A queue on a Redis of its own, with the product's flush policy and leases that outlast the round."""
    with tempfile.TemporaryDirectory() as directory, bus(Path(directory), "always") as server:
        redis = connect(server.url)
        yield Desk(Jobs(redis, lease_s=LONG_S), Events(redis), Meter(redis))
        redis.close()


def repeated(prepare: Callable[[Desk], Callable[[int], object]]) -> Figures:
    """Prepares an operation, and measures it."""
    with desk() as place:
        return place.cost(TIMES, prepare(place))


def submit(place: Desk) -> Callable[[int], object]:
    """Submitting a job."""
    return lambda number: place.jobs.submit(questions.question(number))


def renew(place: Desk) -> Callable[[int], object]:
    """Renewing a lease."""
    claims = place.claimed(TIMES)
    return lambda number: place.jobs.renew(claims[number])


def tell_progress(place: Desk) -> Callable[[int], object]:
    """Renewing a lease and telling progress, as after each episode."""
    claims = place.claimed(TIMES)
    for number, claim in enumerate(claims):
        place.jobs.progress(claim, questions.progress(number))
    return lambda number: place.jobs.progress(claims[number], questions.progress(number))


def complete(place: Desk) -> Callable[[int], object]:
    """Recording a result and freeing the job."""
    claims = place.claimed(TIMES)
    return lambda number: place.jobs.complete(claims[number], questions.answer(number))


def read(place: Desk) -> Callable[[int], object]:
    """Reading a running job, as the runner does with each one several times a second."""
    claims = place.claimed(TIMES)
    for number, claim in enumerate(claims):
        place.jobs.progress(claim, questions.progress(number))
    return lambda number: place.jobs.get(claims[number].job_id)


def append_event(place: Desk) -> Callable[[int], object]:
    """Appending an event."""
    detail = {"role": "episodes", "kind": "episodes", "digest": questions.digest("episodes"), "parents": {}}
    event = Event(kind="artifact.stored", run_id="handover", stage=questions.STAGE, detail=detail)
    return lambda _: place.events.append(event)


def whole_job(place: Desk) -> Callable[[int], object]:
    """A job from its submission to its record."""

    def live(number: int) -> None:
        place.jobs.submit(questions.question(number))
        place.jobs.complete(place.claim(number), questions.answer(number))

    return live


def claim_beside(running: int) -> Figures:
    """Claiming a job while others run."""
    with desk() as place:
        place.claimed(running)
        for number in range(running, running + AT_A_BUSY_QUEUE):
            place.jobs.submit(questions.question(number))
        return place.cost(AT_A_BUSY_QUEUE, lambda number: place.claim(running + number))


def ask_in_vain(running: int) -> Figures:
    """Asking for a job where none waits, while others run."""
    with desk() as place:
        claims = place.claimed(running + 1)
        place.jobs.complete(claims[-1], questions.answer(running))
        return place.cost(TIMES, lambda _: place.jobs.claim(questions.STAGE, worker(running), block_s=0.0))


def worker(number: int) -> str:
    """A worker's name, as long as real ones are."""
    return f"sim@sim-{number:05d}:1-abcdef"
