"""A submitter or a worker of the lease queue, as a process that goes on while Redis comes and goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sim2or.bus.jobs import Claim, Jobs
from sim2or.bus.server import connect
from sim2or.errors import TransientError
from sim2or.messages.job import Job, JobResult

STAGE = "noop"


def persist[T](action: Callable[[], T]) -> T:
    """Repeats what the bus did not answer; the test ends a process that does so for ever."""
    while True:
        try:
            return action()
        except TransientError as error:
            print(f"{os.getpid()}: {error}", file=sys.stderr, flush=True)


def append(path: Path, line: str) -> None:
    """Adds a line in one write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def submit(jobs: Jobs, name: str, path: Path, count: int) -> None:
    """Submits jobs and writes down the id of each that was acknowledged."""
    for number in range(count):
        job = Job(stage=STAGE, key=f"{name}-{number}")
        append(path, persist(partial(jobs.submit, job)).job_id)


def work(jobs: Jobs, name: str, path: Path) -> None:
    """Runs jobs until it is killed; the effect of a job is its line in the file."""
    claim: Claim | None = None
    while True:
        claim = claim or persist(partial(jobs.claim, STAGE, name))
        if claim:
            append(path, f"{claim.job_id} {claim.attempt} {name}")
            _, claim = persist(partial(jobs.complete_and_claim, claim, JobResult()))


def main() -> None:
    """``redis_peer.py submit|work URL NAME FILE [COUNT]``."""
    role, url, name, path = sys.argv[1:5]
    jobs = Jobs(connect(url))
    if role == "submit":
        submit(jobs, name, Path(path), int(sys.argv[5]))
    else:
        work(jobs, name, Path(path))


if __name__ == "__main__":
    main()
