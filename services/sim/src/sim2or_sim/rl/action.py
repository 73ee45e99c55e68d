"""Actions: bounded steps of joint targets, the same in every engine and in the exported model."""

from __future__ import annotations

import torch
from torch import Tensor

DELTA_MAX_RAD = 0.03
"""Farthest that a target moves in a control period [rad]: 0.9 rad/s at 30 Hz, and from one full step to the
opposite one 54 rad/s²: inside the safety kernel's 3.5 rad/s and 60 rad/s²."""

LEAD_MAX_RAD = 0.06
"""Farthest that a target is from where its joint is [rad]: room for a delay of 50 ms and for holding on.
Without it an arm that presses on something winds its targets up by radians, to be unwound before it lifts."""


def next_command(
    command_rad: Tensor,
    position_rad: Tensor,
    action: Tensor,
    joints: Tensor,
    lower_rad: Tensor,
    upper_rad: Tensor,
) -> Tensor:
    """The joint targets after an action.

    Args:
        command_rad: Shape (n, n_joints), the targets in force [rad].
        position_rad: Shape (n, n_joints), where the joints are [rad].
        action: Shape (n, n_actions); cut to −1…1.
        joints: Shape (n_joints, n_actions), float: one where an action moves a joint.
        lower_rad: Shape (n_joints,), lower ends of the ranges [rad].
        upper_rad: Shape (n_joints,), upper ends [rad].

    Returns:
        Shape (n, n_joints), inside the ranges [rad].
    """
    moved_rad = command_rad + DELTA_MAX_RAD * action.clamp(-1.0, 1.0) @ joints.T
    near_rad = torch.minimum(
        torch.maximum(moved_rad, position_rad - LEAD_MAX_RAD), position_rad + LEAD_MAX_RAD
    )
    wanted_rad = torch.where(joints.sum(-1) > 0, near_rad, command_rad)
    return torch.minimum(torch.maximum(wanted_rad, lower_rad), upper_rad)
