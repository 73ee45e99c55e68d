"""The control loop's beat: absolute deadlines on the robot's own grid of ticks."""

from __future__ import annotations

LOCK_GAIN = 0.1
"""Share of a phase error that one state corrects: jitter averages out, a drifting clock is followed."""


class Pacer:
    """Knows when the robot will execute next.

    The robot senses and executes at every tick of its own clock. A command that takes effect at a tick must
    have left before it; that tick is the deadline. The pacer follows the phase of the robot's capture times.

    Args:
        period_ns: Length of a control period [ns].
    """

    def __init__(self, period_ns: int) -> None:
        self.period_ns = period_ns
        self._origin_ns: float | None = None
        self._states = 0
        self._last_ns: int | None = None

    def lock(self, captured_ns: int) -> None:
        """Takes a state's capture time [ns] as a tick of the robot; the first ones count equally."""
        self._states += 1
        if self._origin_ns is None:
            self._origin_ns = float(captured_ns)
            return
        error = (captured_ns - self._origin_ns + self.period_ns / 2) % self.period_ns - self.period_ns / 2
        self._origin_ns += max(LOCK_GAIN, 1 / self._states) * error

    def next(self, now_ns: int) -> tuple[int, int]:
        """The robot's next tick after ``now_ns``.

        Returns:
            deadline_ns: When a command that leaves now takes effect [ns].
            missed: How many ticks passed since the last deadline without a beat of this loop.
        """
        assert self._origin_ns is not None  # the loop senses before it paces
        beats = int((now_ns - self._origin_ns) // self.period_ns) + 1
        deadline_ns = round(self._origin_ns + beats * self.period_ns)
        missed = 0
        if self._last_ns is not None:
            ahead = round((deadline_ns - self._last_ns) / self.period_ns)
            if ahead < 1:  # woken a hair before the tick that was just served
                deadline_ns, ahead = deadline_ns + self.period_ns, 1
            missed = ahead - 1
        self._last_ns = deadline_ns
        return deadline_ns, missed
