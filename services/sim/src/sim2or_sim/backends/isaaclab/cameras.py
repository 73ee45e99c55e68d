"""Cameras of all environments: rendered when asked for, dressed in a scenario's looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from isaaclab.scene import InteractiveScene, InteractiveSceneCfg
from isaaclab.sensors import Camera as Sensor
from isaaclab.utils import math as isaac
from numpy.typing import NDArray
from sim2or.contracts.scenario import CameraOffset, Visuals
from sim2or.contracts.task import Camera, TaskProfile
from sim2or.errors import ConfigError

from sim2or_sim.backends.isaaclab import configuration
from sim2or_sim.backends.isaaclab.configuration import ROBOT, IsaacSettings
from sim2or_sim.backends.isaaclab.engine import Engine, Numbers
from sim2or_sim.backends.mujoco.scene import axes_quat

Picture = NDArray[np.uint8]


class Cameras:
    """The pictures of every camera and size; a picture is rendered once until something moves.

    Args:
        task: Whose cameras and views.
        settings: What renders them.
        render: Whether images may be asked for.
    """

    def __init__(self, task: TaskProfile, settings: IsaacSettings, render: bool) -> None:
        self._task, self._settings, self._render = task, settings, render
        self._places: Mapping[str, Camera] = {**task.cameras, **task.views}
        self._sensors: dict[tuple[str, int, int], Sensor] = {}
        self._taken: dict[tuple[str, int, int], NDArray[np.uint8]] = {}
        self._visuals: dict[int, Visuals] = {}
        self._undressed: set[int] = set()

    def add_to(self, scene: InteractiveSceneCfg) -> None:
        """Adds the policy's cameras to the scene's configuration."""
        for name in self._task.cameras if self._render else ():
            setattr(scene, f"camera_{name}", self._cfg(name, *self._size()))

    def bind(self, scene: InteractiveScene, engine: Engine) -> None:
        """Takes the cameras of the scene that was built from that configuration."""
        self._engine, self._arm = engine, scene[ROBOT]
        self._light = torch.ones(scene.num_envs, device=scene.device)
        if self._render:
            sensors = {name: scene[f"camera_{name}"] for name in self._task.cameras}
            self._sensors = {(name, *self._size()): sensor for name, sensor in sensors.items()}

    def dress(self, envs: Sequence[int] | Numbers, visuals: Sequence[Visuals]) -> None:
        """Puts light, hues and camera offsets on environments, to be seen from the next picture on."""
        for env, looks in zip(envs, visuals, strict=True):
            self._visuals[int(env)] = looks
            self._undressed.add(int(env))
        self.age()

    def age(self) -> None:
        """Something moved: pictures so far are of the past."""
        self._taken.clear()

    def picture(self, name: str, index: int, *, height: int = 0, width: int = 0) -> Picture:
        """One camera in one environment: uint8 (height, width, 3) RGB; size zero is the policy's.

        Raises:
            ConfigError: The world was made without rendering.
        """
        if not self._render:
            raise ConfigError("images: this world was made with render=False")
        key = (name, height, width) if height and width else (name, *self._size())
        if key not in self._taken:
            self._put_on()
            self._taken[key] = self._shoot(self._sensor(key))
        picture: Picture = self._taken[key][index].copy()
        return picture

    def _put_on(self) -> None:
        """What was dressed since the last picture, all at once."""
        if self._undressed:
            envs = np.array(sorted(self._undressed))
            looks = [self._visuals[env] for env in envs.tolist()]
            self._engine.paint(envs, looks)
            self._light[envs] = torch.tensor([one.light_factor for one in looks]).to(self._light)
            for (name, _, _), sensor in self._sensors.items():
                self._mount(sensor, name, envs)
            self._undressed.clear()

    def _shoot(self, sensor: Sensor) -> Picture:
        sensor.reset()  # marks what it has as outdated
        drawn: torch.Tensor = sensor.data.output["rgb"].torch
        bright = drawn.float().mul_(self._light[:, None, None, None]).round_().clamp_(0, 255)
        pictures: Picture = bright.to(torch.uint8).cpu().numpy()
        return pictures

    def _sensor(self, key: tuple[str, int, int]) -> Sensor:
        """The camera of that size; a size for people is made when it is first asked for."""
        if key not in self._sensors:
            sensor = Sensor(self._cfg(*key))
            sensor._initialize_callback(None)  # the scene is up: what its start would have called
            self._focus(sensor, *key)
            self._sensors[key] = sensor
            if self._visuals:
                self._mount(sensor, key[0], np.array(sorted(self._visuals)))
        return self._sensors[key]

    def _focus(self, sensor: Sensor, name: str, height: int, width: int) -> None:
        """Keeps the vertical field of view in a picture of another shape."""
        focal_px = height / 2 / np.tan(self._places[name].fovy_rad / 2)
        matrix = np.array([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]])
        sensor.set_intrinsic_matrices(np.tile(matrix, (sensor.num_instances, 1, 1)).astype(np.float32))

    def _mount(self, sensor: Sensor, name: str, envs: Numbers) -> None:
        """Fixes a camera to its body with the scenarios' offsets."""
        place = self._places[name]
        offsets = [self._visuals[env].cameras.get(name, CameraOffset()) for env in envs.tolist()]
        at, turn = mounted(place, offsets)
        number = self._arm.body_names.index(place.body)
        body = self._arm.data.body_link_pose_w.torch[envs, number].cpu().double()
        world_at, world_turn = isaac.combine_frame_transforms(body[:, :3], body[:, 3:], at, turn)
        sensor.set_world_poses(
            world_at.float(), world_turn.float(), env_ids=envs.tolist(), convention="opengl"
        )

    def _cfg(self, name: str, height: int, width: int) -> Any:
        return configuration.camera(self._task, name, height=height, width=width, settings=self._settings)

    def _size(self) -> tuple[int, int]:
        return self._task.images.height_px, self._task.images.width_px


def mounted(place: Camera, offsets: Sequence[CameraOffset]) -> tuple[torch.Tensor, torch.Tensor]:
    """A camera in its body, looking along −z with y up, with each of the offsets.

    Returns:
        Positions, shape (n, 3) [m], and quaternions xyzw, shape (n, 4), in double precision.
    """
    nominal = torch.tensor(np.roll(axes_quat(place.x_axis, place.y_axis), -1)).expand(len(offsets), 4)
    shift = torch.tensor([offset.shift_m for offset in offsets], dtype=torch.float64)
    turns = torch.tensor([offset.turn_rad for offset in offsets], dtype=torch.float64)
    turn = nominal
    for angles, axis in zip(turns.T, torch.eye(3, dtype=torch.float64), strict=True):  # x, new y, new z
        turn = isaac.quat_mul(turn, isaac.quat_from_angle_axis(angles, axis.expand(len(offsets), 3)))
    return torch.tensor(place.at_m, dtype=torch.float64) + isaac.quat_apply(nominal, shift), turn
