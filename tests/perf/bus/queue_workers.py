"""The job of the queue benchmark, and the same worker process on each queue.

A job appends 40 bytes to a file: its number and the monotonic time of its start, which every process of the
machine reads alike. ``python queue_workers.py URL FILE`` is ours; celery and taskiq start their own workers
on this module, with ``BENCH_QUEUE_URL`` and ``BENCH_QUEUE_FILE`` in the environment.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

STAGE = "noop"
LINE_BYTES = 40


class Effects:
    """The file that jobs append to.

    Args:
        path: Where it is.
    """

    def __init__(self, path: str | Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, number: int) -> None:
        """Appends a job's line in one write."""
        os.write(self._descriptor, b"%8d %30d\n" % (number, time.monotonic_ns()))


def our_worker(url: str, path: str) -> None:
    """Takes and completes jobs, one at a time, until it is ended."""
    from sim2or.bus.jobs import Jobs
    from sim2or.bus.server import connect
    from sim2or.messages.job import JobResult

    jobs, effects, claim = Jobs(connect(url)), Effects(path), None
    while True:
        claim = claim or jobs.claim(STAGE, f"bench-{os.getpid()}")
        if claim:
            effects.add(claim.job.spec["number"])
            _, claim = jobs.complete_and_claim(claim, JobResult())


def celery_app() -> Any:
    """A celery application for work that must not be lost: acknowledged late, one at a time."""
    from celery import Celery

    app = Celery("bench", broker=os.environ["BENCH_QUEUE_URL"].replace("unix://", "redis+socket://"))
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
    )
    effects = Effects(os.environ["BENCH_QUEUE_FILE"])

    def noop(number: int) -> None:
        effects.add(number)

    app.task(name=STAGE, shared=False)(noop)
    return app


def taskiq_broker() -> Any:
    """A taskiq broker on Redis Streams with its defaults; it acknowledges after the task."""
    from taskiq_redis import RedisStreamBroker

    broker = RedisStreamBroker(os.environ["BENCH_QUEUE_URL"], consumer_id="0")
    effects = Effects(os.environ["BENCH_QUEUE_FILE"])

    async def noop(number: int) -> None:
        effects.add(number)

    broker.register_task(noop, task_name=STAGE)
    return broker


if __name__ == "__main__":
    our_worker(*sys.argv[1:3])
elif "BENCH_QUEUE_URL" in os.environ and "celery" in sys.argv[0]:
    app = celery_app()
