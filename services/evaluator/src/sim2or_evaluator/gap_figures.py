"""Figures of the gap between two engines, in the report's style: SVG for the page, PNG for other places."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sim2or.messages.gap import Gap, Paired

from sim2or_evaluator.figures import ACCENT, GOOD, INK, MUTED, SECOND, STYLE, inline
from sim2or_evaluator.gap_motion import Apart, Floats, by_tick
from sim2or_evaluator.gap_pairs import Pair

PNG_DPI = 150
MILLI = 1e3
DEGREES = 57.29577951308232
BAND = (5, 95)
"""Percentiles over the scenarios between which the band of a figure lies."""


@dataclass(frozen=True)
class Picture:
    """A figure in both forms.

    Attributes:
        svg: To stand inline in a page.
        png: The same on white.
    """

    svg: str
    png: bytes


def joints(motions: Sequence[Apart], names: Sequence[str]) -> Picture:
    """Absolute error of each joint over time: median and band over the scenarios [mrad]."""
    table = MILLI * np.abs(by_tick([motion.joints_rad for motion in motions]))

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, -(-len(names) // 2), sharex=True)
        for number, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
            _band(ax, motions, table[:, :, number])
            ax.set_title(name.replace("_", " ").capitalize())
        for ax in axes[:, 0]:
            ax.set_ylabel("error [mrad]")
        for ax in axes[-1]:
            ax.set_xlabel("time [s]")

    return _picture(9.4, 4.6, draw)


def distances(motions: Sequence[Apart]) -> Picture:
    """Tool point, instrument and its direction over time: median and band over the scenarios."""
    columns = {
        "Tool point [mm]": [MILLI * motion.tool_m for motion in motions],
        "Instrument [mm]": [MILLI * motion.instrument_m for motion in motions],
        "Instrument's direction [°]": [DEGREES * motion.instrument_rad for motion in motions],
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(columns), sharex=True)
        for ax, (title, rows) in zip(axes, columns.items(), strict=True):
            _band(ax, motions, by_tick(rows))
            ax.set_title(title)
            ax.set_xlabel("time [s]")

    return _picture(9.4, 2.9, draw)


def events(pairs: Sequence[Pair], names: Sequence[str]) -> Picture:
    """How much later each event happened in the other engine, a dot a scenario [s]."""
    rows = {name: [s for pair in pairs if (s := pair.later_s(name)) is not None] for name in names}

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for place, later_s in enumerate(reversed(list(rows.values()))):
            offsets = 0.22 * np.sin(2.4 * np.arange(len(later_s)))
            ax.plot(later_s, place + offsets, "o", color=ACCENT, ms=5, alpha=0.45, mew=0)
            if later_s:
                ax.plot([np.median(later_s)] * 2, [place - 0.32, place + 0.32], color=INK, lw=2.2)
        ax.axvline(0, color=MUTED, lw=1)
        ax.set_yticks(
            range(len(rows)), [f"{name}  ({len(rows[name])})" for name in reversed(list(rows))], color=INK
        )
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.set_xlabel("later in the other engine [s]")
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)

    return _picture(9.4, 0.8 + 0.42 * len(rows), draw)


def successes(gap: Gap, rows: Mapping[str, Paired]) -> Picture:
    """Success rates in both engines with their Wilson intervals, and the difference with its own.

    Args:
        gap: Names the engines.
        rows: What was compared, by name for people.
    """

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for place, found in enumerate(reversed(list(rows.values()))):
            for score, colour, up in ((found.reference, ACCENT, 0.16), (found.other, SECOND, -0.16)):
                _interval(left, place + up, score.rate, score.interval, colour)
            _interval(right, place, found.difference, found.interval, GOOD)
        left.set_yticks(range(len(rows)), list(reversed(list(rows))), color=INK)
        left.set_ylim(-0.6, len(rows) - 0.4)
        left.set_xlim(-2, 102)
        left.set_xlabel("success [%]")
        right.axvline(0, color=MUTED, lw=1)
        right.set_xlabel(f"{gap.other} − {gap.reference} [percentage points]")
        for engine, colour in ((gap.reference, ACCENT), (gap.other, SECOND)):
            left.plot([], [], "o", color=colour, ms=7, label=engine)
        figure.legend(loc="outside upper left", ncols=2)
        for ax in (left, right):
            ax.grid(axis="x")
            ax.spines["left"].set_visible(False)

    return _picture(9.4, 1.2 + 0.55 * len(rows), draw)


def _interval(ax: Axes, place: float, rate: float, interval: tuple[float, float], colour: str) -> None:
    low, high = (100 * bound for bound in interval)
    ax.plot([low, high], [place, place], color=colour, lw=6, alpha=0.28, solid_capstyle="round")
    ax.plot(100 * rate, place, "o", color=colour, ms=7, clip_on=False)


def _band(ax: Axes, motions: Sequence[Apart], table: Floats) -> None:
    """Median and band over the scenarios that still run, as long as half of them do."""
    longest = max(motions, key=lambda motion: motion.ticks)
    running = np.isfinite(table).sum(axis=0)
    kept = int(np.count_nonzero(2 * running >= len(table)))
    time_s = longest.time_s[:kept]
    low, middle, high = np.nanpercentile(table[:, :kept], (BAND[0], 50, BAND[1]), axis=0)
    ax.fill_between(time_s, low, high, color=ACCENT, alpha=0.18, lw=0)
    ax.plot(time_s, middle, color=ACCENT, lw=1.6)
    grasped_s = [motion.time_s[motion.free].max(initial=0.0) for motion in motions if not motion.free.all()]
    if grasped_s:
        ax.axvline(float(np.median(grasped_s)), color=MUTED, lw=1, ls=":")
    ax.set_ylim(bottom=0)
    ax.set_xlim(0, None)
    ax.grid()


def _picture(width_in: float, height_in: float, draw: Callable[[Figure], None]) -> Picture:
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        draw(figure)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(
            png, format="png", dpi=PNG_DPI, facecolor="white", transparent=False, metadata={"Software": None}
        )
    return Picture(inline(svg.getvalue()), png.getvalue())
