"""What a Redis server did between two moments, by its own account."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from paired import Figures
from redis import Redis

SETTLING_READS = 3


@dataclass(frozen=True)
class Work:
    """Counters of a server.

    Attributes:
        commands: Commands executed, those inside scripts included.
        scripts: Scripts executed: one for each operation of the queue.
        renewals: Leases renewed, with or without progress.
        writes: Fields of jobs set; tells progress apart from a bare renewal.
        cpu_s: CPU time of the server process [s].
        script_s: Of that, inside scripts, the time of their commands included [s].
        in_bytes: Received from clients.
        out_bytes: Sent to clients.
        aof_bytes: Size of the append-only file.
        memory_bytes: Memory in use.
    """

    commands: float
    scripts: float
    renewals: float
    writes: float
    cpu_s: float
    script_s: float
    in_bytes: float
    out_bytes: float
    aof_bytes: float
    memory_bytes: float

    def __sub__(self, other: Work) -> Work:
        return Work(**{one.name: getattr(self, one.name) - getattr(other, one.name) for one in fields(Work)})

    def each(self, count: int) -> Figures:
        """What one of ``count`` equal operations cost."""
        return {
            "redis_us": self.cpu_s / count * 1e6,
            "script_us": self.script_s / count * 1e6,
            "commands": self.commands / count,
            "in_bytes": self.in_bytes / count,
            "out_bytes": self.out_bytes / count,
            "aof_bytes": self.aof_bytes / count,
            "memory_bytes": self.memory_bytes / count,
        }


class Meter:
    """Reads a server's counters; the cost of reading them is measured first and left out.

    Args:
        redis: A client from ``connect``, of an otherwise quiet server.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        readings = [self._read() for _ in range(SETTLING_READS)]
        self._reading = readings[-1] - readings[-2]
        self.start()

    def start(self) -> None:
        """Counts from now on."""
        self._before = self._read()

    def work(self) -> Work:
        """What was done since ``start``."""
        return self._read() - self._before - self._reading

    def _read(self) -> Work:
        return work_of(self._redis.info("all"))


def work_of(info: Mapping[str, Any]) -> Work:
    """The counters in the answer to INFO ALL."""
    prefix = "cmdstat_"
    commands = {key.removeprefix(prefix): value for key, value in info.items() if key.startswith(prefix)}

    def of(name: str, figure: str) -> float:
        return float(commands.get(name, {}).get(figure, 0))

    return Work(
        commands=sum(float(one["calls"]) for one in commands.values()),
        scripts=of("evalsha", "calls"),
        renewals=of("xclaim", "calls"),
        writes=of("hset", "calls"),
        cpu_s=float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
        script_s=of("evalsha", "usec") * 1e-6,
        in_bytes=float(info["total_net_input_bytes"]),
        out_bytes=float(info["total_net_output_bytes"]),
        aof_bytes=float(info["aof_current_size"]),
        memory_bytes=float(info["used_memory"]),
    )
