"""``Sim2or-Grasp-SO101-v0``: the hand-over's grasp phase; the contract is ``sim2or_sim.rl.grasp``."""

from __future__ import annotations

from dataclasses import replace

import torch
from isaaclab.utils import configclass
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task

from sim2or_sim.backends.isaaclab.tasks import learning, room, tray
from sim2or_sim.backends.isaaclab.tasks.learning import LearningEnv, LearningEnvCfg
from sim2or_sim.backends.isaaclab.tasks.tray import Tray
from sim2or_sim.backends.mujoco.scene import PALM_BODIES
from sim2or_sim.rl import grasp
from sim2or_sim.rl.state import State

PHYSICS_HZ = 300.0
"""Coarser than the hand-over's; contacts are a little softer for it (MuJoCo keeps them above two steps)."""


@configclass
class GraspEnvCfg(LearningEnvCfg):
    """Instruments on their tray, without hands and cameras."""

    def __post_init__(self) -> None:
        robot, task = load_robot(self.robot), load_task(self.task)
        self.furnish(task.model_copy(update={"physics_hz": PHYSICS_HZ}))
        self.remove(*PALM_BODIES)
        self.learn(
            joints=grasp.ACTION_JOINTS,
            steps=grasp.EPISODE_STEPS,
            observation=_observation,
            reward=_reward,
            weights=grasp.WEIGHTS,
            achieved=_achieved,
            hold_steps=grasp.HOLD_STEPS,
        )
        self.events = {
            "to_default": room.to_default(),
            "start": room.start(robot.joint_names, task.ranges.start_rad),
            **(room.varied(robot, task, self.instruments) if self.randomize else {}),
            "laid": tray.laid(task.ranges),
            "started": learning.started(),
        }


class GraspEnv(LearningEnv):
    """An instrument lies on the tray.

    Attributes:
        tray: The instruments.
    """

    cfg: GraspEnvCfg

    def load_managers(self) -> None:
        """What the terms look at comes before the terms."""
        self.tray = Tray(self)
        super().load_managers()

    def gather(self) -> State:
        """Reads the state, the instrument in use among it."""
        at_m, turn = self.tray.instruments()
        return replace(super().gather(), instrument_m=at_m, tip_axis=turn[:, :, 0], pads=self.tray.pads())

    @property
    def rest_m(self) -> torch.Tensor:
        """Shape (num_envs,), height of the instrument's origin at rest, in the base frame [m]."""
        return self.tray.rest_m[self.tray.instrument]


def _observation(env: GraspEnv) -> torch.Tensor:
    return grasp.observation(env.state(), env.rest_m)


def _reward(env: GraspEnv, name: str) -> torch.Tensor:
    return grasp.rewards(env.state(), env.rest_m)[name]


def _achieved(env: GraspEnv) -> torch.Tensor:
    return grasp.achieved(env.state(), env.rest_m)
