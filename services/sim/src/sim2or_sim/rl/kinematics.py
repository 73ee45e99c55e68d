"""Forward kinematics of a robot profile in torch: for batches, and inside an exported model."""

from __future__ import annotations

import torch
from sim2or.contracts.kinematics import transform
from sim2or.contracts.robot import Body, RobotProfile
from torch import Tensor, nn


class ToolKinematics(nn.Module):
    """Where the point between the pads and the tool's axes are, in the base frame.

    Args:
        robot: The arm.
    """

    def __init__(self, robot: RobotProfile) -> None:
        super().__init__()
        chain = _chain(robot)
        self._joints = [robot.joint_names.index(body.joint) if body.joint else -1 for body in chain]
        fixed = [transform(body.position_m, body.quaternion_wxyz) for body in chain]
        self.register_buffer("_turns", torch.tensor([pose[:3, :3].tolist() for pose in fixed]))
        self.register_buffer("_shifts", torch.tensor([pose[:3, 3].tolist() for pose in fixed]))
        self.register_buffer("_grasp", torch.tensor(robot.tool.grasp_m))
        self._turns: Tensor
        self._shifts: Tensor
        self._grasp: Tensor

    def forward(self, position_rad: Tensor) -> tuple[Tensor, Tensor]:
        """Tool point and axes.

        Args:
            position_rad: Shape (n, n_joints), [rad].

        Returns:
            tool_m: Shape (n, 3), [m].
            tool_axes: Shape (n, 3, 3), rotation of the tool's body in the base frame.
        """
        n = position_rad.shape[0]
        at = torch.zeros_like(position_rad[:, :3])
        axes = torch.eye(3, dtype=position_rad.dtype, device=position_rad.device).expand(n, 3, 3)
        cos, sin = torch.cos(position_rad), torch.sin(position_rad)
        for turn, shift, joint in zip(self._turns, self._shifts, self._joints, strict=True):
            at = at + axes @ shift
            axes = axes @ turn
            if joint >= 0:
                x, y, z = axes.unbind(-1)
                c, s = cos[:, joint, None], sin[:, joint, None]
                axes = torch.stack([c * x + s * y, c * y - s * x, z], dim=-1)
        return at + axes @ self._grasp, axes


def _chain(robot: RobotProfile) -> list[Body]:
    """The bodies from the base to the tool's."""
    bodies = {body.name: body for body in robot.bodies}
    chain = [bodies[robot.tool.body]]
    while chain[0].parent:
        chain.insert(0, bodies[chain[0].parent])
    return chain
