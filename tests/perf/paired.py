"""Paired measurements: contenders take turns in one run, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sim2or.goals import Goal

Figures = Mapping[str, float]
Round = Callable[[], Figures]

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Section:
    """One part of a benchmark.

    Attributes:
        name: For example ``"observation round trip"``.
        unit_notes: What the figures mean, for the reader of the JSON.
        figures: Contender to figure to the median over the rounds.
        spread: Contender to figure to [lowest, highest] round.
        rounds: How many rounds each contender ran.
        goals: What was to be reached.
    """

    name: str
    unit_notes: str
    figures: Mapping[str, Figures]
    spread: Mapping[str, Mapping[str, Sequence[float]]]
    rounds: int
    goals: Sequence[Goal] = field(default_factory=tuple)


def paired(name: str, contenders: Mapping[str, Round], *, rounds: int) -> dict[str, list[Figures]]:
    """Runs every contender once a round, in an order that is reversed from round to round.

    Args:
        name: Shown with the progress.
        contenders: Name to one round; it returns its figures and leaves nothing running.
        rounds: How many rounds.
    """
    results: dict[str, list[Figures]] = {contender: [] for contender in contenders}
    started_s, done, total = time.monotonic(), 0, rounds * len(contenders)
    for number in range(rounds):
        order = list(contenders) if number % 2 == 0 else list(reversed(contenders))
        for contender in order:
            results[contender].append(contenders[contender]())
            done += 1
            left_s = (time.monotonic() - started_s) / done * (total - done)
            console.print(f"{name}: round {number + 1}/{rounds}, {contender}, {left_s:.0f} s left")
    return results


def section(
    name: str,
    unit_notes: str,
    results: Mapping[str, Sequence[Figures]],
    goals: Callable[[Mapping[str, Figures]], Sequence[Goal]] = lambda _: (),
) -> Section:
    """Reduces rounds to medians and judges the goals by them."""
    figures = {
        contender: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for contender, rounds in results.items()
    }
    spread = {
        contender: {
            key: [min(one[key] for one in rounds), max(one[key] for one in rounds)] for key in rounds[0]
        }
        for contender, rounds in results.items()
    }
    count = min(len(rounds) for rounds in results.values())
    return Section(name, unit_notes, figures, spread, count, tuple(goals(figures)))


def write(path: Path, sections: Sequence[Section]) -> None:
    """Writes the JSON, with date and machine, and prints the tables."""
    document: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
        "goals": [goal.model_dump(mode="json") for part in sections for goal in part.goals],
        "sections": {
            part.name: {
                "notes": part.unit_notes,
                "rounds": part.rounds,
                "median": {who: _rounded(values) for who, values in part.figures.items()},
                "range": {
                    who: {key: [_significant(low), _significant(high)] for key, (low, high) in values.items()}
                    for who, values in part.spread.items()
                },
            }
            for part in sections
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for part in sections:
        show(part)


def show(part: Section) -> None:
    """Prints one section as a table, with its goals."""
    keys = list(next(iter(part.figures.values())))
    grid = Table("", *keys, title=f"{part.name} (median of {part.rounds})")
    for contender, values in part.figures.items():
        grid.add_row(contender, *(f"{values[key]:.4g}" for key in keys))
    console.print(grid)
    for goal in part.goals:
        mark = "met   " if goal.met else "MISSED"
        console.print(f"  {mark} {goal.name}: {goal.measured} ({goal.rule} {goal.goal:g})")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _rounded(values: Figures) -> dict[str, float]:
    return {key: _significant(value) for key, value in values.items()}


def _significant(value: float) -> float:
    return float(f"{value:.4g}")
