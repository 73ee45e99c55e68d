"""The record of one episode, simulated or real, tick by tick."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2or.rollout.control import Command
from sim2or.worlds.world import Sensed, Truth

INSTRUMENT_SIZE = 12
"""Numbers of ``Truth.instrument``."""


@dataclass
class Episode:
    """What was sensed and commanded; row t is the observation *before* the command of tick t.

    Attributes:
        session: The episode's name.
        measured_rad: One row (n_joints,) a tick, [rad].
        velocity_radps: One row (n_joints,) a tick, [rad/s].
        commanded_rad: One row (n_joints,) a tick, [rad]; NaN where nothing was sent.
        time_ns: Capture time of each row [ns].
        hold: Whether the arm was held.
        age_ns: Age of the observation behind the command when it took effect [ns]; -1 for a hold.
        instrument: ``Truth.instrument``, shape (12,), a tick; NaN where the world does not know.
        taken: Whether the surgeon's hand held the instrument.
        safety: How often the kernel gave each reason.
        chunks: How the executor received each chunk ("accepted" or the cause of refusal).
        inference_s: How long the actor thought, one entry a chunk [s].
        success: Whether the task succeeded.
        failure: The cause when it did not.
        facts: Figures from the world: handle angle, margins …
    """

    session: str
    measured_rad: list[NDArray[np.float32]] = field(default_factory=list)
    velocity_radps: list[NDArray[np.float32]] = field(default_factory=list)
    commanded_rad: list[NDArray[np.float32]] = field(default_factory=list)
    time_ns: list[int] = field(default_factory=list)
    hold: list[bool] = field(default_factory=list)
    age_ns: list[int] = field(default_factory=list)
    instrument: list[NDArray[np.float32]] = field(default_factory=list)
    taken: list[bool] = field(default_factory=list)
    safety: Counter[str] = field(default_factory=Counter)
    chunks: Counter[str] = field(default_factory=Counter)
    inference_s: list[float] = field(default_factory=list)
    success: bool = False
    failure: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, sensed: Sensed, command: Command, at_ns: int, truth: Truth | None = None) -> None:
        """Adds one tick; ``truth`` is what a simulator knows beside what is sensed."""
        decision = command.decision
        self.measured_rad.append(sensed.position_rad)
        self.velocity_radps.append(sensed.velocity_radps)
        missing = np.full_like(sensed.position_rad, np.nan)
        self.commanded_rad.append(missing if decision.target_rad is None else decision.target_rad)
        self.time_ns.append(sensed.time_ns)
        self.hold.append(decision.hold)
        self.age_ns.append(-1 if command.captured_ns is None else at_ns - command.captured_ns)
        unknown = np.full(INSTRUMENT_SIZE, np.nan, np.float32)
        self.instrument.append(unknown if truth is None else truth.instrument)
        self.taken.append(truth is not None and truth.taken)
        self.safety.update(reason.value for reason in decision.reasons)

    @property
    def steps(self) -> int:
        """Ticks recorded."""
        return len(self.time_ns)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The rows as arrays, by name with units, for ``numpy.savez``."""
        names = (
            "measured_rad",
            "velocity_radps",
            "commanded_rad",
            "time_ns",
            "hold",
            "age_ns",
            "instrument",
            "taken",
        )
        return {name: np.array(getattr(self, name)) for name in names}
