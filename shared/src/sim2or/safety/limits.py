"""What an arm may do: joint range, speed, acceleration, workspace and ages, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile

BLEND_S = 0.4
OBSERVATION_TIMEOUT_S = 0.15
HEARTBEAT_TIMEOUT_S = 0.5
ROUNDING_RAD = 1e-6
"""Commands travel as float32: the range is narrowed by more than its rounding at 3 rad (1.2e-7)."""


@dataclass(frozen=True)
class SafetyLimits:
    """Limits of one arm in one task.

    Attributes:
        lower_rad: Lower end of the range, shape (n_joints,), [rad].
        upper_rad: Upper end of the range, shape (n_joints,), [rad].
        velocity_radps: Greatest speed of a target, shape (n_joints,), [rad/s].
        acceleration_radps2: Greatest change of that speed, shape (n_joints,), [rad/s²].
        step_rad: Greatest change of a target from one tick to the next, shape (n_joints,), [rad].
        tracking_rad: Greatest distance of a target from the measured position, shape (n_joints,), [rad].
        workspace_lower_m: Lowest corner of the tool's box in the base, shape (3,), [m].
        workspace_upper_m: Highest corner of the tool's box in the base, shape (3,), [m].
        max_age_ns: Oldest observation that may still move the arm [ns].
        observation_timeout_ns: Oldest measurement of the joints with which the arm may move [ns].
        heartbeat_timeout_ns: Longest silence of the supervisor [ns].
        silence_ns: After so long without a command of ours the robot may have held by itself [ns].
        blend_s: Time in which the speed grows to its limit after a hold [s].
    """

    lower_rad: NDArray[np.float64]
    upper_rad: NDArray[np.float64]
    velocity_radps: NDArray[np.float64]
    acceleration_radps2: NDArray[np.float64]
    step_rad: NDArray[np.float64]
    tracking_rad: NDArray[np.float64]
    workspace_lower_m: NDArray[np.float64]
    workspace_upper_m: NDArray[np.float64]
    max_age_ns: int
    observation_timeout_ns: int
    heartbeat_timeout_ns: int
    silence_ns: int
    blend_s: float

    def outside_m(self, tool_m: NDArray[np.float64]) -> float:
        """How far a tool, shape (3,), is outside the workspace [m]; infinite where its place is no number."""
        excess = np.maximum(self.workspace_lower_m - tool_m, tool_m - self.workspace_upper_m)
        worst = float(np.maximum(excess, 0.0).max())
        return worst if isfinite(worst) else inf


def limits_of(robot: RobotProfile, task: TaskProfile) -> SafetyLimits:
    """The limits that a robot profile and a task profile set together.

    Args:
        robot: Gives joint range, speed, acceleration, step and tracking.
        task: Gives the workspace of the grasp point and the age of observations.
    """
    safety = task.safety
    low = np.array(safety.tool_low_m)
    low[2] = max(low[2], safety.floor_m)
    return SafetyLimits(
        lower_rad=robot.lower_rad + ROUNDING_RAD,
        upper_rad=robot.upper_rad - ROUNDING_RAD,
        velocity_radps=np.array([joint.velocity_max_radps for joint in robot.joints]),
        acceleration_radps2=np.array([joint.acceleration_max_radps2 for joint in robot.joints]),
        step_rad=np.array([joint.step_max_rad for joint in robot.joints]),
        tracking_rad=np.array([joint.tracking_max_rad for joint in robot.joints]),
        workspace_lower_m=low,
        workspace_upper_m=np.array(safety.tool_high_m),
        max_age_ns=round(task.executor.max_age_s * 1e9),
        observation_timeout_ns=round(OBSERVATION_TIMEOUT_S * 1e9),
        heartbeat_timeout_ns=round(HEARTBEAT_TIMEOUT_S * 1e9),
        silence_ns=round(safety.watchdog_s * 1e9 / 2),
        blend_s=BLEND_S,
    )
