"""Brings the numbers of ``docs/simulation.md`` up to date with ``bench/sim.json``.

``python tests/perf/sim/simulation_page.py`` does it without measuring. What people write stands between the
generated parts and is left alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from generated import filled, table

ROOT = Path(__file__).parents[3]
FIGURES = ROOT / "bench" / "sim.json"
PAGE = ROOT / "docs" / "simulation.md"

Content = Mapping[str, Any]


def read(path: Path) -> Content:
    """What ``make bench-sim`` wrote."""
    found: Content = json.loads(path.read_text())
    return found


def update(page: Path, figures: Content) -> None:
    """Writes the generated parts of a page."""
    page.write_text(filled(page.read_text(), parts(figures)))


def parts(figures: Content) -> dict[str, str]:
    """The generated parts of the page, by name."""
    return {
        "machine": machine(figures),
        "steps": rates(figures, "environment steps", "steps"),
        "frames": rates(figures, "camera frames", "frames"),
        "profile": profiles(figures),
    }


def machine(figures: Content) -> str:
    """Where and when it was measured."""
    there, rounds = figures["machine"], next(iter(figures["sections"].values()))["rounds"]
    return (
        f"Measured on {figures['date']}: {there['cpu']}, {there['cores']} cores, no GPU, Python "
        f"{there['python']}; medians of {rounds} rounds, in brackets the lowest and the highest.\n"
    )


def rates(figures: Content, what: str, unit: str) -> str:
    """What was reached with our code and without, and whether the goal was met."""
    goals = {goal["name"]: goal for goal in figures["goals"]}
    rows = []
    for name, found in figures["sections"].items():
        engine, _, measured = name.partition(": ")
        if measured != what:
            continue
        for contender, one in found["median"].items():
            low, high = found["range"][contender]["share"]
            goal = goals[f"{engine} {unit}: {contender}, × bare"]
            rows.append(
                (
                    f"{engine}, {contender}",
                    rate(one[f"{unit}_per_s"]),
                    rate(one[f"bare_{unit}_per_s"]),
                    f"{one['share']:.2f} ({low:.2f}–{high:.2f})",
                    "met" if goal["met"] else "**missed**",
                )
            )
    return table(("", f"{unit}/s", f"bare {unit}/s", "share", "goal: at least 0.9"), rows)


def rate(value: float) -> str:
    """For people: a digit after the point where there are few before it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def profiles(figures: Content) -> str:
    """Where the time of a control step goes."""
    told = []
    for name, found in figures["sections"].items():
        engine, _, measured = name.partition(": ")
        if measured != "where a control step's time goes":
            continue
        contenders = found["median"]
        heads = next(iter(contenders.values()))
        rows = [
            (f"{engine}, {who}", *(f"{100 * share:.1f} %" for share in one.values()))
            for who, one in contenders.items()
        ]
        told.append(table(("", *heads), rows))
    return "\n".join(told)


if __name__ == "__main__":
    update(PAGE, read(FIGURES))
