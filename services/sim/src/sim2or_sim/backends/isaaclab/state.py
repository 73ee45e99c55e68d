"""What moves in each environment, as arrays on the host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from isaaclab.utils.math import matrix_from_quat
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.bool_]

_TOO_FAR = 1e6  # a number beyond this is a physics that blew up [m, rad, m/s or rad/s]


@dataclass(frozen=True)
class State:
    """One row for each environment, in its base frame.

    Attributes:
        position_rad: Shape (batch, n_joints), in the profile's order [rad].
        velocity_radps: Shape (batch, n_joints), likewise [rad/s].
        gripper: Shape (batch, 7), pose of the tool's body, quaternion xyzw [m].
        instrument: Shape (batch, 7), pose of the instrument in use, quaternion xyzw [m].
        velocity: Shape (batch, 6), its linear and angular velocity [m/s, rad/s].
    """

    position_rad: Floats
    velocity_radps: Floats
    gripper: Floats
    instrument: Floats
    velocity: Floats

    @cached_property
    def numbers(self) -> Floats:
        """Shape (batch, n), everything in a row."""
        parts = (self.position_rad, self.velocity_radps, self.gripper, self.instrument, self.velocity)
        return np.concatenate(parts, axis=1)

    @cached_property
    def gripper_turns(self) -> Floats:
        """Shape (batch, 3, 3), the gripper's rotation."""
        return rotations(self.gripper[:, 3:])

    @cached_property
    def instrument_turns(self) -> Floats:
        """Shape (batch, 3, 3), the instrument's rotation."""
        return rotations(self.instrument[:, 3:])

    def sound(self) -> Rows:
        """Shape (batch,), whether every number can be believed."""
        # What is not a number is not below anything either.
        found: Rows = np.all(np.abs(self.numbers) < _TOO_FAR, axis=1)
        return found

    def keeping(self, earlier: State, rows: Rows) -> State:
        """This state, but with an earlier one's rows."""
        return State(
            **{
                name: np.where(rows[:, None], getattr(earlier, name), getattr(self, name))
                for name in State.__dataclass_fields__
            }
        )


def rotations(quaternions_xyzw: Floats) -> Floats:
    """Rotation matrices, shape (n, 3, 3), of quaternions, shape (n, 4)."""
    found: Floats = matrix_from_quat(torch.from_numpy(quaternions_xyzw)).numpy()
    return found


def host(data: Any) -> Floats:
    """A copy of one of Isaac Lab's buffers on the host, in double precision."""
    copied: Floats = data.torch.detach().cpu().numpy().astype(np.float64)
    return copied
