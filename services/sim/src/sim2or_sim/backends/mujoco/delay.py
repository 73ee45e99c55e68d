"""A pure delay of servo commands, counted in physics steps, for a batch of arms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Targets = NDArray[np.float64]
"""Shape (batch, n_joints), [rad]."""


class Delay:
    """Turns the targets of one control period into the targets that its physics steps see.

    Args:
        home: Shape (batch, n_joints), what the arms are told before their first ``begin`` [rad].
        substeps: Physics steps in a control period.
        longest: The longest delay there will be, in physics steps.
    """

    def __init__(self, home: Targets, substeps: int, longest: int) -> None:
        depth = longest // substeps + 2
        self._substeps, self._rows = substeps, np.arange(len(home))
        self._past = np.repeat(home[:, None], depth, axis=1)
        self._newest = depth - 1
        self._whole, self._part = np.zeros((2, len(home)), dtype=int)

    def begin(self, ids: Sequence[int] | NDArray[np.int_], steps: NDArray[np.int_], start: Targets) -> None:
        """Arms hold ``start`` from now on.

        Args:
            ids: Which arms.
            steps: Shape (len(ids),), their delays in physics steps.
            start: Shape (len(ids), n_joints), [rad].
        """
        self._whole[ids], self._part[ids] = np.divmod(steps, self._substeps)
        self._past[ids] = start[:, None]

    def push(self, targets: Targets) -> None:
        """The targets of the next control period."""
        self._past[:, :-1] = self._past[:, 1:]
        self._past[:, -1] = targets

    def pieces(self, index: int) -> list[tuple[NDArray[np.float64], int]]:
        """What one arm is told in this period: targets, shape (n_joints,), each with its physics steps."""
        newer, part = self._newest - self._whole[index], int(self._part[index])
        new = (self._past[index, newer], self._substeps - part)
        return [(self._past[index, newer - 1], part), new] if part else [new]

    def spans(self) -> list[tuple[Targets, int]]:
        """What all arms are told in this period, cut wherever one of them is told something new."""
        newer = self._newest - self._whole
        old, new = self._past[self._rows, newer - 1], self._past[self._rows, newer]
        cuts = np.unique([0, *self._part, self._substeps]).tolist()
        return [
            (np.where(self._part[:, None] > begin, old, new), end - begin) for begin, end in pairwise(cuts)
        ]
