"""Reach: the point between the pads goes to a target in the reachable box and stays there."""

from __future__ import annotations

import torch
from torch import Tensor

from sim2or_sim.rl.contract import Channel
from sim2or_sim.rl.state import State

NAME = "reach"
ACTION_JOINTS = 5
"""The first five joints act: the gripper keeps its target."""
EPISODE_STEPS = 60
"""Two seconds at 30 Hz."""
TARGET_LOW_M, TARGET_HIGH_M = (0.16, -0.16, 0.05), (0.29, 0.18, 0.20)
"""The box that targets are drawn from, inside the safety kernel's box for the tool."""
START_RAD = 0.3
"""Each acting joint starts so far from home at most [rad]."""
TOLERANCE_M = 0.01
HOLD_STEPS = 5
"""Within the tolerance at the end of the episode and in the steps before it, this many in all."""
WEIGHTS = {"approach": 1.0, "precision": 2.0, "action_rate": -0.02, "speed": -0.002}
_FAR_M, _NEAR_M = 0.15, 0.01


def channels(joints: tuple[str, ...]) -> tuple[Channel, ...]:
    """The observation's channels in order."""
    acting = joints[:ACTION_JOINTS]
    return (
        Channel(name="position_rad", unit="rad", frame="joint", names=acting),
        Channel(name="command_from_position_rad", unit="rad", frame="joint", names=acting),
        Channel(name="target_m", unit="m", frame="base", names=("x", "y", "z")),
        Channel(name="target_from_tool_m", unit="m", frame="base", names=("x", "y", "z")),
    )


def observation(state: State) -> Tensor:
    """What the policy is given, shape (n, 16)."""
    position_rad = state.position_rad[:, :ACTION_JOINTS]
    return torch.cat(
        [
            position_rad,
            state.command_rad[:, :ACTION_JOINTS] - position_rad,
            state.target_m,
            state.target_m - state.tool_m,
        ],
        dim=-1,
    )


def distance_m(state: State) -> Tensor:
    """Shape (n,), from the tool point to the target [m]."""
    return (state.target_m - state.tool_m).square().sum(-1).sqrt()


def rewards(state: State) -> dict[str, Tensor]:
    """Each term's value before its weight, shape (n,), for one control period."""
    far_m = distance_m(state)
    return {
        "approach": 1.0 - torch.tanh(far_m / _FAR_M),
        "precision": 1.0 - torch.tanh(far_m / _NEAR_M),
        "action_rate": (state.action - state.previous_action).square().sum(-1),
        "speed": state.velocity_radps.square().sum(-1),
    }


def achieved(state: State) -> Tensor:
    """Shape (n,), bool: within the tolerance now."""
    return distance_m(state) <= TOLERANCE_M
