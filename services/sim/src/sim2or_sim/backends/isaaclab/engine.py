"""The numbers of a running Newton model that Isaac Lab's own calls do not reach, by environment and name."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mujoco
import numpy as np
from isaaclab_newton.physics import NewtonManager
from newton import BodyFlags, ModelBuilder, ModelFlags
from newton.solvers import SolverMuJoCo
from numpy.typing import NDArray
from sim2or.contracts.scenario import Scenario, Visuals

from sim2or_sim.backends.isaaclab.configuration import ROBOT, ROOM
from sim2or_sim.backends.mujoco.scene import PAD_GEOMS, TABLE_GEOMS_PREFIX, TRAY_GEOMS_PREFIX

_FRICTION = ("shape_material_mu", "shape_material_mu_torsional", "shape_material_mu_rolling")


class Engine:
    """Frictions, colours, contacts and what is held fast, in each environment.

    Args:
        batch: How many environments.
        instruments: Their names.
    """

    def __init__(self, batch: int, instruments: Sequence[str]) -> None:
        self._model, self._solver = NewtonManager.get_model(), NewtonManager._solver
        self._nominal = {name: getattr(self._model, name).numpy().copy() for name in _FRICTION}
        self._colors = self._model.shape_color.numpy().copy()
        self._shapes = [_Shapes(self._model.shape_label, env, instruments) for env in range(batch)]
        labels = list(self._model.body_label)
        welded = list(self._model.mujoco.equality_constraint_body2.numpy())
        self._bodies = [
            {name: labels.index(f"{_root(env)}/{name}") for name in instruments} for env in range(batch)
        ]
        self._welds = [{name: welded.index(body) for name, body in bodies.items()} for bodies in self._bodies]
        names = [self._solver.mj_model.geom(i).name for i in range(self._solver.mj_model.ngeom)]
        self._pads = [_geoms(names, f"/{ROBOT}/", pad) for pad in PAD_GEOMS]
        self._solid = {name: _geoms(names, f"/{name}/", "") for name in instruments}

    def apply(self, env: int, scenario: Scenario) -> None:
        """Puts a scenario's frictions on an environment, starting from the nominal ones."""
        shapes = self._shapes[env]
        for name, nominal in self._nominal.items():
            array = getattr(self._model, name)
            values = array.numpy().copy()
            values[shapes.all] = nominal[shapes.all]
            values[shapes.grip] *= scenario.grip_friction_factor
            values[shapes.table + shapes.tray] *= scenario.table_friction_factor
            array.assign(values)
        NewtonManager.add_model_change(ModelFlags.SHAPE_PROPERTIES)

    def paint(self, env: int, visuals: Visuals) -> None:
        """Turns the hues of drape and tray in an environment."""
        shapes, colors = self._shapes[env], self._model.shape_color.numpy().copy()
        for group, turns in ((shapes.table, visuals.table_hue_turns), (shapes.tray, visuals.tray_hue_turns)):
            for shape in group:
                hue, saturation, value = colorsys.rgb_to_hsv(*map(float, self._colors[shape]))
                colors[shape] = colorsys.hsv_to_rgb((hue + turns) % 1.0, saturation, value)
        self._model.shape_color.assign(colors)

    def attach(self, env: int, name: str, pose: NDArray[np.float64]) -> None:
        """The surgeon's hand holds an instrument where it is: MuJoCo's weld, a little soft.

        Args:
            env: Which environment.
            name: The instrument.
            pose: Shape (7,), its pose in the world, quaternion xyzw [m].
        """
        array = self._model.mujoco.equality_constraint_relpose
        poses = array.numpy().copy()
        poses[self._welds[env][name]] = pose
        array.assign(poses)
        self._switch(env, [name])

    def release(self, env: int) -> None:
        """The surgeon's hand holds nothing."""
        self._switch(env, [])

    def _switch(self, env: int, held: Sequence[str]) -> None:
        array = self._model.mujoco.equality_constraint_enabled
        enabled = array.numpy().copy()
        for name, weld in self._welds[env].items():
            enabled[weld] = name in held
        array.assign(enabled)
        NewtonManager.add_model_change(ModelFlags.CONSTRAINT_PROPERTIES)

    def park(self, env: int, parked: Iterable[str], free: Iterable[str]) -> None:
        """Nothing moves an instrument that is parked."""
        flags = self._model.body_flags.numpy().copy()
        for name in parked:
            flags[self._bodies[env][name]] = int(BodyFlags.KINEMATIC)
        for name in free:
            flags[self._bodies[env][name]] = int(BodyFlags.DYNAMIC)
        self._model.body_flags.assign(flags)
        NewtonManager.add_model_change(ModelFlags.BODY_PROPERTIES)

    def touching(self, instruments: Sequence[str]) -> NDArray[np.bool_]:
        """Whether the pads touch the instrument of each environment, shape (batch, 2): fixed, moving.

        Args:
            instruments: The instrument in use in each environment.
        """
        data = self._solver.mjw_data
        count = int(data.nacon.numpy()[0])
        worlds, pairs = data.contact.worldid.numpy()[:count], data.contact.geom.numpy()[:count]
        touch = data.contact.dist.numpy()[:count] < data.contact.includemargin.numpy()[:count]
        found = np.zeros((len(instruments), 2), dtype=bool)
        for world, (one, two) in zip(worlds[touch], pairs[touch], strict=True):
            solid = self._solid[instruments[world]]
            other = two if one in solid else one if two in solid else -1
            for side, pad in enumerate(self._pads):
                found[world, side] |= other in pad
        return found


def weld_hook(instruments: Sequence[str]) -> Callable[[ModelBuilder, int, Any, Any], None]:
    """What adds a weld for each instrument, open at first, to every environment that Newton builds."""

    def add(builder: ModelBuilder, env: int, at_m: Any, turn_xyzw: Any) -> None:
        for name in instruments:
            own = [i for i, label in enumerate(builder.body_label) if label.endswith(f"/{name}")]
            builder.add_custom_values(
                **{
                    "mujoco:equality_constraint_type": int(SolverMuJoCo.EqType.WELD),
                    "mujoco:equality_constraint_objtype": int(mujoco.mjtObj.mjOBJ_BODY),
                    "mujoco:equality_constraint_body1": -1,
                    "mujoco:equality_constraint_body2": own[-1],
                    "mujoco:equality_constraint_torquescale": 1.0,
                    "mujoco:equality_constraint_enabled": False,
                    "mujoco:equality_constraint_world": builder.current_world,
                    "mujoco:equality_constraint_label": f"{builder.body_label[own[-1]]}_weld",
                }
            )

    return add


class _Shapes:
    """Which shapes of an environment are what."""

    def __init__(self, labels: Sequence[str], env: int, instruments: Sequence[str]) -> None:
        root = f"{_root(env)}/"
        self.all = [i for i, label in enumerate(labels) if label.startswith(root)]
        names = {i: labels[i].removeprefix(root) for i in self.all}
        pads = tuple(f"/{pad}_touch" for pad in PAD_GEOMS)
        self.table = [i for i, name in names.items() if name.startswith(f"{ROOM}/{TABLE_GEOMS_PREFIX}")]
        self.tray = [i for i, name in names.items() if name.startswith(f"{ROOM}/{TRAY_GEOMS_PREFIX}")]
        self.grip = [
            i
            for i, name in names.items()
            if name.endswith(pads) or name.startswith(tuple(f"{tool}/" for tool in instruments))
        ]


def _root(env: int) -> str:
    return f"/World/envs/env_{env}"


def _geoms(names: Sequence[str], owner: str, start: str) -> set[int]:
    """Numbers of the touching geoms of an owner whose last name begins so."""
    return {
        i
        for i, name in enumerate(names)
        if owner in name and "_touch" in name and name.rsplit("/", 1)[-1].startswith(start)
    }
