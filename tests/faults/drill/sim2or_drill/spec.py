"""Configuration of the drill stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from sim2or.messages.message import Spec


class DrillSpec(Spec):
    """Takes steps, each of which is checkpointed and leaves a line.

    Attributes:
        effects: Directory of the lines: ``starts``, ``steps``, ``ends``, ``overlaps``, ``unwound``.
        steps: How many steps.
        pause_s: How long each takes [s].
        fault: ``poison`` kills its worker at every attempt; ``hang`` blocks in C and holds the interpreter's
            lock for ever, at the first attempt; ``hold`` does so for ``hold_s`` at every attempt; ``spoil``
            does so at the first attempt, and then writes into its first file, by name or by ``open_file``;
            ``deaf`` does not ask at its end whether it must stop.
        unwind_s: How long it unwinds when it is told to stop [s]; its one checkpoint is left after that. 0: a
            checkpoint after every step.
        hold_s: How long ``hold`` and ``spoil`` last [s].
        open_file: ``spoil`` opens its file before, not after.
        ballast_mb: Size of what each step writes [MB].
    """

    effects: Path
    steps: PositiveInt = 3
    pause_s: Annotated[float, Field(ge=0)] = 0.0
    fault: Literal["none", "poison", "hang", "hold", "spoil", "deaf"] = "none"
    unwind_s: Annotated[float, Field(ge=0)] = 0.0
    hold_s: Annotated[int, Field(ge=0)] = 0
    open_file: bool = False
    ballast_mb: Annotated[float, Field(ge=0)] = 0.0
