"""Episodes that begin near the goal, so that trying finds it.

Source: Florensa et al. 2017, reverse curriculum generation.
"""

from __future__ import annotations

import numpy as np
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile

from sim2or_sim.backends.mujoco.reach import Reach
from sim2or_sim.rl.grasp import AIM_M
from sim2or_sim.rl.starts import Starts, draw_starts

_OVER_M = 0.06


def near_starts(
    robot: RobotProfile, task: TaskProfile, instrument: str, rng: np.random.Generator, count: int
) -> Starts:
    """Grasps that begin with open jaws over the instrument: around it or up to 6 cm above, more often low.

    Args:
        robot: The arm.
        task: The operating room.
        instrument: What lies on the tray.
        rng: Where chance comes from.
        count: How many.
    """
    starts = draw_starts("grasp", robot, task, rng, count)
    solver = Reach(robot)
    x_m, y_m, z_m = task.tray.center_m
    rest_m = z_m + task.instruments[instrument].rest_height_m
    for joints, (at_x, at_y, yaw) in zip(starts.start_rad, starts.instrument, strict=True):
        across = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        origin = np.array([x_m + at_x, y_m + at_y, rest_m - AIM_M[2] + _OVER_M * rng.random() ** 2])
        joints[-1] = robot.tool.open_rad
        joints[:] = solver.solve(origin - AIM_M[0] * across, float(yaw), joints)
    return starts
