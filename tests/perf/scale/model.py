"""From one simulator to a thousand: how much of each shared part they need, from measured per-unit figures.

Everything is linear in what was measured on one machine; nothing here was run on a cluster. Assumed are a
core for each simulator, as fast as those of the measurement; jobs as large as the main job's; one Redis, one
store, one run; and what the constants below say.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim2or.runner import POLL_S

SIZES = (1, 10, 30, 100, 300, 1000)
LARGEST = 1000
LINK_BYTES_PER_S = 10e9 / 8
"""Of the store's network card: 10 Gbit/s, an assumption."""

CONNECTIONS = 10_000
"""What a Redis accepts. Source: redis.conf, ``maxclients``, default."""

REDIS_BYTES = 512 * 2**20
"""Memory that compose gives to Redis. Source: compose/compose.yaml, ``--maxmemory``."""

FLUSHES_PER_EPISODE = 4
"""File and directory, when committed and when stored. Source: ``write_episode``, ``Store.put``."""

RUNNING = (0, 100, 1000)
NEVER = 10_000_000

Line = Callable[[float], float]


@dataclass(frozen=True)
class Units:
    """What one of each costs, as measured; times of Redis are CPU time of its one process.

    Attributes:
        episodes_per_min: Of one simulator.
        memory_mb: Of one simulator, at most [MB].
        demos_per_job: How many demonstrations a job makes.
        lease_messages_per_s: Of one busy simulator.
        asks_per_s: Of one idle simulator: how often it asks whether there is work.
        message_us: Redis, for a lease message with progress [µs].
        submit_us: Redis, for a submission [µs].
        complete_us: Redis, for a completion [µs].
        read_us: Redis, for the runner's look at a job [µs].
        read_ms: How long that look takes the runner [ms].
        claim_us: Redis, for a claim that gets a job, by the number of running jobs [µs].
        ask_us: Redis, for a claim that gets none, by the number of running jobs [µs].
        idle_us_per_s: Redis, for a waiting simulator [µs/s].
        connection_bytes: Redis's memory for a connection.
        job_bytes: Redis's memory for a job with its events.
        job_aof_bytes: What a job adds to Redis's file.
        message_aof_bytes: What a lease message adds to it.
        stored_bytes: Of an episode in the store.
        dataset_bytes: Of an episode in the dataset.
        disk_bytes_per_s: What the store's disk writes, flushed.
        keeper_bytes_per_s: What one storekeeper takes over the network, verified and flushed.
        flushes_per_s: What the disk flushes, one file after the other.
        convert_per_min: Episodes that one converter converts.
        merge_per_min: Episodes that the one merging writer adds.
    """

    episodes_per_min: float
    memory_mb: float
    demos_per_job: float
    lease_messages_per_s: float
    asks_per_s: float
    message_us: float
    submit_us: float
    complete_us: float
    read_us: float
    read_ms: float
    claim_us: Line
    ask_us: Line
    idle_us_per_s: float
    connection_bytes: float
    job_bytes: float
    job_aof_bytes: float
    message_aof_bytes: float
    stored_bytes: float
    dataset_bytes: float
    disk_bytes_per_s: float
    keeper_bytes_per_s: float
    flushes_per_s: float
    convert_per_min: float
    merge_per_min: float

    def jobs_per_s(self, simulators: float) -> float:
        """Jobs that so many busy simulators begin."""
        return simulators * self.episodes_per_min / 60 / self.demos_per_job

    def episodes_per_s(self, simulators: float) -> float:
        """Episodes that so many busy simulators make."""
        return simulators * self.episodes_per_min / 60

    def runner_reads_per_s(self, jobs: float) -> float:
        """How often the runner looks at a job: at each unfinished one, then it pauses."""
        return jobs / (POLL_S + jobs * self.read_ms / 1000)


def units(figures: Mapping[str, Any]) -> Units:
    """Reads the per-unit figures out of the content of ``bench/scale.json``."""

    def of(section: str, contender: str) -> Mapping[str, float]:
        found: Mapping[str, float] = figures["sections"][section]["median"][contender]
        return found

    def redis_us(operation: str) -> float:
        return of("queue operations", operation)["redis_us"]

    return Units(
        episodes_per_min=of("simulators", "1 simulator")["episodes_per_min"],
        memory_mb=of("a busy simulator", "1 simulator")["peak_memory_mb"],
        demos_per_job=of("jobs", "a job")["demos"],
        lease_messages_per_s=of("a busy simulator", "1 simulator")["lease_messages_per_s"],
        asks_per_s=of("an idle simulator", "an idle simulator")["claims_per_s"],
        message_us=redis_us("renew with progress"),
        submit_us=redis_us("submit"),
        complete_us=redis_us("complete"),
        read_us=redis_us("read a job"),
        read_ms=of("queue operations", "read a job")["round_trip_ms"],
        claim_us=line([(n, redis_us(f"claim a job, {n} running")) for n in RUNNING]),
        ask_us=line([(n, redis_us(f"claim, none waits, {n} running")) for n in RUNNING]),
        idle_us_per_s=of("waiting agents", "200 agents")["redis_us_per_s"],
        connection_bytes=of("waiting agents", "200 agents")["memory_bytes"],
        job_bytes=of("queue operations", "a whole job")["memory_bytes"],
        job_aof_bytes=of("queue operations", "a whole job")["aof_bytes"],
        message_aof_bytes=of("queue operations", "renew with progress")["aof_bytes"],
        stored_bytes=of("sizes", "a demonstration")["stored_bytes"],
        dataset_bytes=of("dataset", "one writer")["dataset_bytes"],
        disk_bytes_per_s=of("store", "disk")["mb_per_s"] * 1e6,
        keeper_bytes_per_s=of("upload", "16 producers")["mb_per_s"] * 1e6,
        flushes_per_s=of("store", "flush")["files_per_s"],
        convert_per_min=of("dataset", "one writer")["convert_per_min"],
        merge_per_min=of("dataset", "one writer")["merge_per_min"],
    )


def line(points: Sequence[tuple[float, float]]) -> Line:
    """Straight lines through measured points, the last one continued.

    Args:
        points: (x, y) with increasing x, at least two.
    """

    def at(x: float) -> float:
        pairs = list(itertools.pairwise(points))
        (x0, y0), (x1, y1) = next((pair for pair in pairs if x <= pair[1][0]), pairs[-1])
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    return at


@dataclass(frozen=True)
class Wall:
    """A shared part that saturates.

    Attributes:
        name: What it is.
        needed: Simulators to how many of it they need; 1 is saturated.
        arithmetic: Simulators to the same, written out.
    """

    name: str
    needed: Callable[[float], float]
    arithmetic: Callable[[float], str]

    def saturates_at(self) -> int | None:
        """How many simulators one of it serves; None where it is never saturated."""
        if self.needed(NEVER) < 1:
            return None
        low, high = 0, NEVER
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.needed(middle) <= 1 else (low, middle)
        return low


def walls(one: Units) -> list[Wall]:
    """Every shared part, in the order in which the page tells of them."""
    return [
        Wall(
            "Redis, all simulators busy",
            lambda n: busy_us_per_s(one, n) * 1e-6,
            lambda n: (
                f"{n:,.0f} × {one.lease_messages_per_s:.3g} lease messages/s × {one.message_us:.3g} µs "
                f"+ {one.jobs_per_s(n):.3g} jobs/s × ({one.submit_us:.3g} + {one.claim_us(n):.4g} "
                f"+ {one.complete_us:.3g}) µs (submit, claim beside {n:,.0f} running, complete) "
                f"+ {one.runner_reads_per_s(n):,.0f} looks of the runner/s × {one.read_us:.3g} µs"
            ),
        ),
        Wall(
            "Redis, all simulators idle",
            lambda n: n * one.idle_us_per_s * 1e-6,
            lambda n: f"{n:,.0f} × {one.idle_us_per_s:,.0f} µs/s of a waiting simulator",
        ),
        Wall(
            "Redis, half of them idle",
            lambda n: (busy_us_per_s(one, n / 2) + asking_us_per_s(one, n / 2)) * 1e-6,
            lambda n: (
                f"{n / 2:,.0f} busy ones as above + {n / 2:,.0f} × {one.asks_per_s:.3g} questions/s, half of "
                f"them × {one.ask_us(n / 2):.4g} µs (none waits, {n / 2:,.0f} running), half × "
                f"{one.ask_us(0):.3g} µs (the other stage)"
            ),
        ),
        Wall(
            "Redis, connections",
            lambda n: n / CONNECTIONS,
            lambda n: f"{n:,.0f} / {CONNECTIONS:,}",
        ),
        Wall(
            "network to the store",
            lambda n: one.episodes_per_s(n) * one.stored_bytes / LINK_BYTES_PER_S,
            lambda n: (
                f"{one.episodes_per_s(n):,.4g} episodes/s × {one.stored_bytes / 1e6:.3g} MB "
                f"/ {LINK_BYTES_PER_S / 1e6:,.0f} MB/s"
            ),
        ),
        Wall(
            "the storekeeper",
            lambda n: one.episodes_per_s(n) * one.stored_bytes / one.keeper_bytes_per_s,
            lambda n: (
                f"{one.episodes_per_s(n):,.4g} episodes/s × {one.stored_bytes / 1e6:.3g} MB "
                f"/ {one.keeper_bytes_per_s / 1e6:,.0f} MB/s"
            ),
        ),
        Wall(
            "the store's disk, bytes",
            lambda n: one.episodes_per_s(n) * one.stored_bytes / one.disk_bytes_per_s,
            lambda n: (
                f"{one.episodes_per_s(n):,.4g} episodes/s × {one.stored_bytes / 1e6:.3g} MB "
                f"/ {one.disk_bytes_per_s / 1e6:,.0f} MB/s"
            ),
        ),
        Wall(
            "the store's disk, flushes",
            lambda n: one.episodes_per_s(n) * FLUSHES_PER_EPISODE / one.flushes_per_s,
            lambda n: (
                f"{one.episodes_per_s(n):,.4g} episodes/s × {FLUSHES_PER_EPISODE} flushes "
                f"/ {one.flushes_per_s:,.0f} flushes/s"
            ),
        ),
        Wall(
            "converters",
            lambda n: n * one.episodes_per_min / one.convert_per_min,
            lambda n: (
                f"{n * one.episodes_per_min:,.0f} episodes/min / {one.convert_per_min:,.0f} episodes/min"
            ),
        ),
        Wall(
            "the one merging writer",
            lambda n: n * one.episodes_per_min / one.merge_per_min,
            lambda n: f"{n * one.episodes_per_min:,.0f} episodes/min / {one.merge_per_min:,.0f} episodes/min",
        ),
    ]


def busy_us_per_s(one: Units, simulators: float) -> float:
    """Redis's CPU time for simulators that all have work, and for the runner that watches them [µs/s]."""
    job_us = one.submit_us + one.claim_us(simulators) + one.complete_us
    return (
        simulators * one.lease_messages_per_s * one.message_us
        + one.jobs_per_s(simulators) * job_us
        + one.runner_reads_per_s(simulators) * one.read_us
    )


def asking_us_per_s(one: Units, idle: float) -> float:
    """Redis's CPU time for simulators that ask in vain while as many others work [µs/s].

    They ask for two stages in turn, collect and rollout; jobs of one of them run.
    """
    return idle * one.asks_per_s * (one.ask_us(idle) + one.ask_us(0)) / 2


def hours_to_full(one: Units, simulators: float) -> float:
    """How long until Redis's memory is full of ended jobs when nothing is pruned [h]."""
    free = REDIS_BYTES - simulators * one.connection_bytes
    return free / (one.jobs_per_s(simulators) * one.job_bytes) / 3600


def aof_bytes_per_s(one: Units, simulators: float) -> float:
    """What Redis appends to its file."""
    messages = simulators * one.lease_messages_per_s * one.message_aof_bytes
    return messages + one.jobs_per_s(simulators) * one.job_aof_bytes
