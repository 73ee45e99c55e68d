"""The instrument on the tray of each environment, as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from isaaclab.managers import EventTermCfg
from isaaclab.utils.math import matrix_from_quat, quat_from_euler_xyz
from sim2or.contracts.task import Interval, Piece, Ranges

from sim2or_sim.backends.isaaclab.configuration import ROBOT, parked_m
from sim2or_sim.backends.isaaclab.engine import Numbers, make_engine

if TYPE_CHECKING:
    from sim2or_sim.backends.isaaclab.tasks.room import RoomEnv

LIFT_OFF_M = 0.0002  # the instrument starts this far above the tray and settles

Envs = torch.Tensor
"""Numbers of environments, shape (n,), integers."""


class Tray:
    """One instrument is in use in each environment; the others are parked.

    Attributes:
        names: The instruments in the room, as the profile orders them.
        engine: Contacts, and what is held fast.
        instrument: Shape (num_envs,), int64, which is in use.
        rest_m: Shape (n_instruments,), height of each one's origin when it lies, in the base frame [m].
    """

    def __init__(self, env: RoomEnv) -> None:
        self._env = env
        task, device = env.task, env.device
        self.names = env.instruments
        self.engine = make_engine(env.settings, env.scene, self.names, env.renders)
        self._center_m = torch.tensor(task.tray.center_m[:2], device=device)
        rest_m = [task.tray.center_m[2] + task.instruments[name].rest_height_m for name in self.names]
        self.rest_m = torch.tensor(rest_m, device=device)
        self.instrument = torch.zeros(env.num_envs, dtype=torch.int64, device=device)
        self._gripper = env.scene[ROBOT].body_names.index(env.robot.tool.body)
        self._grasp_m = torch.tensor(env.robot.tool.grasp_m, device=device)

    def lay(self, envs: Envs, instrument: torch.Tensor, at_m: torch.Tensor, yaw_rad: torch.Tensor) -> None:
        """Lays an instrument on each tray.

        Args:
            envs: Which environments.
            instrument: Shape (n,), which instrument in each.
            at_m: Shape (n, 2), its origin from the tray's centre along the base's x and y [m].
            yaw_rad: Shape (n,), zero has the tip point along the base's −y [rad].
        """
        self.instrument[envs] = instrument
        height = self.rest_m[instrument] + LIFT_OFF_M
        laid = upright(torch.cat([self._center_m + at_m, height[:, None]], dim=1), yaw_rad - torch.pi / 2)
        for number, name in enumerate(self.names):
            used = (instrument == number)[:, None]
            self.put(name, envs, torch.where(used, laid, self.parked(number, len(envs))))
        self.engine.park(numbers(envs), numbers(instrument))
        self.engine.release(numbers(envs))

    def put(self, name: str, envs: Envs, pose: torch.Tensor) -> None:
        """Puts a thing somewhere in its environments, at rest.

        Args:
            name: Of the thing in the scene.
            envs: Which environments.
            pose: Shape (n, 7), in the base frame, quaternion xyzw [m].
        """
        moved, ids = pose.clone(), envs.to(torch.int32)
        moved[:, :3] += self._env.scene.env_origins[envs]
        body = self._env.scene[name]
        body.write_root_pose_to_sim_index(root_pose=moved, env_ids=ids)
        body.write_root_velocity_to_sim_index(root_velocity=torch.zeros_like(pose[:, :6]), env_ids=ids)

    def parked(self, number: int, count: int) -> torch.Tensor:
        """Where a thing hangs while it is not in use, shape (count, 7)."""
        pose = torch.tensor([*parked_m(number), 0.0, 0.0, 0.0, 1.0], device=self._env.device)
        return pose.expand(count, 7)

    def poses(self) -> torch.Tensor:
        """Of the instruments in use, shape (num_envs, 7), in the world, quaternion xyzw [m]."""
        return self._used([self._env.scene[name].data.root_link_pose_w.torch for name in self.names])

    def speeds(self) -> torch.Tensor:
        """Linear speeds of the instruments in use, shape (num_envs,) [m/s]."""
        every = [self._env.scene[name].data.root_link_vel_w.torch for name in self.names]
        speeds: torch.Tensor = torch.linalg.vector_norm(self._used(every)[:, :3], dim=1)
        return speeds

    def instruments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Origins, (num_envs, 3) [m], and rotations, (num_envs, 3, 3), of those in use, in the base frame."""
        pose = self.poses()
        return pose[:, :3] - self._env.scene.env_origins, matrix_from_quat(pose[:, 3:])

    def grasp(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The point between the pads, (num_envs, 3) [m], and the tool's rotation, (num_envs, 3, 3)."""
        return tool(self._env, self._gripper, self._grasp_m)

    def pads(self) -> torch.Tensor:
        """Whether the fixed and the moving pad touch the instrument, shape (num_envs, 2)."""
        return torch.from_numpy(self.engine.touching(numbers(self.instrument))).to(self._env.device)

    def truth(self) -> torch.Tensor:
        """Shape (num_envs, 12): position [m] and tip axis in the base, then both as the tool sees them."""
        at, turn = self.instruments()
        grasp, turned = self.grasp()
        axis, back = turn[:, :, 0], turned.transpose(1, 2)
        near = (back @ (at - grasp)[..., None])[..., 0], (back @ axis[..., None])[..., 0]
        return torch.cat([at, axis, *near], dim=1)

    def _used(self, every: list[torch.Tensor]) -> torch.Tensor:
        """Each environment's row of the instrument in use."""
        rows = torch.arange(self._env.num_envs, device=self._env.device)
        return torch.stack(every, dim=1)[rows, self.instrument]


def tool(env: RoomEnv, body: int, point_m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A point of a link, (num_envs, 3) [m], and the link's rotation, (num_envs, 3, 3), in the base frame."""
    pose = env.scene[ROBOT].data.body_link_pose_w.torch[:, body]
    turn = matrix_from_quat(pose[:, 3:])
    return pose[:, :3] - env.scene.env_origins + turn @ point_m, turn


def numbers(values: torch.Tensor) -> Numbers:
    """Integers on the host, as the engine takes them."""
    given: Numbers = values.cpu().numpy().astype(np.int64)
    return given


def upright(at_m: torch.Tensor, yaw_rad: torch.Tensor) -> torch.Tensor:
    """Poses turned about the vertical: shape (n, 7), quaternion xyzw [m]."""
    none = torch.zeros_like(yaw_rad)
    return torch.cat([at_m, quat_from_euler_xyz(none, none, yaw_rad)], dim=1)


def laid(ranges: Ranges) -> EventTermCfg:
    """An instrument, each as likely, lies on the tray where the ranges say."""
    place = {"x_m": ranges.x_m, "y_m": ranges.y_m, "yaw_rad": ranges.yaw_rad}
    return EventTermCfg(func=_lay, mode="reset", params=place)


def _lay(
    env: RoomEnv, env_ids: torch.Tensor | slice, x_m: Interval, y_m: Interval, yaw_rad: tuple[Piece, ...]
) -> None:
    envs = env.numbers(env_ids)
    count, device = len(envs), env.device
    chosen = torch.randint(len(env.tray.names), (count,), device=device)
    at_m = torch.stack([_uniform(x_m, count, device), _uniform(y_m, count, device)], dim=1)
    env.tray.lay(envs, chosen, at_m, _mixture(yaw_rad, count, device))


def _uniform(interval: Interval, count: int, device: str) -> torch.Tensor:
    low, high = interval
    return low + (high - low) * torch.rand(count, device=device)


def _mixture(pieces: tuple[Piece, ...], count: int, device: str) -> torch.Tensor:
    weights = torch.tensor([piece.weight for piece in pieces], device=device)
    bounds = torch.tensor([piece.between for piece in pieces], device=device)
    low, high = bounds[torch.multinomial(weights, count, replacement=True)].unbind(dim=1)
    return low + (high - low) * torch.rand(count, device=device)
