"""A pure delay of servo commands, counted in physics steps."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

Target = NDArray[np.float64]


class Delay:
    """Turns the target of one control period into the targets its physics steps see."""

    def __init__(self, steps: int, substeps: int, start: Target) -> None:
        """Starts with the arm commanded to hold ``start``.

        Args:
            steps: Delay in physics steps.
            substeps: Physics steps in a control period.
            start: Shape (n_joints,), [rad].
        """
        self._whole, self._part = divmod(steps, substeps)
        self._substeps = substeps
        self._past = deque([start.copy()] * (self._whole + 2), maxlen=self._whole + 2)

    def pieces(self, target: Target) -> list[tuple[Target, int]]:
        """The delayed targets of this period in order, each with the number of physics steps it acts."""
        self._past.append(target.copy())
        old, new = self._past[0], self._past[1]
        both = [(old, self._part), (new, self._substeps - self._part)]
        return [(value, count) for value, count in both if count]
