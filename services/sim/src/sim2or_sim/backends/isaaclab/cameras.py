"""Cameras of all environments: rendered when asked for, dressed in a scenario's looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from isaaclab.scene import InteractiveScene, InteractiveSceneCfg
from isaaclab.sensors import Camera as Sensor
from numpy.typing import NDArray
from sim2or.contracts.scenario import CameraOffset, Visuals
from sim2or.contracts.task import Camera, TaskProfile
from sim2or.errors import ConfigError

from sim2or_sim.backends.isaaclab import configuration
from sim2or_sim.backends.isaaclab.configuration import ROBOT, IsaacSettings
from sim2or_sim.backends.isaaclab.engine import Engine
from sim2or_sim.backends.mujoco.scene import axes_quat, euler_quat

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

    def add_to(self, scene: InteractiveSceneCfg) -> None:
        """Adds the policy's cameras to the scene's configuration."""
        for name in self._task.cameras if self._render else ():
            setattr(scene, f"camera_{name}", self._cfg(name, *self._size()))

    def bind(self, scene: InteractiveScene, engine: Engine) -> None:
        """Takes the cameras of the scene that was built from that configuration."""
        self._engine, self._arm = engine, scene[ROBOT]
        if self._render:
            sensors = {name: scene[f"camera_{name}"] for name in self._task.cameras}
            self._sensors = {(name, *self._size()): sensor for name, sensor in sensors.items()}

    def dress(self, index: int, visuals: Visuals) -> None:
        """Puts light, hues and camera offsets on one environment."""
        self._visuals[index] = visuals
        self._engine.paint(index, visuals)
        for (name, _, _), sensor in self._sensors.items():
            self._mount(sensor, name, index)
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
            self._taken[key] = self._shoot(self._sensor(key))
        light = self._visuals[index].light_factor
        bright = self._taken[key][index].astype(np.float32) * light
        lit: Picture = np.clip(np.rint(bright), 0, 255).astype(np.uint8)
        return lit

    def _shoot(self, sensor: Sensor) -> Picture:
        sensor.reset()  # marks what it has as outdated
        data: Any = sensor.data.output["rgb"]
        pictures: Picture = data.torch.cpu().numpy().copy()
        return pictures

    def _sensor(self, key: tuple[str, int, int]) -> Sensor:
        """The camera of that size; a size for people is made when it is first asked for."""
        if key not in self._sensors:
            sensor = Sensor(self._cfg(*key))
            sensor._initialize_callback(None)  # the scene is up: what its start would have called
            self._focus(sensor, *key)
            self._sensors[key] = sensor
            for index in self._visuals:
                self._mount(sensor, key[0], index)
        return self._sensors[key]

    def _focus(self, sensor: Sensor, name: str, height: int, width: int) -> None:
        """Keeps the vertical field of view in a picture of another shape."""
        focal_px = height / 2 / np.tan(self._places[name].fovy_rad / 2)
        matrix = np.array([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]])
        sensor.set_intrinsic_matrices(np.tile(matrix, (sensor.num_instances, 1, 1)).astype(np.float32))

    def _mount(self, sensor: Sensor, name: str, index: int) -> None:
        """Fixes a camera to its body with the scenario's offset."""
        place = self._places[name]
        body = self._arm.body_names.index(place.body)
        pose = self._arm.data.body_link_pose_w.torch[index, body].cpu().numpy().astype(np.float64)
        at, turn = mounted(place, self._visuals[index].cameras.get(name, CameraOffset()))
        x, y, z, w = pose[3:]
        world_at, world_turn = np.empty(3), np.empty(4)
        mujoco.mju_mulPose(world_at, world_turn, pose[:3], np.array([w, x, y, z]), at, turn)
        sensor.set_world_poses(
            torch.tensor(world_at[None], dtype=torch.float32),
            torch.tensor(np.roll(world_turn, -1)[None], dtype=torch.float32),
            env_ids=[index],
            convention="opengl",
        )

    def _cfg(self, name: str, height: int, width: int) -> Any:
        return configuration.camera(self._task, name, height=height, width=width, settings=self._settings)

    def _size(self) -> tuple[int, int]:
        return self._task.images.height_px, self._task.images.width_px


def mounted(place: Camera, offset: CameraOffset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A camera in its body, looking along −z with y up: position, shape (3,) [m], and quaternion wxyz."""
    nominal = axes_quat(place.x_axis, place.y_axis)
    shift, turn = np.empty(3), np.empty(4)
    mujoco.mju_rotVecQuat(shift, np.array(offset.shift_m), nominal)
    mujoco.mju_mulQuat(turn, nominal, euler_quat(offset.turn_rad))
    return np.array(place.at_m) + shift, turn
