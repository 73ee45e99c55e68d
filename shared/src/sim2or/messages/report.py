"""What the report stage is asked for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from sim2or.messages.message import Spec

Seconds = Annotated[float, Field(ge=0)]


class ReportSpec(Spec):
    """Evidence to a page and a summary.

    Attributes:
        title: Headline of the page.
        wall_s: Wall time [s] by step id, by phase, and ``total``; the pipeline runner fills it.
        summaries: Stage name to that stage's summary, for figures that artifacts leave out because they
            differ from run to run (latencies); the pipeline runner fills it.
        pictures: Pictures in each film strip.
        total_goal_s: Wall time in which the whole run should end [s]; None: it has no such goal.
    """

    title: str = "Instrument hand-over"
    wall_s: dict[str, Seconds] = Field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = Field(default_factory=dict)
    pictures: Annotated[int, Field(ge=2, le=12)] = 8
    total_goal_s: Annotated[float, Field(gt=0)] | None = 600.0
