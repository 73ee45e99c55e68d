"""The figures of a deployment: one trial's line, and what all lines say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sim2or.contracts.scenario import Scenario
from sim2or.rollout.episode import Episode

from sim2or_bridge.hand_over import Timing

HISTOGRAM_EDGES_MS = (0, 5, 10, 15, 20, 25, 30, 33.4, 40, 50, 75, 100, 1000)


def describe(
    scenario: Scenario,
    episode: Episode,
    timing: Timing,
    status: Mapping[str, Any],
    *,
    waits_s: Sequence[float],
    policy_link: Mapping[str, int],
    period_s: float,
) -> dict[str, Any]:
    """One trial's line: the outcome and the log's counts are the robot's, the timing is the bridge's.

    Args:
        scenario: What was handed over.
        episode: What was sensed and commanded.
        timing: How the ticks kept time.
        status: What the robot reported at the end.
        waits_s: How long each answer of the policy took [s].
        policy_link: How often each kind of answer came.
        period_s: Length of a control tick [s].
    """
    log = {name.removeprefix("log_"): value for name, value in status.items() if name.startswith("log_")}
    facts = {name: value for name, value in status.items() if not name.startswith("log_")}
    success = bool(facts.pop("success", False))
    failure = "" if success else str(facts.pop("failure", "") or "unfinished")
    return {
        "seed": scenario.seed,
        "instrument": scenario.instrument,
        "request": scenario.request,
        "success": success,
        "failure": failure,
        "time_s": facts.pop("time_s", episode.steps * period_s),
        "ticks": timing.ticks,
        "deadline_misses": timing.misses,
        "holds": sum(episode.hold),
        "stale_executed": log.get("stale_executed", 0),
        "violations": log.get("violations", 0),
        "robot_log": log,
        "robot": facts,
        "safety": dict(episode.safety),
        "chunks": dict(episode.chunks),
        "policy_link": dict(policy_link),
        "age_max_ms": max(episode.age_ns, default=0) / 1e6,
        "policy_wait_ms": _quantiles([wait_s * 1e3 for wait_s in waits_s]),
        "slack_ms": [round(value, 2) for value in timing.slack_ms],
        "work_ms": [round(value, 2) for value in timing.work_ms],
    }


def totals(trials: Sequence[Mapping[str, Any]], *, period_s: float) -> dict[str, Any]:
    """The deployment's figures over all trials; ``period_s``: length of a control tick [s]."""
    names = ("ticks", "deadline_misses", "stale_executed", "violations", "holds")
    sums = {name: sum(trial[name] for trial in trials) for name in names}
    slack_ms = [value for trial in trials for value in trial["slack_ms"]]
    work_ms = [value for trial in trials for value in trial["work_ms"]]
    counts, edges = np.histogram(work_ms, bins=HISTOGRAM_EDGES_MS)
    return {
        "trials": len(trials),
        "successes": sum(trial["success"] for trial in trials),
        **sums,
        "miss_rate": sums["deadline_misses"] / max(1, sums["ticks"]),
        "period_ms": period_s * 1e3,
        "work_ms": _quantiles(work_ms),
        "slack_ms": _quantiles(slack_ms),
        "work_histogram": {"edges_ms": edges.tolist(), "ticks": counts.tolist()},
        **{name: _added(trials, name) for name in ("safety", "chunks", "policy_link")},
        "failures": {trial["seed"]: trial["failure"] for trial in trials if not trial["success"]},
    }


def _added(trials: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    added = Counter[str]()
    for trial in trials:
        added.update(trial[name])
    return dict(added)


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    names = {"min": 0, "p05": 5, "p50": 50, "p95": 95, "p99": 99, "max": 100}
    found = np.percentile(np.array(values), list(names.values()))
    return {name: round(float(value), 3) for name, value in zip(names, found, strict=True)}
