"""What a batch of arms and their surroundings are at one instant, whatever engine computes them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class State:
    """One instant of n environments: torch tensors, float32 unless said otherwise, frames: the robot's base.

    Attributes:
        position_rad: Shape (n, n_joints), measured joint positions, in the profile's order [rad].
        velocity_radps: Shape (n, n_joints), measured joint velocities [rad/s].
        command_rad: Shape (n, n_joints), the joint targets in force [rad].
        tool_m: Shape (n, 3), the point between the pads [m].
        tool_axes: Shape (n, 3, 3), rotation of the tool's body: x runs across the jaws, z is up when the
            fingers point down.
        target_m: Shape (n, 3), where the tool point shall go [m].
        instrument_m: Shape (n, 3), the instrument's origin [m].
        tip_axis: Shape (n, 3), unit vector toward the instrument's tip.
        pads: Shape (n, 2), bool: whether the fixed and the moving pad touch the instrument.
        action: Shape (n, n_actions), the newest action, in −1…1.
        previous_action: Shape (n, n_actions), the one before it; zero at an episode's start.
    """

    position_rad: Tensor
    velocity_radps: Tensor
    command_rad: Tensor
    tool_m: Tensor
    tool_axes: Tensor
    target_m: Tensor
    instrument_m: Tensor
    tip_axis: Tensor
    pads: Tensor
    action: Tensor
    previous_action: Tensor
