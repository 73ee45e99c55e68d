"""The limit that a robot keeps by itself: targets come no faster than the arm may go, whatever the line does.

The commander's kernel limits the motion between one of its commands and the next. On the way commands are
late, lost, or come two at a time; the robot holds by itself in between. What it executes in the end may
therefore jump although no command did. So the robot has the last word on the step from one executed target
to the next. It shares no state with the kernel, and passes what is within the limits as it came.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim2or.safety.limits import SafetyLimits
from sim2or.safety.motion import Vector, stopping_speed

SLACK_RAD = 5e-5
"""Commands travel as float32, limited by the kernel to the same figures: rounding is no reason to act."""


class SlewLimiter:
    """Follows targets within step, speed and acceleration, starting at rest.

    A target in force for several ticks is one target, and the speed after it is the mean over those ticks;
    the mean speeds of n and of m periods belong to instants (n + m) / 2 periods apart.

    Args:
        limits: Of the arm.
        period_s: Length of a control tick [s].
        pose_rad: Where the arm is, shape (n_joints,), [rad].
    """

    def __init__(self, limits: SafetyLimits, period_s: float, pose_rad: NDArray[np.float32]) -> None:
        self._limits, self._period_s = limits, period_s
        self.hold(pose_rad)

    def hold(self, pose_rad: NDArray[np.float32]) -> None:
        """The arm is held there: the next motion starts from it, at rest."""
        self._target: Vector = np.asarray(pose_rad, dtype=np.float64)
        self._velocity: Vector = np.zeros_like(self._target)
        self._periods = 1
        self._since_ns: int | None = None
        self._number: int | None = None

    def follow(
        self, wanted_rad: NDArray[np.float32], number: int, now_ns: int
    ) -> tuple[NDArray[np.float32], bool]:
        """The target for this tick.

        Args:
            wanted_rad: The newest command's, shape (n_joints,), [rad].
            number: That command's; the same again while no newer one came.
            now_ns: The tick [ns].

        Returns:
            target_rad: Shape (n_joints,), float32, [rad]: the wanted one, or as far toward it as allowed.
            limited: Whether it is another one than wanted.
        """
        asked = np.asarray(wanted_rad, dtype=np.float64)
        wanted = np.clip(asked, self._limits.lower_rad, self._limits.upper_rad)
        if number == self._number and np.array_equal(wanted, self._target):
            return wanted.astype(np.float32), False  # the next one is late: one target for both ticks
        periods = 1
        if self._since_ns is not None:
            periods = max(1, round((now_ns - self._since_ns) / 1e9 / self._period_s))
        target = self._target + self._nearest(wanted - self._target, periods)
        if (np.abs(target - wanted) > SLACK_RAD).any():
            target = self._target + self._nearest(self._approach(wanted), periods)
        else:
            target = wanted
        self._velocity = (target - self._target) / (periods * self._period_s)
        self._target, self._number, self._periods, self._since_ns = target, number, periods, now_ns
        return target.astype(np.float32), bool((np.abs(target - asked) > SLACK_RAD).any())

    def _nearest(self, change: Vector, periods: int) -> Vector:
        """The nearest change of the target that step, speed and acceleration allow."""
        limits, time_s = self._limits, periods * self._period_s
        sudden = limits.acceleration_radps2 * self._period_s * (periods + self._periods) / 2
        most = np.minimum(limits.step_rad, limits.velocity_radps * self._period_s)
        smooth = np.clip(change, (self._velocity - sudden) * time_s, (self._velocity + sudden) * time_s)
        below, above = self._target - limits.lower_rad, limits.upper_rad - self._target
        lowest, highest = -np.minimum(most, self._stoppable(below)), np.minimum(most, self._stoppable(above))
        return np.asarray(np.clip(smooth, lowest, highest))

    def _approach(self, wanted: Vector) -> Vector:
        """A change of the target from which it can still stop at the wanted one."""
        ahead = wanted - self._target
        return np.asarray(np.sign(ahead) * np.minimum(np.abs(ahead), self._stoppable(np.abs(ahead))))

    def _stoppable(self, room_rad: Vector) -> Vector:
        """The greatest step after which the target can still stop within some room."""
        return stopping_speed(room_rad, self._limits.acceleration_radps2, self._period_s) * self._period_s
