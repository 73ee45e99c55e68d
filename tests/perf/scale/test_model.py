"""The scaling model: its arithmetic, redone by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from model import CONNECTIONS, Units, Wall, aof_bytes_per_s, hours_to_full, line, walls

ONE = Units(
    episodes_per_min=60.0,
    memory_mb=500.0,
    demos_per_job=30.0,
    lease_messages_per_s=2.0,
    asks_per_s=8.0,
    message_us=50.0,
    submit_us=100.0,
    complete_us=150.0,
    read_us=20.0,
    read_ms=0.2,
    claim_us=line([(0, 50.0), (1000, 1050.0)]),
    ask_us=line([(0, 25.0), (1000, 525.0)]),
    idle_us_per_s=500.0,
    connection_bytes=0.0,
    job_bytes=4096.0,
    job_aof_bytes=6000.0,
    message_aof_bytes=300.0,
    stored_bytes=5e6,
    dataset_bytes=1e6,
    disk_bytes_per_s=500e6,
    keeper_bytes_per_s=250e6,
    flushes_per_s=1000.0,
    convert_per_min=120.0,
    merge_per_min=6000.0,
)


def wall(name: str) -> Wall:
    """A wall of the model, by its name."""
    return next(one for one in walls(ONE) if one.name == name)


def test_busy_simulators_cost_redis_their_messages_their_jobs_and_the_runners_looks() -> None:
    """100 × 2/s × 50 µs + 100/30 jobs/s × (100 + 150 + 150) µs + 100/(0.2 + 0.02) looks/s × 20 µs."""
    needed = wall("Redis, all simulators busy").needed(100)
    assert needed == pytest.approx((10_000 + 1_333.33 + 9_090.91) * 1e-6, rel=1e-5)


def test_idle_simulators_beside_busy_ones_pay_for_every_running_job() -> None:
    """50 busy ones, 50 × 4 questions/s × 50 µs beside 50 running jobs, and as many × 25 µs beside none."""
    busy = wall("Redis, all simulators busy").needed(50)
    assert wall("Redis, half of them idle").needed(100) == pytest.approx(busy + 50 * 4 * 75e-6)


@pytest.mark.parametrize(
    ("name", "simulators", "needed"),
    [
        ("Redis, all simulators idle", 100, 0.05),  # 100 × 500 µs/s
        ("Redis, connections", 100, 0.01),  # of 10,000
        ("network to the store", 100, 0.4),  # 100 episodes/s × 5 MB / 1,250 MB/s
        ("the storekeeper", 100, 2.0),  # 500 MB/s / 250 MB/s
        ("the store's disk, bytes", 100, 1.0),  # 500 MB/s
        ("the store's disk, flushes", 100, 0.4),  # 100 episodes/s × 4 / 1,000
        ("converters", 100, 50.0),  # 6,000 episodes/min / 120
        ("the one merging writer", 100, 1.0),  # 6,000 episodes/min
    ],
)
def test_each_wall_needs_what_its_arithmetic_says(name: str, simulators: int, needed: float) -> None:
    """Demand of so many simulators over what one of the shared part gives."""
    assert wall(name).needed(simulators) == pytest.approx(needed)


def test_a_wall_stands_at_the_last_number_that_one_of_it_serves() -> None:
    """Two simulators keep one converter busy, a hundred the merging writer; connections end at a limit."""
    found = {one.name: one.saturates_at() for one in walls(ONE)}
    assert found["converters"] == 2
    assert found["the one merging writer"] == 100
    assert found["Redis, connections"] == CONNECTIONS


def test_what_is_never_saturated_has_no_wall() -> None:
    """A part that needs nothing serves any number."""
    assert Wall("free", lambda _: 0.0, lambda _: "0").saturates_at() is None


def test_redis_fills_with_ended_jobs() -> None:
    """512 MiB / (100/30 jobs/s × 4 KiB) = 39,321.6 s."""
    assert hours_to_full(ONE, 100) == pytest.approx(39_321.6 / 3600)


def test_connections_take_from_the_memory_for_jobs() -> None:
    """Half of the memory for connections leaves half of the time."""
    crowded = replace(ONE, connection_bytes=256 * 2**20 / 100)
    assert hours_to_full(crowded, 100) == pytest.approx(39_321.6 / 3600 / 2)


def test_the_file_grows_by_messages_and_jobs() -> None:
    """30 × 2/s × 300 B + 1 job/s × 6,000 B."""
    assert aof_bytes_per_s(ONE, 30) == pytest.approx(24_000)


def test_between_and_beyond_measured_points_lines_are_straight() -> None:
    """Halfway is the mean; beyond the last point its line goes on."""
    at = line([(0, 10.0), (100, 20.0), (1000, 200.0)])
    assert [at(0), at(50), at(550), at(1000), at(1900)] == pytest.approx([10, 15, 110, 200, 380])
