"""The limit that a robot keeps by itself: targets come no faster than the arm may go, whatever the line does.

The commander's kernel limits the motion between one of its commands and the next. On the way commands are
late, lost, or come two at a time; the robot holds by itself in between. What it executes in the end may
therefore jump although no command did. So the robot has the last word on the step from one executed target
to the next. It shares no state with the kernel, and passes what is within the limits as it came.

On a way of its own, between two commands, it looks after the tool's workspace too: the kernel has seen both
ends, but joints that catch up one by one pass where it never looked.
"""

from __future__ import annotations

from collections.abc import Callable

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

    What fell behind closes the gap no faster than it could still stop at the newest command, which may be the
    last. Behind a command that goes on fast it therefore stays until that one slows, by what it needs for
    braking: with 3.5 rad/s, 60 rad/s² and 30 Hz from 2.75 rad/s on, and by 0.05 rad at most. To close that
    gap too it would have to overshoot whenever the command stops.

    Args:
        limits: Of the arm.
        grasp_position: Forward kinematics: joints (n_joints,) [rad] to the grasp point (3,) in the base [m].
        period_s: Length of a control tick [s].
        pose_rad: Where the arm is, shape (n_joints,), [rad].
    """

    def __init__(
        self,
        limits: SafetyLimits,
        grasp_position: Callable[[Vector], Vector],
        period_s: float,
        pose_rad: NDArray[np.float32],
    ) -> None:
        self._limits, self._grasp_position, self._period_s = limits, grasp_position, period_s
        self.hold(pose_rad)

    def hold(self, pose_rad: NDArray[np.float32]) -> None:
        """The arm is held there: the next motion starts from it, at rest."""
        self._target: Vector = np.asarray(pose_rad, dtype=np.float64)
        self._velocity: Vector = np.zeros_like(self._target)
        self._periods = 1
        self._since_ns: int | None = None
        self._number: int | None = None

    def follow(
        self,
        wanted_rad: NDArray[np.float32],
        measured_rad: NDArray[np.float32],
        number: int,
        now_ns: int,
    ) -> tuple[NDArray[np.float32], bool] | None:
        """The target for this tick.

        Args:
            wanted_rad: The newest command's, shape (n_joints,), [rad].
            measured_rad: Where the arm is, shape (n_joints,), [rad].
            number: That command's; the same again while no newer one came.
            now_ns: The tick [ns].

        Returns:
            target_rad: Shape (n_joints,), float32, [rad]: the wanted one, or as far toward it as allowed.
            limited: Whether it is another one than wanted.
            None, where it or the way to it is outside the workspace, further than the arm is: hold the arm.
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
        limited = bool((np.abs(target - asked) > SLACK_RAD).any())
        if limited and self._leaves(measured_rad, target, wanted):
            return None
        self._velocity = (target - self._target) / (periods * self._period_s)
        self._target, self._number, self._periods, self._since_ns = target, number, periods, now_ns
        return target.astype(np.float32), limited

    def _leaves(self, measured_rad: NDArray[np.float32], *poses_rad: Vector) -> bool:
        """Whether a pose is outside the workspace, further than where the arm is."""
        here, *there = (
            self._limits.outside_m(self._grasp_position(np.asarray(pose, dtype=np.float64)))
            for pose in (measured_rad, *poses_rad)
        )
        return max(there) > here

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
