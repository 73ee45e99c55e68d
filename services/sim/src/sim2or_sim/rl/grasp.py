"""Grasp: the hand-over's grasp phase; both pads hold the instrument and it is lifted off the tray."""

from __future__ import annotations

import torch
from torch import Tensor

from sim2or_sim.rl.contract import Channel
from sim2or_sim.rl.state import State

NAME = "grasp"
ACTION_JOINTS = 6
EPISODE_STEPS = 90
"""Three seconds at 30 Hz."""
LIFT_M = 0.05
"""The instrument's origin is so far above its rest, as the hand-over's rule asks."""
HOLD_STEPS = 5
"""Held and lifted at the end of the episode and in the steps before it, this many in all."""
WEIGHTS = {
    "approach": 1.0,
    "precision": 1.0,
    "orient": 0.5,
    "jaws": 0.5,
    "touch": 0.5,
    "grasp": 3.0,
    "lift": 8.0,
    "press": -100.0,
    "action_rate": -0.005,
}
AIM_M = (0.008, 0.0, -0.006)
"""Where the instrument's origin belongs between open jaws, in the tool's frame from the tool point [m]: off
the fixed pad, and the pads reach below its middle."""
_FAR_M, _NEAR_M = 0.10, 0.015
_OPEN_RAD = 0.4


def channels(joints: tuple[str, ...]) -> tuple[Channel, ...]:
    """The observation's channels in order."""
    axes = ("x", "y", "z")
    return (
        Channel(name="position_rad", unit="rad", frame="joint", names=joints),
        Channel(name="command_from_position_rad", unit="rad", frame="joint", names=joints),
        Channel(name="tool_m", unit="m", frame="base", names=axes),
        Channel(name="instrument_from_tool_m", unit="m", frame="tool", names=axes),
        Channel(name="tip_axis", unit="1", frame="tool", names=axes),
        Channel(name="lift_m", unit="m", frame="base", names=("z",)),
    )


def observation(state: State, rest_m: Tensor) -> Tensor:
    """What the policy is given, shape (n, 22).

    Args:
        state: Now.
        rest_m: Shape () or (n,), height of the instrument's origin at rest [m].
    """
    return torch.cat(
        [
            state.position_rad,
            state.command_rad - state.position_rad,
            state.tool_m,
            _in_tool(state, state.instrument_m - state.tool_m),
            _in_tool(state, state.tip_axis),
            (state.instrument_m[:, 2] - rest_m).unsqueeze(-1),
        ],
        dim=-1,
    )


def distance_m(state: State) -> Tensor:
    """Shape (n,), from the tool point to the instrument's origin [m]."""
    return (state.instrument_m - state.tool_m).square().sum(-1).sqrt()


def rewards(state: State, rest_m: Tensor) -> dict[str, Tensor]:
    """Each term's value before its weight, shape (n,), for one control period."""
    off_m = _in_tool(state, state.instrument_m - state.tool_m) - state.tool_m.new_tensor(AIM_M)
    far_m = off_m.square().sum(-1).sqrt()
    near = 1.0 - torch.tanh(far_m / _NEAR_M)
    upright = state.tool_axes[:, 2, 2].clamp(0.0, 1.0)
    across = 1.0 - (state.tool_axes[:, :, 0] * state.tip_axis).sum(-1).abs()
    held = state.pads.all(-1).float()
    lift = ((state.instrument_m[:, 2] - rest_m) / LIFT_M).clamp(0.0, 1.0)
    opened = (state.position_rad[:, -1] / _OPEN_RAD).clamp(0.0, 1.0)
    return {
        "approach": 1.0 - torch.tanh(far_m / _FAR_M),
        "precision": near,
        "orient": upright * across,
        "jaws": torch.where(far_m > _NEAR_M, opened, 1.0 + 2.0 * (1.0 - opened)),
        "touch": near * state.pads.float().mean(-1),
        "grasp": held,
        "lift": held * lift,
        "press": (state.command_rad - state.position_rad)[:, :-1].square().sum(-1),
        "action_rate": (state.action - state.previous_action).square().sum(-1),
    }


def achieved(state: State, rest_m: Tensor) -> Tensor:
    """Shape (n,), bool: held by both pads and lifted now."""
    return state.pads.all(-1) & (state.instrument_m[:, 2] - rest_m >= LIFT_M)


def _in_tool(state: State, vector: Tensor) -> Tensor:
    """A vector of the base frame in the tool's."""
    return (state.tool_axes.transpose(1, 2) @ vector.unsqueeze(-1)).squeeze(-1)
