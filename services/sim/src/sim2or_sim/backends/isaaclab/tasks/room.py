"""What every environment of ours is made of: room, arm, cameras and ranges of the profiles."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from isaaclab.envs import ManagerBasedRLEnv, ManagerBasedRLEnvCfg, mdp
from isaaclab.managers import EventTermCfg, ObservationTermCfg, SceneEntityCfg
from isaaclab.utils import configclass
from sim2or.contracts.robot import RobotProfile, load_robot
from sim2or.contracts.task import Interval, TaskProfile, load_task
from sim2or.errors import ConfigError, choices

from sim2or_sim.backends.isaaclab import configuration
from sim2or_sim.backends.isaaclab.configuration import ROBOT, IsaacSettings
from sim2or_sim.backends.isaaclab.engine import prepare
from sim2or_sim.backends.isaaclab.usd import Assets, write_assets


@configclass
class RoomEnvCfg(ManagerBasedRLEnvCfg):
    """An operating room: its scene, physics and clock come from the profiles.

    Attributes:
        robot: The arm's profile.
        task: The task's profile.
        instruments: Those that may lie on the tray, each as likely; empty: all of the task's.
        randomize: Whether mass, friction and gains vary from one episode to the next.
    """

    robot: str = "so101"
    task: str = "handover"
    instruments: tuple[str, ...] = ()
    randomize: bool = True

    def furnish(self, task: TaskProfile) -> None:
        """Fills in scene, physics and clock; the arm starts at home.

        Args:
            task: The task; one with another ``physics_hz`` than the profile's gives coarser physics.

        Raises:
            ConfigError: An instrument that the task has not.
        """
        for name in self.instruments:
            if name not in task.instruments:
                raise ConfigError(f"instruments: {name!r}; {choices(name, task.instruments)}")
        robot, settings = load_robot(self.robot), IsaacSettings()
        self.sim = configuration.simulation(task, settings)
        self.decimation = task.substeps
        self.episode_length_s = task.limit_s
        self.scene = configuration.scene(assets(self.robot, self.task), 1, settings)
        arm = getattr(self.scene, ROBOT)
        arm.init_state.joint_pos = dict(zip(robot.joint_names, robot.home_rad, strict=True))
        self.remove(*(name for name in task.instruments if self.instruments and name not in self.instruments))

    def remove(self, *things: str) -> None:
        """Takes instruments or hands out of the scene, and what senses their contacts."""
        for name in things:
            for member in (name, configuration.contacts_of(name)):
                if getattr(self.scene, member, None) is not None:
                    setattr(self.scene, member, None)


class RoomEnv(ManagerBasedRLEnv):
    """Isaac Lab's environment with our profiles; a hand may hold an instrument (welds, open at first).

    Attributes:
        robot: The arm.
        task: The task.
        settings: Which physics it is.
        instruments: The names of those that may lie on the tray.
    """

    cfg: RoomEnvCfg

    def __init__(self, cfg: RoomEnvCfg, render_mode: str | None = None, **kwargs: Any) -> None:
        self.robot: RobotProfile = load_robot(cfg.robot)
        self.task: TaskProfile = load_task(cfg.task)
        self.settings = IsaacSettings()
        present = (name for name in self.task.instruments if getattr(cfg.scene, name, None) is not None)
        self.instruments = tuple(present)
        with prepare(self.settings, self.instruments):
            super().__init__(cfg, render_mode, **kwargs)

    @property
    def renders(self) -> bool:
        """Whether there are cameras."""
        return any(sensor(name) in self.scene.sensors for name in self.task.cameras)

    def numbers(self, env_ids: torch.Tensor | slice | None) -> torch.Tensor:
        """The numbers of some environments, shape (n,), int64."""
        every = torch.arange(self.num_envs, device=self.device)
        return every if env_ids is None else every[env_ids]


@lru_cache(maxsize=4)
def assets(robot: str, task: str) -> Assets:
    """The USD files, written once in a process and removed when it ends."""
    directory = Path(tempfile.mkdtemp(prefix="sim2or-usd-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return write_assets(load_robot(robot), load_task(task), directory)


def sensor(camera: str) -> str:
    """The name of a camera in the scene."""
    return f"camera_{camera}"


def add_cameras(cfg: RoomEnvCfg, task: TaskProfile) -> None:
    """Adds the policy's cameras to the scene."""
    size = {"height": task.images.height_px, "width": task.images.width_px}
    for name in task.cameras:
        made = configuration.camera(task, name, **size, settings=IsaacSettings())
        setattr(cfg.scene, sensor(name), made)


def picture(camera: str) -> ObservationTermCfg:
    """A camera's picture as an observation: uint8, shape (num_envs, height, width, 3)."""
    entity = SceneEntityCfg(sensor(camera))
    return ObservationTermCfg(func=mdp.image_rgb, params={"sensor_cfg": entity, "normalize": False})


def joints(names: tuple[str, ...]) -> SceneEntityCfg:
    """Joints of the arm, in that order."""
    return SceneEntityCfg(ROBOT, joint_names=list(names), preserve_order=True)


def pads(robot: RobotProfile) -> SceneEntityCfg:
    """The links whose pads grasp."""
    return SceneEntityCfg(ROBOT, body_names=[pad.body for pad in robot.tool.pads])


def to_default() -> EventTermCfg:
    """Everything back where the scene's configuration has it: the arm at home, the instruments parked."""
    return EventTermCfg(func=mdp.reset_scene_to_default, mode="reset", params={"reset_joint_targets": True})


def start(names: tuple[str, ...], offset_rad: Interval) -> EventTermCfg:
    """Each joint off its home by an offset drawn from the interval [rad]."""
    params = {"position_range": offset_rad, "velocity_range": (0.0, 0.0), "asset_cfg": joints(names)}
    return EventTermCfg(func=mdp.reset_joints_by_offset, mode="reset", params=params)


def mass(name: str, factor: Interval) -> EventTermCfg:
    """Mass and inertia of a thing times a factor drawn from the interval."""
    params = {
        "asset_cfg": SceneEntityCfg(name),
        "mass_distribution_params": factor,
        "operation": "scale",
        "recompute_inertia": True,
    }
    return EventTermCfg(func=mdp.randomize_rigid_body_mass, mode="reset", params=params)


def friction(entity: SceneEntityCfg, nominal: float, factor: Interval) -> EventTermCfg:
    """Sliding friction of each shape, nominal times a factor; Newton has one for rest and for motion."""
    low, high = (nominal * value for value in factor)
    params = {
        "asset_cfg": entity,
        "static_friction_range": (low, high),
        "dynamic_friction_range": (low, high),
        "restitution_range": (0.0, 0.0),
        "num_buckets": 64,
    }
    return EventTermCfg(func=mdp.randomize_rigid_body_material, mode="reset", params=params)


def gains(factor: Interval) -> EventTermCfg:
    """Stiffness and damping of each servo times factors drawn from the interval."""
    params = {
        "asset_cfg": SceneEntityCfg(ROBOT),
        "stiffness_distribution_params": factor,
        "damping_distribution_params": factor,
        "operation": "scale",
    }
    return EventTermCfg(func=mdp.randomize_actuator_gains, mode="reset", params=params)


def varied(robot: RobotProfile, task: TaskProfile, names: Sequence[str]) -> dict[str, EventTermCfg]:
    """What the task varies in the physics of the arm and of these instruments, from its ranges."""
    ranges = task.ranges
    terms = {"gains": gains(ranges.gain_factor)}
    terms |= {
        "pad_friction": friction(pads(robot), robot.tool.pad_friction.slide, ranges.grip_friction_factor)
    }
    for name in names or task.instruments:
        slide = task.instruments[name].friction.slide
        terms[f"{name}_mass"] = mass(name, ranges.mass_factor)
        terms[f"{name}_friction"] = friction(SceneEntityCfg(name), slide, ranges.grip_friction_factor)
    return terms


def settled() -> EventTermCfg:
    """Last of a reset: links and cameras go where it has put them, so that no picture is of the past."""
    return EventTermCfg(func=_forward, mode="reset")


def _forward(env: RoomEnv, env_ids: torch.Tensor | slice) -> None:
    env.sim.forward()
