"""The choice between all cores and one."""

from __future__ import annotations

import os

import pytest
from sim2or_trainer.threads import Threads


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


def run(threads: Threads, steps: int, cost_s: dict[int, float]) -> list[int]:
    """Threads used in each step when a step costs this much by thread count."""
    used = []
    for _ in range(steps):
        used.append(threads.count)
        threads.took(cost_s[threads.count])
    return used


def test_idle_cores_are_used() -> None:
    """Where two threads are faster, one is tried for about a tenth of the steps only."""
    used = run(Threads(0), 1000, {2: 0.054, 1: 0.086})
    assert used[0] == 2
    assert used.count(2) > 880


def test_competed_cores_are_given_up() -> None:
    """Where two threads collapse, they cost less than a quarter of the time."""
    cost = {2: 0.8, 1: 0.1}
    used = run(Threads(0), 1000, cost)
    assert sum(cost[n] for n in used if n == 2) < 0.25 * sum(cost[n] for n in used)


def test_follows_the_load() -> None:
    """When others go, all cores are in use again; when they come, one is."""
    threads = Threads(0)
    run(threads, 300, {2: 0.8, 1: 0.1})
    assert run(threads, 300, {2: 0.054, 1: 0.086})[-100:].count(2) >= 85
    assert run(threads, 300, {2: 0.8, 1: 0.1})[-100:].count(1) >= 90


def test_a_given_number_is_kept() -> None:
    """With a fixed number nothing is tried, so that results repeat."""
    assert set(run(Threads(2), 200, {2: 0.8, 1: 0.1})) == {2}
