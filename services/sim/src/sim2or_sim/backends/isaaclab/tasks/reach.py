"""``Sim2or-Reach-SO101-v0``: the tool goes to a target and stays; its contract is ``sim2or_sim.rl.reach``."""

from __future__ import annotations

import torch
from isaaclab.managers import EventTermCfg
from isaaclab.utils import configclass
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task

from sim2or_sim.backends.isaaclab.tasks import learning, room
from sim2or_sim.backends.isaaclab.tasks.learning import LearningEnv, LearningEnvCfg
from sim2or_sim.backends.mujoco.scene import PALM_BODIES
from sim2or_sim.rl import reach

PHYSICS_HZ = 120.0
"""Coarser than the hand-over's: nothing is touched."""


@configclass
class ReachEnvCfg(LearningEnvCfg):
    """The arm alone at its table, without instruments, hands and cameras."""

    def __post_init__(self) -> None:
        robot, task = load_robot(self.robot), load_task(self.task)
        self.furnish(task.model_copy(update={"physics_hz": PHYSICS_HZ}))
        self.remove(*task.instruments, *PALM_BODIES)
        self.learn(
            joints=reach.ACTION_JOINTS,
            steps=reach.EPISODE_STEPS,
            observation=_observation,
            reward=_reward,
            weights=reach.WEIGHTS,
            achieved=_achieved,
            hold_steps=reach.HOLD_STEPS,
        )
        acting = robot.joint_names[: reach.ACTION_JOINTS]
        self.events = {
            "to_default": room.to_default(),
            **({"gains": room.gains(task.ranges.gain_factor)} if self.randomize else {}),
            "start": room.start(acting, (-reach.START_RAD, reach.START_RAD)),
            "aim": EventTermCfg(func=_aim, mode="reset"),
            "started": learning.started(),
        }


class ReachEnv(LearningEnv):
    """Targets are drawn from the contract's box at each reset; ``target_m`` may be set after it."""

    cfg: ReachEnvCfg


def _observation(env: ReachEnv) -> torch.Tensor:
    return reach.observation(env.state())


def _reward(env: ReachEnv, name: str) -> torch.Tensor:
    return reach.rewards(env.state())[name]


def _achieved(env: ReachEnv) -> torch.Tensor:
    return reach.achieved(env.state())


def _aim(env: ReachEnv, env_ids: torch.Tensor | slice) -> None:
    envs = env.numbers(env_ids)
    low, high = (
        torch.tensor(corner, device=env.device) for corner in (reach.TARGET_LOW_M, reach.TARGET_HIGH_M)
    )
    env.target_m[envs] = low + (high - low) * torch.rand(len(envs), 3, device=env.device)
