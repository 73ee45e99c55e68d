"""How many threads a training step uses: all cores, or one while others compete for them."""

from __future__ import annotations

import os

WARM_UP_STEPS = 3
WINDOW_STEPS = 10
HOLD_WINDOWS = 10
HOPELESS = 1.2


class Threads:
    """Measures steps on all cores and on one, and keeps to what is faster now.

    Threads wait for one another hundreds of times in a step. On idle cores two are 1.6 times as fast as one;
    beside another busy process they were measured up to 15 times slower than one. So the slower choice is
    tried again now and then, and given up as soon as it is clear.

    Attributes:
        count: Threads for the next step.
    """

    def __init__(self, wanted: int) -> None:
        """Begins with all cores.

        Args:
            wanted: Exactly so many, so that results repeat bit by bit; 0 measures.
        """
        cores = len(os.sched_getaffinity(0))
        self.count = wanted or cores
        self._choices = (wanted,) if wanted or cores == 1 else (cores, 1)
        self._step_s: dict[int, float] = {}
        self._left_out = WARM_UP_STEPS
        self._window: list[float] = []
        self._held = 0

    def took(self, step_s: float) -> int:
        """Takes a step's duration [s] and returns the threads for the next one."""
        if len(self._choices) == 1:
            return self.count
        if self._left_out:
            self._left_out -= 1
            return self.count
        self._window.append(step_s)
        other = self._choices[self.count == self._choices[0]]
        other_s = self._step_s.get(other)
        hopeless = other_s is not None and sum(self._window) > HOPELESS * WINDOW_STEPS * other_s
        if len(self._window) == WINDOW_STEPS or hopeless:
            mean_s = sum(self._window) / len(self._window)
            self._step_s[self.count] = mean_s
            self._window.clear()
            self._held += 1
            if other_s is None or mean_s > other_s or self._held > HOLD_WINDOWS:
                self.count, self._held = other, 0
        return self.count
