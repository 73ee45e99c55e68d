"""Latency: how long one call takes, of several models in turn so that disturbances hit them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

ROUNDS = 10
WARM_UP_CALLS = 10


def latency_ms(calls: Mapping[str, Callable[[], object]], *, count: int) -> dict[str, dict[str, float]]:
    """Times calls in interleaved rounds.

    Args:
        calls: Name to what is timed.
        count: Timed calls of each, at least one a round.

    Returns:
        Name to the 50th, 95th and 99th percentile [ms].
    """
    for call in calls.values():
        for _ in range(WARM_UP_CALLS):
            call()
    taken_ns: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            taken_ns[name].extend(_time_ns(call) for _ in range(-(-count // ROUNDS)))
    return {name: _percentiles_ms(values) for name, values in taken_ns.items()}


def _time_ns(call: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


def _percentiles_ms(taken_ns: list[int]) -> dict[str, float]:
    values = np.percentile(np.asarray(taken_ns) / 1e6, [50, 95, 99])
    return {name: round(float(value), 4) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}
