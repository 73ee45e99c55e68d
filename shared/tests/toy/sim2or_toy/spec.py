"""Configurations of the toy stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from sim2or.messages.message import Spec


class WriteSpec(Spec):
    """Writes numbers.

    Attributes:
        count: How many, over all shards.
        pause_s: Pause after each [s].
        unwind_s: How long it takes to unwind when it is told to stop [s].
        fault: What goes wrong.
        flags: Where the stage leaves marks for the test; faults happen once, until their mark exists.
        seed: Added to each number.
        robot: Filled in from the pipeline.
    """

    count: PositiveInt = 3
    pause_s: Annotated[float, Field(ge=0)] = 0.0
    unwind_s: Annotated[float, Field(ge=0)] = 0.0
    fault: Literal["none", "permanent", "transient", "bug", "suicide", "stuck"] = "none"
    flags: Path | None = None
    seed: int = 0
    robot: str = ""


class JoinSpec(Spec):
    """Adds numbers up."""

    times: PositiveInt = 1
