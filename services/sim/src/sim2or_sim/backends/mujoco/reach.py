"""Inverse kinematics: joint positions that put the grasp point somewhere, pointing down."""

from __future__ import annotations

import mink
import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.robot import RobotProfile

from sim2or_sim.backends.mujoco import scene

_PERIOD_S = 0.2  # an integration step of the solver, not of the robot
_CLOSE_ENOUGH_M = 2e-4
_CLOSE_ENOUGH_RAD = 2e-3


class Reach:
    """Solves for waypoints with mink's differential inverse kinematics and the daqp solver."""

    def __init__(self, robot: RobotProfile, *, steps: int = 60) -> None:
        """Builds the arm.

        Args:
            robot: The arm.
            steps: Most iterations for a waypoint.
        """
        self._model = scene.build_robot(robot)
        self._steps = steps
        self._configuration = mink.Configuration(self._model)
        self._task = mink.FrameTask(
            scene.GRASP_SITE, "site", position_cost=1.0, orientation_cost=0.05, lm_damping=1e-4
        )
        self._limits = [mink.ConfigurationLimit(self._model)]

    def solve(
        self, grasp_m: NDArray[np.float64], heading_rad: float, start_rad: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Joint positions with the gripper pointing down.

        Args:
            grasp_m: Shape (3,), where the point between the pads goes, in the base frame [m].
            heading_rad: Turn of the gripper about the vertical [rad]; at zero the jaws open along x.
            start_rad: Shape (n_joints,), a guess; the gripper joint is kept [rad].

        Returns:
            Shape (n_joints,), [rad]. Where pointing straight down is out of reach, the position wins.
        """
        target = mink.SE3.from_rotation_and_translation(mink.SO3.from_z_radians(heading_rad), grasp_m)
        self._task.set_target(target)
        self._configuration.update(np.asarray(start_rad, dtype=float))
        for _ in range(self._steps):
            error = self._task.compute_error(self._configuration)
            if np.linalg.norm(error[:3]) < _CLOSE_ENOUGH_M and np.linalg.norm(error[3:]) < _CLOSE_ENOUGH_RAD:
                break
            velocity = mink.solve_ik(
                self._configuration, [self._task], _PERIOD_S, "daqp", damping=1e-6, limits=self._limits
            )
            self._configuration.integrate_inplace(velocity, _PERIOD_S)
        solved: NDArray[np.float64] = self._configuration.q.copy()
        solved[-1] = start_rad[-1]
        return solved
