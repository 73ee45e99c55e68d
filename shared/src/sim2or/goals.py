"""Goals: what a run should reach, beside what it reached. A missed goal is told, never hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sim2or.messages.message import Spec

TOTAL = "total_s"


class Goal(Spec):
    """One goal of a run.

    Attributes:
        name: What is measured, with its unit where it has one.
        measured: What was reached; None where nothing measured it.
        rule: On which side of the goal it should lie.
        goal: The limit, itself included.
        met: Whether it was reached; None where nothing measured it.
    """

    name: str
    measured: float | None
    rule: Literal["at least", "at most"]
    goal: float
    met: bool | None

    @property
    def text(self) -> str:
        """For people: ``"success rate 94.5 % (goal: at least 97 %)"``."""
        words = self.name.removesuffix("_s").replace("_", " ")
        return f"{words} {self.shown(self.measured)} (goal: {self.rule} {self.shown(self.goal)})"

    def shown(self, value: float | None) -> str:
        """A value in the goal's unit: shares in per cent, times in seconds, counts as they are."""
        if value is None:
            return "not measured"
        if self.name.endswith("_s"):
            return f"{value:.0f} s"
        if self.name.endswith(("_rate", "_lower95")):
            return f"{100 * value:.2f}".rstrip("0").rstrip(".") + " %"
        return f"{value:g}"


def at_least(name: str, measured: float | None, goal: float) -> Goal:
    """A goal to reach."""
    met = None if measured is None else measured >= goal
    return Goal(name=name, measured=measured, rule="at least", goal=goal, met=met)


def at_most(name: str, measured: float | None, goal: float) -> Goal:
    """A limit to keep."""
    met = None if measured is None else measured <= goal
    return Goal(name=name, measured=measured, rule="at most", goal=goal, met=met)


def run_goals(
    summary: Mapping[str, Any], *, success: float, lower: float, total_s: float | None
) -> list[Goal]:
    """The goals of a run, in the order in which people ask for them.

    Args:
        summary: The figures of ``summary.json``.
        success: Share of held-out trials that should succeed.
        lower: Lower bound of its interval.
        total_s: Wall time of everything [s]; None where the run has no such goal.
    """
    bridge = summary["bridge"]
    goals = [
        at_least("success_rate", summary["success_rate"], success),
        at_least("success_lower95", summary["success_lower95"], lower),
        # A deployment that the gate refused has no trials, and handed nothing over.
        at_least(
            "bridge_success_rate",
            0.0 if bridge["trials"] == 0 else _share(bridge["successes"], bridge["trials"]),
            0.95,
        ),
        at_most("deadline_miss_rate", _share(bridge["deadline_misses"], bridge["ticks"]), 0.01),
        at_most("stale_executed", bridge["stale_executed"], 0),
        at_most("violations", bridge["violations"], 0),
    ]
    return goals if total_s is None else [*goals, at_most(TOTAL, summary["wall_s"]["total"], total_s)]


def with_total(goals: Sequence[Goal], total_s: float | None) -> list[Goal]:
    """The goals, judged by the time of the whole run [s], which no stage of it could know."""
    return [at_most(TOTAL, total_s, goal.goal) if goal.name == TOTAL else goal for goal in goals]


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
