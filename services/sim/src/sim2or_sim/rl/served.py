"""The learnt policy as it is served: joints, targets and poses in, the next joint targets out."""

from __future__ import annotations

import torch
from sim2or.contracts.robot import RobotProfile
from sim2or.model_card import TensorSpec, channel_spec, state_spec
from torch import Tensor, nn

from sim2or_sim.rl.action import next_command
from sim2or_sim.rl.kinematics import ToolKinematics
from sim2or_sim.rl.state import State
from sim2or_sim.rl.task import LearningTask

_AXES = ("x", "y", "z")


def served_inputs(learning: LearningTask, robot: RobotProfile) -> tuple[TensorSpec, ...]:
    """What whoever asks must send, in the module's order."""
    joints = robot.joint_names
    common = (state_spec(joints), channel_spec("command_rad", unit="rad", names=joints))
    if learning.name == "reach":
        return (*common, channel_spec("target_m", unit="m", names=_AXES))
    return (
        *common,
        channel_spec("instrument_m", unit="m", names=_AXES),
        channel_spec("tip_axis", unit="1", names=_AXES),
    )


class ServedPolicy(nn.Module):
    """Kinematics, observation, normalisation, network and action in one graph.

    Args:
        learning: The task.
        robot: The arm.
        network: From observations to actions, its normaliser inside.
    """

    def __init__(self, learning: LearningTask, robot: RobotProfile, network: nn.Module) -> None:
        super().__init__()
        self._learning = learning
        self.network = network
        self.kinematics = ToolKinematics(robot)
        self.register_buffer("joints", torch.eye(len(robot.joints))[:, : learning.actions])
        self.register_buffer("lower", torch.tensor(robot.lower_rad, dtype=torch.float32))
        self.register_buffer("upper", torch.tensor(robot.upper_rad, dtype=torch.float32))
        self.joints: Tensor
        self.lower: Tensor
        self.upper: Tensor

    def forward(self, position_rad: Tensor, command_rad: Tensor, *goal: Tensor) -> Tensor:
        """One decision.

        Args:
            position_rad: Shape (n, n_joints), measured [rad].
            command_rad: Shape (n, n_joints), the targets in force; measured positions at an episode's start
                [rad].
            goal: Reach: target_m, shape (n, 3). Grasp: instrument_m and tip_axis, shape (n, 3) each.

        Returns:
            Shape (n, 1, n_joints), the next joint targets [rad].
        """
        tool_m, axes = self.kinematics(position_rad)
        at = torch.zeros_like(tool_m)
        target_m, instrument_m, tip_axis = (
            (goal[0], at, at) if self._learning.name == "reach" else (at, goal[0], goal[1])
        )
        none = torch.zeros_like(position_rad[:, : self.joints.shape[1]])
        state = State(
            position_rad=position_rad,
            velocity_radps=torch.zeros_like(position_rad),
            command_rad=command_rad,
            tool_m=tool_m,
            tool_axes=axes,
            target_m=target_m,
            instrument_m=instrument_m,
            tip_axis=tip_axis,
            pads=torch.zeros_like(tool_m[:, :2], dtype=torch.bool),
            action=none,
            previous_action=none,
        )
        action: Tensor = self.network(self._learning.observation(state))
        target_rad = next_command(command_rad, position_rad, action, self.joints, self.lower, self.upper)
        return target_rad.unsqueeze(1)
