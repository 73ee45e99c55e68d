"""Applies a scenario's masses, frictions, gains and looks to a model, always from the nominal one."""

from __future__ import annotations

import colorsys

import mujoco
import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.scenario import CameraOffset, Scenario, Visuals

from sim2or_sim.backends.mujoco import scene

_VARIED = (
    "body_mass",
    "body_inertia",
    "geom_friction",
    "geom_rgba",
    "light_diffuse",
    "cam_pos",
    "cam_quat",
    "eq_data",
    "actuator_gainprm",
    "actuator_biasprm",
)


class Variation:
    """Knows the nominal values of a model and puts a scenario on it."""

    def __init__(self, model: mujoco.MjModel) -> None:
        """Remembers the nominal values of ``model``, which must be as built."""
        self._nominal = {name: getattr(model, name).copy() for name in _VARIED}
        self._headlight = (model.vis.headlight.ambient.copy(), model.vis.headlight.diffuse.copy())
        self._extent, self._center = float(model.stat.extent), model.stat.center.copy()
        self._instrument = model.body(scene.INSTRUMENT_BODY).id
        names = [model.geom(i).name for i in range(model.ngeom)]
        self._table = [i for i, name in enumerate(names) if name.startswith(scene.TABLE_GEOMS_PREFIX)]
        self._tray = [i for i, name in enumerate(names) if name.startswith(scene.TRAY_GEOMS_PREFIX)]
        instrument = [i for i in range(model.ngeom) if model.geom_bodyid[i] == self._instrument]
        self._grip = [names.index(name) for name in scene.PAD_GEOMS] + instrument

    def apply(self, model: mujoco.MjModel, data: mujoco.MjData, scenario: Scenario) -> None:
        """Puts masses, frictions, gains and looks on the model; everything else returns to nominal."""
        for name, values in self._nominal.items():
            getattr(model, name)[:] = values
        model.body_mass[self._instrument] *= scenario.mass_factor
        model.body_inertia[self._instrument] *= scenario.mass_factor
        model.geom_friction[self._grip] *= scenario.grip_friction_factor
        model.geom_friction[self._table + self._tray] *= scenario.table_friction_factor
        # A servo's torque is gain · target + bias · (1, position, velocity): both terms of it stiffen.
        model.actuator_gainprm[:, 0] *= scenario.gain_factor
        model.actuator_biasprm[:, 1:3] *= scenario.gain_factor
        mujoco.mj_setConst(model, data)
        model.stat.extent, model.stat.center = self._extent, self._center
        self.apply_visuals(model, scenario.visuals)

    def apply_visuals(self, model: mujoco.MjModel, visuals: Visuals) -> None:
        """Puts light, hues and camera offsets on the model."""
        ambient, diffuse = self._headlight
        model.vis.headlight.ambient = ambient * visuals.light_factor
        model.vis.headlight.diffuse = diffuse * visuals.light_factor
        model.light_diffuse[:] = self._nominal["light_diffuse"] * visuals.light_factor
        for geoms, turns in ((self._table, visuals.table_hue_turns), (self._tray, visuals.tray_hue_turns)):
            for geom in geoms:
                model.geom_rgba[geom, :3] = shifted_hue(self._nominal["geom_rgba"][geom, :3], turns)
        for name, offset in visuals.cameras.items():
            self._move_camera(model, model.camera(name).id, offset)

    def _move_camera(self, model: mujoco.MjModel, camera: int, offset: CameraOffset) -> None:
        nominal = self._nominal["cam_quat"][camera]
        shift = np.empty(3)
        mujoco.mju_rotVecQuat(shift, np.array(offset.shift_m), nominal)
        model.cam_pos[camera] = self._nominal["cam_pos"][camera] + shift
        mujoco.mju_mulQuat(model.cam_quat[camera], nominal, scene.euler_quat(offset.turn_rad))


def shifted_hue(rgb: NDArray[np.float32], turns: float) -> tuple[float, float, float]:
    """Turns the hue of a colour by a part of the colour circle."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(c) for c in rgb))
    return colorsys.hsv_to_rgb((hue + turns) % 1.0, saturation, value)
