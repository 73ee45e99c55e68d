"""The learning curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


def draw_curve(lines: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Reward, share of successes and error by environment steps, each where the journal tells it.

    Args:
        lines: The journal's lines.
        path: PNG or SVG to write.
        title: Above the picture.
    """
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    FigureCanvasSVG(figure)
    panels = (
        ("reward", 1.0, "reward of an episode"),
        ("success", 100.0, "successes while exploring [%]"),
        ("error_m", 1e3, "error at the end [mm]"),
    )
    for axes, (key, scale, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        told = [(line["steps"] / 1e6, scale * line[key]) for line in lines if key in line]
        axes.plot([at for at, _ in told], [value for _, value in told], color="#0b6e6e", linewidth=1.5)
        axes.set(xlabel="environment steps [millions]", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
