"""Figures of the report, as SVG to stand inline in the page, in one style."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from sim2or.messages.verdict import Baseline, Gate, Score

from sim2or_evaluator.evidence import LossRow
from sim2or_evaluator.trials import Trial

INK, MUTED, GRID = "#16242b", "#5d6f78", "#e3e9ec"
GOOD, BAD, ACCENT, SECOND = "#0f766e", "#c2410c", "#0b5cad", "#8a6d1f"
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "sim2or",
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": GRID,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.transparent": True,
}


def coverage(trials: Sequence[Trial]) -> str:
    """Where the instruments lay, one panel an instrument: a dash along each, crosses for failures.

    Args:
        trials: With scenarios that carry ``x_m``, ``y_m`` and ``yaw_rad``.
    """
    names = sorted({trial.instrument for trial in trials})
    with _figure(9.4, 2.75, columns=len(names)) as (figure, axes, svg):
        for ax, name in zip(axes, names, strict=True):
            _panel(ax, [t for t in trials if t.instrument == name])
            ax.set_title(name.capitalize())
            ax.set_xlabel("y, across the tray [cm]")
        axes[0].set_ylabel("x, from the arm [cm]")
        _same_limits(axes)
        figure.subplots_adjust(left=0.065, right=0.995, bottom=0.17, top=0.9, wspace=0.1)
    return svg()


def loss(rows: Sequence[LossRow]) -> str:
    """Training and held-out loss by step, logarithmic."""
    with _figure(9.4, 3.1) as (figure, (ax,), svg):
        trained = [(row.step, row.loss) for row in rows if row.loss is not None]
        held = [(row.step, row.heldout_loss) for row in rows if row.heldout_loss is not None]
        if trained:
            ax.plot(*zip(*trained, strict=True), color=ACCENT, lw=1.6, label="training")
        if held:
            ax.plot(*zip(*held, strict=True), color=BAD, lw=1.6, marker="o", ms=4, label="held out")
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.grid(axis="y", which="major")
        ax.minorticks_off()
        ax.set_xlabel("training step")
        ax.set_ylabel("loss")
        ax.legend(loc="upper right")
        figure.tight_layout()
    return svg()


def scores(rows: Mapping[str, Score], gate: Gate | None = None) -> str:
    """Success rates with their intervals, one row a name, and the goal for the lower bound."""
    with _figure(9.4, 0.75 + 0.44 * len(rows)) as (figure, (ax,), svg):
        for place, score in enumerate(reversed(list(rows.values()))):
            low, high = (100 * bound for bound in score.interval)
            ax.plot([low, high], [place, place], color=GOOD, lw=7, alpha=0.28, solid_capstyle="round")
            ax.plot(100 * score.rate, place, "o", color=GOOD, ms=8, clip_on=False)
            _aside(ax, place, 0.04, f"{score.successes} / {score.trials}")
            _aside(ax, place, 0.21, f"{100 * score.rate:.1f} %")
            _aside(ax, place, 0.35, f"{low:.1f} – {high:.1f} %", MUTED)
        ax.set_yticks(range(len(rows)), [name.capitalize() for name in reversed(list(rows))], color=INK)
        ax.set_ylim(-0.6, len(rows) - 0.4)
        lowest = min(100 * score.interval[0] for score in rows.values())
        ax.set_xlim(max(-2.0, 10 * ((lowest - 4) // 10)), 100.9)  # a dot at zero stays clear of its name
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        ax.set_xlabel("success [%]")
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)
        if gate is not None:
            _goal(ax, 100 * gate.lower_goal, f"lower bound must reach {100 * gate.lower_goal:.0f} %")
        figure.subplots_adjust(
            left=0.13, right=0.68, bottom=0.46 / figure.get_figheight(), top=1 - 0.2 / figure.get_figheight()
        )
    return svg()


def actors(policy: Score, baselines: Mapping[str, Baseline]) -> str:
    """The policy between the other actors."""
    return scores({"exported policy": policy} | {n: b.score for n, b in baselines.items()})


def latency(latency_ms: Mapping[str, Mapping[str, float]], period_ms: float) -> str:
    """Percentiles of one inference at batch 1, against the control period."""
    names = {"torch": "torch", "onnx": "ONNX Runtime"}
    rows = [
        (names.get(key, key), values) for key, values in latency_ms.items() if values.get("p50") is not None
    ]
    with _figure(9.4, 0.9 + 0.5 * len(rows)) as (figure, (ax,), svg):
        for place, (_, values) in enumerate(reversed(rows)):
            ax.plot(
                [values["p50"], values["p99"]],
                [place, place],
                color=ACCENT,
                lw=7,
                alpha=0.25,
                solid_capstyle="round",
            )
            for name, marker in (("p50", "o"), ("p95", "D"), ("p99", "s")):
                ax.plot(values[name], place, marker, color=ACCENT, ms=7, label=name if place == 0 else None)
            for column, name in enumerate(("p50", "p95", "p99")):
                _aside(ax, place, 0.05 + 0.17 * column, f"{values[name]:.2f}")
        _goal(ax, period_ms, f"one control period, {period_ms:.1f} ms")
        ax.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)], color=INK)
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.set_xlim(0, 1.04 * max(period_ms, *(values["p99"] for _, values in rows)))
        for column, name in enumerate(("p50", "p95", "p99")):
            _aside(ax, len(rows) - 0.42, 0.05 + 0.17 * column, f"{name} [ms]", MUTED)
        ax.set_xlabel("time of one call, batch 1 [ms]")
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)
        figure.subplots_adjust(
            left=0.13, right=0.66, bottom=0.46 / figure.get_figheight(), top=1 - 0.24 / figure.get_figheight()
        )
    return svg()


def hand_overs(trials: Sequence[Mapping[str, Any]]) -> str:
    """The bridge's hand-overs in order, a bar as long as each took."""
    with _figure(9.4, 2.5) as (figure, (ax,), svg):
        times = [float(trial.get("time_s") or 0) for trial in trials]
        colours = [GOOD if trial.get("success") else BAD for trial in trials]
        ax.bar(range(1, len(times) + 1), times, color=colours, width=0.72)
        for number, trial in enumerate(trials, 1):
            if not trial.get("success"):
                text = str(trial.get("failure") or "failed").replace("_", " ")
                ax.annotate(
                    text,
                    (number, times[number - 1]),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    color=BAD,
                    fontsize=9,
                )
        ax.set_xticks(range(1, len(times) + 1))
        ax.margins(x=0.01, y=0.16)
        ax.set_xlabel("hand-over")
        ax.set_ylabel("time [s]")
        ax.grid(axis="y")
        figure.tight_layout()
    return svg()


def tick_work(work_ms: Sequence[float], period_ms: float) -> str:
    """How long the bridge worked in each tick, against the control period."""
    with _figure(9.4, 2.4) as (figure, (ax,), svg):
        edges = np.linspace(0, max(1.15 * period_ms, *work_ms), 60)
        ax.hist(work_ms, bins=edges.tolist(), color=ACCENT, alpha=0.85)
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.7)
        ax.set_xlim(0, edges[-1])
        ax.set_xlabel("work in a tick [ms]")
        ax.set_ylabel("ticks")
        ax.yaxis.set_major_formatter("{x:,.0f}")
        ax.grid(axis="y")
        ax.minorticks_off()
        _goal(ax, period_ms, f"one control period, {period_ms:.1f} ms")
        figure.subplots_adjust(left=0.08, right=0.99, bottom=0.2, top=0.9)
    return svg()


def _goal(ax: Axes, at: float, text: str) -> None:
    """Draws a limit that must be reached or kept, its name above it."""
    ax.axvline(at, color=BAD, lw=1.2, ls=(0, (4, 3)))
    ax.annotate(
        text,
        (at, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 3),
        textcoords="offset points",
        ha="right",
        color=BAD,
        fontsize=9,
    )


def _aside(ax: Axes, place: float, offset: float, text: str, color: str = INK) -> None:
    """Writes beside the axes, in a column ``offset`` axes widths from their right edge."""
    ax.annotate(text, (1 + offset, place), xycoords=("axes fraction", "data"), va="center", color=color)


def _panel(ax: Axes, trials: Sequence[Trial]) -> None:
    place = np.array([[t.scenario.get(k, 0.0) for k in ("x_m", "y_m", "yaw_rad")] for t in trials])
    good = np.array([t.success for t in trials])
    x, y, yaw = 100 * place[:, 0], 100 * place[:, 1], place[:, 2]
    half = 0.34
    # the base's y points left, so the axis is turned round: the panel is what the surgeon sees from above
    across, along = -np.cos(yaw) * half, np.sin(yaw) * half
    for mask, colour, width in ((good, GOOD, 1.5), (~good, BAD, 2.2)):
        points = np.stack([[y - across, x - along], [y + across, x + along]])[:, :, mask]
        ax.plot(points[:, 0], points[:, 1], color=colour, lw=width, alpha=0.85, solid_capstyle="round")
    ax.plot(y[~good], x[~good], "x", color=BAD, ms=9, mew=2.2)
    ax.grid()
    ax.set_title(f"{int(good.sum())} / {len(good)}", loc="right", color=MUTED, fontweight="normal")


def _same_limits(axes: Sequence[Axes]) -> None:
    """Gives all panels the same scale; y grows to the left, as it does for the arm."""
    across = max(abs(bound) for ax in axes for bound in ax.get_xlim())
    along = max(abs(bound) for ax in axes for bound in ax.get_ylim())
    for ax in axes:
        ax.set_xlim(across, -across)
        ax.set_ylim(-along, along)
        ax.set_aspect("equal", adjustable="box")


@contextmanager
def _figure(
    width_in: float, height_in: float, columns: int = 1
) -> Iterator[tuple[Figure, list[Axes], Callable[[], str]]]:
    """A figure in our style; the last item gives its SVG after the block has drawn it."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width_in, height_in))
        axes = list(np.atleast_1d(figure.subplots(1, columns, sharey=True)))
        out = io.StringIO()
        yield figure, axes, lambda: inline(out.getvalue())
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})


def inline(svg: str) -> str:
    """Strips what only a separate file needs, so that the SVG stands in the page and uses its fonts."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", body)
    prefix = f"f{zlib.crc32(body.encode()):08x}-"
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = body.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    body = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', body, count=1)
    return body.replace("'DejaVu Sans', sans-serif", "var(--sans)").replace("'DejaVu Sans'", "var(--sans)")
