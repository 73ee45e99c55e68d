"""PhysX behind the calls of an engine: without Kit on any device, or in Isaac Sim's Kit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import warp as wp
from isaaclab.scene import InteractiveScene
from isaaclab.sensors import Camera
from isaaclab.utils import math as isaac
from isaaclab_newton.physics import NewtonBackendCfg
from numpy.typing import NDArray
from sim2or.contracts.scenario import Scenario, Visuals

from sim2or_sim.backends.isaaclab.configuration import ROBOT, ROOM, IsaacSettings, contacts_of
from sim2or_sim.backends.isaaclab.engine import Numbers
from sim2or_sim.backends.isaaclab.painting import Painter
from sim2or_sim.backends.isaaclab.physx_view import view_of
from sim2or_sim.backends.isaaclab.usd import FIXED

_IMPEDANCE, _TIME_S = 0.95, 0.02
"""How much and how fast a weld of MuJoCo holds, as the surgeon's hand does there: MuJoCo's defaults."""
_STIFFNESS = _IMPEDANCE / (1 - _IMPEDANCE) / (_IMPEDANCE * _TIME_S) ** 2
"""Of that weld at rest, per mass [1/s²]. Source: MuJoCo's documentation, modeling, solver parameters."""


class PhysxEngine:
    """Frictions, colours, contacts and what is held fast, in each environment.

    PhysX has no weld that can be switched while it runs, so the surgeon's hand holds by a force and a torque
    that are renewed before every physics step: a spring as stiff as MuJoCo's weld. What is parked has no
    weight and touches nothing.

    Args:
        scene: The scene after the simulation's first reset.
        instruments: Their names.
        painter: What turns hues, or None when nothing Newton draws is asked for.
    """

    def __init__(self, scene: InteractiveScene, instruments: Sequence[str], painter: Painter | None) -> None:
        self._sim, self._painter = scene.sim, painter
        self._bodies = [scene[name] for name in instruments]
        self._contacts = [scene[contacts_of(name)] for name in instruments]
        self._grips = [_Frictions(scene[name]) for name in (ROBOT, *instruments)]
        self._room = _Frictions(scene[ROOM])
        for (
            body
        ) in self._bodies:  # PhysX finds the principal axes anew; the first episode has them as the next
            body.set_inertias_index(inertias=body.data.body_inertia.torch.clone())
        self._views = [view_of(body) for body in self._bodies]
        self._weightless = np.zeros((len(self._bodies), scene.num_envs), dtype=bool)
        self._held = np.full(scene.num_envs, -1)
        self._anchors = torch.zeros((scene.num_envs, 7), device=scene.device)

    def apply(self, envs: Numbers, scenarios: Sequence[Scenario]) -> None:
        """Puts the scenarios' frictions on environments, starting from the nominal ones."""
        for grip in self._grips:
            grip.scale(envs, np.array([scenario.grip_friction_factor for scenario in scenarios]))
        self._room.scale(envs, np.array([scenario.table_friction_factor for scenario in scenarios]))

    def paint(self, envs: Numbers, visuals: Sequence[Visuals]) -> None:
        """Turns the hues of drape and tray in environments; RTX keeps the nominal ones."""
        if self._painter is not None:
            self._painter.paint(envs, visuals)

    def park(self, envs: Numbers, kinds: Numbers) -> None:
        """Of each environment one instrument falls and touches, the others hang where they are."""
        self._weightless[:, envs] = True
        self._weightless[kinds, envs] = False
        for view, flags in zip(self._views, self._weightless, strict=True):
            view.set_weightless(flags)

    def attach(self, envs: Numbers, kinds: Numbers, poses: NDArray[np.float64]) -> None:
        """The surgeon's hand holds instruments where they are.

        Args:
            envs: Which environments.
            kinds: The number of each one's instrument.
            poses: Shape (k, 7), their poses in the world, quaternion xyzw [m].
        """
        self._held[envs] = kinds
        for kind in np.unique(kinds):
            chosen = kinds == kind
            ids = self._ids(envs[chosen])
            pose = torch.tensor(poses[chosen], dtype=torch.float32, device=self._anchors.device)
            inside = self._bodies[kind].data.body_com_pose_b.torch[ids, 0]
            held = isaac.combine_frame_transforms(pose[:, :3], pose[:, 3:], inside[:, :3], inside[:, 3:])
            self._anchors[ids] = torch.cat(held, dim=-1)

    def release(self, envs: Numbers) -> None:
        """The surgeon's hand holds nothing."""
        for body in self._bodies:
            body.permanent_wrench_composer.reset(env_ids=self._ids(envs))
        self._held[envs] = -1

    def touching(self, kinds: Numbers) -> NDArray[np.bool_]:
        """Whether the pads touch the instrument of each environment, shape (batch, 2): fixed, moving.

        Args:
            kinds: The number of the instrument in use in each environment.
        """
        forces = [sensor.data.force_matrix_w.torch[:, 0].norm(dim=-1) for sensor in self._contacts]
        touched = (torch.stack(forces) > 0.0).cpu().numpy()
        found: NDArray[np.bool_] = touched[kinds, np.arange(len(kinds))]
        return found

    def step(self, count: int) -> None:
        """Takes that many physics steps."""
        for _ in range(count):
            for kind in np.unique(self._held[self._held >= 0]):
                self._pull(self._bodies[kind], np.flatnonzero(self._held == kind))
            self._sim.step(render=False)

    def _pull(self, body: Any, envs: Numbers) -> None:
        """Renews the force and the torque that hold a body in some environments."""
        step_s = self._sim.get_physics_dt()
        body.update(step_s)  # what it has is of the step before
        ids = self._ids(envs)
        data, anchor = body.data, self._anchors[ids]
        pose, speed = data.root_com_pose_w.torch[ids], data.root_com_vel_w.torch[ids]
        turn = isaac.quat_mul(anchor[:, 3:], isaac.quat_conjugate(pose[:, 3:]))
        left = isaac.axis_angle_from_quat(isaac.quat_unique(turn))
        away = torch.cat([anchor[:, :3] - pose[:, :3], left], dim=-1)
        wanted = hold(away, speed, step_s)
        axes = isaac.matrix_from_quat(pose[:, 3:])
        inertia = axes @ data.body_inertia.torch[ids].reshape(-1, 3, 3) @ axes.mT
        body.permanent_wrench_composer.set_forces_and_torques_index(
            forces=(wanted[:, :3] * data.body_mass.torch[ids])[:, None],
            torques=(inertia @ wanted[:, 3:, None]).mT,
            env_ids=ids,
            is_global=True,
        )
        body.write_data_to_sim()

    def _ids(self, envs: Numbers) -> torch.Tensor:
        return torch.tensor(envs, dtype=torch.int32, device=self._anchors.device)


def hold(away: torch.Tensor, speed: torch.Tensor, step_s: float) -> torch.Tensor:
    """The acceleration of a spring that is critically damped in steps of that length.

    With v' = v + step·a and x' = x + step·v' what is left shrinks by 1 − r a step (a double pole), where r is
    the step times the spring's frequency; r is at most a half, which bounds the stiffness in long steps.

    Args:
        away: Where to pull, from here: any shape [m or rad].
        speed: The same shape [m/s or rad/s].
        step_s: The physics step [s].
    """
    r = min(0.5, step_s * _STIFFNESS**0.5)
    wanted: torch.Tensor = (r / step_s) ** 2 * away - r * (2 - r) / step_s * speed
    return wanted


class _Frictions:
    """The frictions of an asset's colliders that scenarios vary."""

    def __init__(self, asset: Any) -> None:
        self._view = view_of(asset)
        self._nominal = self._view.materials()
        self._values = self._nominal.copy()
        self._varied = self._nominal[..., 2] < FIXED / 2

    def scale(self, envs: Numbers, factors: NDArray[np.float64]) -> None:
        """Sets frictions of environments to the nominal ones times a factor each."""
        scaled = np.where(self._varied[envs], factors[:, None], 1.0)
        self._values[envs, :, :2] = self._nominal[envs, :, :2] * scaled[..., None]
        self._view.set_materials(self._values)


@contextmanager
def prepared() -> Iterator[None]:
    """While a scene for PhysX is built.

    Isaac Lab 3.0.0 asks Warp for pinned memory for PhysX's assets on any device, which only CUDA's driver can
    give; without one the host's own memory serves.
    """
    if not wp.is_cuda_available():
        host = wp.get_device("cpu")
        host.pinned_allocator = host.default_allocator
    yield


def make(
    scene: InteractiveScene, instruments: Sequence[str], settings: IsaacSettings, render: bool
) -> PhysxEngine:
    """The engine of a scene that the simulation has read.

    Args:
        scene: The scene.
        instruments: Their names.
        settings: What draws, among others.
        render: Whether images may be asked for; without, nothing is drawn and nothing painted.
    """
    painter = None
    cameras = any(isinstance(sensor, Camera) for sensor in scene.sensors.values())
    if render and cameras and settings.renderer == "newton":
        drawn = NewtonBackendCfg(physics_cfg=scene.sim.cfg.physics, device=scene.sim.device)
        painter = Painter(scene.sim.get_or_create_backend(drawn).model, scene.num_envs)
    return PhysxEngine(scene, instruments, painter)
