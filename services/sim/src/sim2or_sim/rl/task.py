"""What is learnt: a task's observation, rewards and success as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from torch import Tensor

from sim2or_sim.rl import grasp, reach
from sim2or_sim.rl.action import DELTA_MAX_RAD, LEAD_MAX_RAD
from sim2or_sim.rl.contract import ActionContract, Channel, Contract
from sim2or_sim.rl.state import State

TaskName = Literal["reach", "grasp"]


@dataclass(frozen=True)
class LearningTask:
    """A task as an environment and an exporter need it.

    Attributes:
        name: ``reach`` or ``grasp``.
        actions: How many joints act: the first ones.
        episode_steps: Control periods in an episode.
        hold_steps: Achieved in so many steps at an episode's end it counts.
        channels: Of the observation, in order.
        weights: Of the rewards, for one second.
        observation: Shape (n, size) from a state.
        rewards: Each term's value, shape (n,).
        achieved: Shape (n,), bool.
        error_m: Shape (n,), how far from the goal [m].
        success: What counts, for the contract.
        privileged: Whether it is told what only a simulator knows; no robot runs such a policy.
    """

    name: TaskName
    actions: int
    episode_steps: int
    hold_steps: int
    channels: tuple[Channel, ...]
    weights: Mapping[str, float]
    observation: Callable[[State], Tensor]
    rewards: Callable[[State], dict[str, Tensor]]
    achieved: Callable[[State], Tensor]
    error_m: Callable[[State], Tensor]
    success: Mapping[str, float]
    privileged: bool = False

    def total(self, rewards: Mapping[str, Tensor], period_s: float) -> Tensor:
        """The weighted sum for one control period, shape (n,)."""
        return period_s * torch.stack([self.weights[name] * value for name, value in rewards.items()]).sum(0)

    def contract(self, robot: RobotProfile, control_hz: float) -> Contract:
        """What is written beside checkpoints and exports."""
        acting = slice(self.actions)
        return Contract(
            task=self.name,
            robot=robot.name,
            calibration_id=robot.calibration_id,
            control_hz=control_hz,
            episode_steps=self.episode_steps,
            observation=self.channels,
            action=ActionContract(
                joints=robot.joint_names[acting],
                delta_max_rad=DELTA_MAX_RAD,
                lead_max_rad=LEAD_MAX_RAD,
                lower_rad=tuple(map(float, robot.lower_rad[acting])),
                upper_rad=tuple(map(float, robot.upper_rad[acting])),
            ),
            success=self.success,
        )


def learning_task(name: TaskName, robot: RobotProfile, task: TaskProfile, instrument: str) -> LearningTask:
    """The task of that name, in an operating room with that instrument."""
    joints = robot.joint_names
    if name == reach.NAME:
        return LearningTask(
            name=name,
            actions=reach.ACTION_JOINTS,
            episode_steps=reach.EPISODE_STEPS,
            hold_steps=reach.HOLD_STEPS,
            channels=reach.channels(joints),
            weights=reach.WEIGHTS,
            observation=reach.observation,
            rewards=reach.rewards,
            achieved=reach.achieved,
            error_m=reach.distance_m,
            success={"tolerance_m": reach.TOLERANCE_M, "hold_steps": reach.HOLD_STEPS},
        )
    rest_m = torch.tensor(task.tray.center_m[2] + task.instruments[instrument].rest_height_m)
    return LearningTask(
        name=name,
        actions=grasp.ACTION_JOINTS,
        episode_steps=grasp.EPISODE_STEPS,
        hold_steps=grasp.HOLD_STEPS,
        channels=grasp.channels(joints),
        weights=grasp.WEIGHTS,
        observation=partial(grasp.observation, rest_m=rest_m),
        rewards=partial(grasp.rewards, rest_m=rest_m),
        achieved=partial(grasp.achieved, rest_m=rest_m),
        error_m=grasp.distance_m,
        success={"lift_m": grasp.LIFT_M, "hold_steps": grasp.HOLD_STEPS, "rest_m": float(rest_m)},
        privileged=True,  # where the instrument lies
    )
