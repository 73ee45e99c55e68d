"""Brings the numbers and the picture of ``docs/scaling.md`` up to date with ``bench/scale.json``.

``python tests/perf/scale/page.py`` does it without measuring. What people write stands between the generated
parts and is left alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from model import (
    LARGEST,
    REDIS_BYTES,
    SIZES,
    Units,
    Wall,
    aof_bytes_per_s,
    hours_to_full,
    units,
    walls,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from generated import filled, table

ROOT = Path(__file__).parents[3]
FIGURES = ROOT / "bench" / "scale.json"
PAGE = ROOT / "docs" / "scaling.md"
PICTURE = Path("pictures") / "scaling.png"
BARE = "bare run(), no bus"

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e3e9ec",
    "legend.frameon": False,
}

Content = Mapping[str, Any]


def read(path: Path) -> Content:
    """What ``make bench-scale`` wrote."""
    found: Content = json.loads(path.read_text())
    return found


def update(page: Path, figures: Content) -> None:
    """Writes the generated parts of a page, and its picture beside it."""
    page.write_text(filled(page.read_text(), parts(figures)))
    draw(figures, page.parent / PICTURE)


def parts(figures: Content) -> dict[str, str]:
    """The generated parts of the page, by name."""
    one = units(figures)
    return {
        "machine": machine(figures),
        "simulators": simulators(figures),
        "goals": goals(figures),
        "units": unit_table(figures, one),
        "check": check(figures, one),
        "model": model_table(one),
        "walls": wall_table(one),
        "sizes": size_table(one),
    }


def machine(figures: Content) -> str:
    """Where and when it was measured."""
    there = figures["machine"]
    rounds = figures["sections"]["simulators"]["rounds"]
    return (
        f"Measured on {figures['date']}: {there['cpu']}, {there['cores']} cores, no GPU, Python "
        f"{there['python']}; medians of {rounds} rounds, in brackets the lowest and the highest.\n"
    )


def simulators(figures: Content) -> str:
    """Episodes per minute against simulators."""
    found = figures["sections"]["simulators"]
    one = found["median"]["1 simulator"]["episodes_per_min"]
    busy = figures["sections"]["a busy simulator"]["median"]
    rows = []
    for name, medians in found["median"].items():
        low, high = found["range"][name]["episodes_per_min"]
        rate = medians["episodes_per_min"]
        told = f"{busy[name]['lease_messages_per_s']:.2f}" if name in busy else ""
        rows.append((name, f"{rate:.1f} ({low:.1f}–{high:.1f})", f"{rate / one:.2f}", told))
    return table(("", "episodes/min", "× one simulator", "lease messages/s of each"), rows)


def goals(figures: Content) -> str:
    """What was to be reached."""
    rows = [
        (goal["name"], f"{goal['measured']:.3f}", f"{goal['rule']} {goal['goal']:g}", verdict(goal["met"]))
        for goal in figures["goals"]
    ]
    return table(("goal", "measured", "", ""), rows)


def verdict(met: bool) -> str:
    """For people."""
    return "met" if met else "**missed**"


def unit_table(figures: Content, one: Units) -> str:
    """Every per-unit figure that the model takes, and where it comes from."""
    busy = figures["sections"]["a busy simulator"]["median"]["1 simulator"]
    waiting = figures["sections"]["waiting agents"]["median"]["200 agents"]
    jobs = figures["sections"]["jobs per second"]["median"]
    tellers = figures["sections"]["lease messages per second"]["median"]
    small = figures["sections"]["store"]["median"]["small files"]
    back = figures["sections"]["store"]["median"]["read back"]
    put = figures["sections"]["store"]["median"]["episodes"]
    uploads = figures["sections"]["upload"]["median"]
    rows = [
        ("a simulator, on a core of its own", f"{one.episodes_per_min:.1f} episodes/min"),
        ("its memory, agent and worker, at most", f"{one.memory_mb:,.0f} MB"),
        (
            "its lease messages (renewals), of these with progress",
            f"{one.lease_messages_per_s:.2f}/s, {busy['progress_per_s']:.2f}/s",
        ),
        (
            "Redis, a lease message with progress",
            f"{one.message_us:.0f} µs, {one.message_aof_bytes:.0f} B of file",
        ),
        (
            "Redis, submit / claim / complete a job",
            f"{one.submit_us:.0f} / {one.claim_us(0):.0f} / {one.complete_us:.0f} µs",
        ),
        (
            "Redis, a claim beside 100 / 1,000 running jobs",
            f"{one.claim_us(100):.0f} / {one.claim_us(1000):,.0f} µs",
        ),
        (
            "Redis, a claim that finds none, beside 0 / 100 / 1,000 running jobs",
            f"{one.ask_us(0):.0f} / {one.ask_us(100):.0f} / {one.ask_us(1000):,.0f} µs",
        ),
        (
            "Redis, a waiting agent",
            f"{waiting['claims_per_s']:.1f} claims/s, {waiting['commands_per_s']:.0f} commands/s, "
            f"{one.idle_us_per_s:,.0f} µs/s, {one.connection_bytes / 1e3:.1f} kB",
        ),
        ("Redis, a real idle sim service", f"{one.asks_per_s:.1f} claims/s"),
        ("Redis, the runner's look at a job", f"{one.read_us:.0f} µs, {one.read_ms:.2f} ms"),
        (
            "Redis's memory for a job with its four events",
            f"{one.job_bytes / 1e3:.1f} kB, {one.job_aof_bytes / 1e3:.1f} kB of file",
        ),
        ("Redis's memory for an event", f"{event_bytes(figures):.0f} B"),
        ("jobs/s of one Redis and " + joined(jobs), joined_figures(jobs, "jobs_per_s")),
        ("lease messages/s of one Redis and " + joined(tellers), joined_figures(tellers, "messages_per_s")),
        (
            "an episode in the store / in the dataset",
            f"{one.stored_bytes / 1e6:.2f} / {one.dataset_bytes / 1e6:.2f} MB",
        ),
        ("storing episodes (one process, hashed, flushed)", f"{put['mb_per_s']:,.0f} MB/s"),
        ("storing files of 4 kB", f"{small['files_per_s']:,.0f} files/s"),
        ("reading back, verified", f"{back['mb_per_s']:,.0f} MB/s"),
        (
            "this disk: flushes one after the other / one large file, flushed",
            f"{one.flushes_per_s:,.0f}/s / {one.disk_bytes_per_s / 1e6:,.0f} MB/s",
        ),
        (
            f"uploads over tcp, acknowledged on disk, of {joined(uploads)}",
            joined_figures(uploads, "mb_per_s") + " MB/s",
        ),
        ("one converter", f"{one.convert_per_min:,.0f} episodes/min"),
        ("the merging writer", f"{one.merge_per_min:,.0f} episodes/min"),
    ]
    return table(("per unit", "measured"), rows)


def event_bytes(figures: Content) -> float:
    """Redis's memory for an event."""
    found = figures["sections"]["queue operations"]["median"]["append an event"]
    return float(found["memory_bytes"])


def joined(contenders: Content) -> str:
    """Names such as ``1, 2, 4 workers``."""
    names = [name.partition(" ") for name in contenders]
    return f"{', '.join(name[0] for name in names)} {names[-1][2]}"


def joined_figures(contenders: Content, figure: str) -> str:
    """One figure of each contender."""
    return ", ".join(f"{values[figure]:,.0f}" for values in contenders.values())


def check(figures: Content, one: Units) -> str:
    """The model against what was measured in the same run, where it can be checked."""
    name = max(figures["sections"]["a busy simulator"]["median"])
    found = figures["sections"]["a busy simulator"]["median"][name]
    alone_us = figures["sections"]["waiting agents"]["median"]["0 agents"]["redis_us_per_s"]
    predicted_us = int(name.split()[0]) * found["lease_messages_per_s"] * one.message_us + alone_us
    used_us = int(name.split()[0]) * found["redis_us_per_s"]
    return (
        f"Check on this machine: {name} sent {found['lease_messages_per_s']:.2f} lease messages/s each. By "
        f"the per-unit figure, and with {alone_us:,.0f} µs/s of a Redis that nobody asks, that is "
        f"{predicted_us:,.0f} µs/s; Redis used {used_us:,.0f} µs/s, claims, results and a waiting runner's "
        "looks included.\n"
    )


def model_table(one: Units) -> str:
    """How many of each shared part are needed, by number of simulators."""
    rows = [
        (wall.name, *(share(wall.needed(size)) for size in SIZES), saturation(wall)) for wall in walls(one)
    ]
    return table(("needed of", *(f"{size:,}" for size in SIZES), "one is enough for"), rows)


def wall_table(one: Units) -> str:
    """The arithmetic of each wall at the largest size."""
    rows = [(wall.name, f"{wall.arithmetic(LARGEST)} = {share(wall.needed(LARGEST))}") for wall in walls(one)]
    return table(("at 1,000 simulators", "arithmetic"), rows)


def size_table(one: Units) -> str:
    """What a cluster of each size makes and keeps."""
    rows = [
        (
            f"{size:,}",
            f"{size * one.episodes_per_min:,.0f}",
            f"{size * one.memory_mb / 1e3:,.1f}",
            f"{one.jobs_per_s(size):.2g}",
            f"{one.episodes_per_s(size) * one.stored_bytes * 3600 / 1e9:,.0f}",
            f"{aof_bytes_per_s(one, size) * 3600 / 1e9:.2g}",
            f"{hours_to_full(one, size):,.1f}",
        )
        for size in SIZES
    ]
    heads = (
        "simulators = cores",
        "episodes/min",
        "memory GB",
        "jobs/s",
        "store GB/h",
        "Redis file GB/h",
        f"hours until {REDIS_BYTES / 2**20:.0f} MB of Redis are full",
    )
    return table(heads, rows)


def share(needed: float) -> str:
    """How many of something are needed: per cent below one."""
    if needed >= 1:
        return f"**{needed:,.1f}**"
    return f"{100 * needed:.2g} %" if needed < 0.0995 else f"{100 * needed:.0f} %"


def saturation(wall: Wall) -> str:
    """How many simulators one of it serves."""
    found = wall.saturates_at()
    return "any number" if found is None else f"{float(f'{found:.2g}'):,.0f}"


def draw(figures: Content, path: Path) -> None:
    """Draws what was measured, and what the model says."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10.5, 4.0), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
        draw_measured(left, figures["sections"]["simulators"], figures["machine"]["cores"])
        draw_model(right, walls(units(figures)))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def draw_measured(axes: Axes, found: Content, cores: int) -> None:
    """Episodes per minute against simulators, with the range of the rounds."""
    names = [name for name in found["median"] if name != BARE]
    counts = [int(name.split()[0]) for name in names]
    rates = [found["median"][name]["episodes_per_min"] for name in names]
    low, high = zip(*(found["range"][name]["episodes_per_min"] for name in names), strict=True)
    spread = np.abs(np.array([low, high]) - rates)
    axes.errorbar(counts, rates, yerr=spread, marker="o", capsize=3, color="#0b5cad", label="measured")
    bare = found["median"][BARE]["episodes_per_min"]
    ideal = [bare * min(count, cores) for count in counts]
    axes.plot(counts, ideal, color="#5d6f78", ls="--", label=f"bare run() × simulators, at most {cores}")
    axes.set(xlabel="simulators", ylabel="episodes/min", title=f"measured, {cores} cores", xticks=counts)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")


def draw_model(axes: Axes, shown: Sequence[Wall]) -> None:
    """How many of each shared part are needed, against simulators."""
    sizes = np.geomspace(1, LARGEST, 60)
    styles = ("-", "--", ":")
    for number, wall in enumerate(shown):
        needed = [wall.needed(size) for size in sizes]
        axes.plot(sizes, needed, ls=styles[number % 3], color=f"C{number}", label=wall.name)
    axes.axhline(1, color="#16242b", lw=0.8)
    axes.set(xscale="log", yscale="log", xlabel="simulators", ylabel="needed of it (1: saturated)")
    axes.set(title="model, one of each", xlim=(1, LARGEST), ylim=(1e-4, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{100 * value:g} %")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


if __name__ == "__main__":
    update(PAGE, read(FIGURES))
