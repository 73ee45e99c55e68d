"""The numbers of a running Newton model that Isaac Lab's own calls do not reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np
from isaaclab.sim import SimulationContext
from isaaclab_newton.physics import NewtonManager
from newton import BodyFlags, ModelBuilder, ModelFlags
from newton.solvers import SolverMuJoCo
from numpy.typing import NDArray
from sim2or.contracts.scenario import Scenario, Visuals

from sim2or_sim.backends.isaaclab.configuration import ROBOT
from sim2or_sim.backends.isaaclab.engine import Numbers
from sim2or_sim.backends.isaaclab.painting import TABLE, TRAY, Painter, by_environment, where
from sim2or_sim.backends.mujoco.scene import PAD_GEOMS

_FRICTION = ("shape_material_mu", "shape_material_mu_torsional", "shape_material_mu_rolling")
_PADS = tuple(f"/{pad}_touch" for pad in PAD_GEOMS)


class NewtonEngine:
    """``Engine`` on Newton's MuJoCo-Warp.

    Args:
        batch: How many environments.
        instruments: Their instruments.
    """

    def __init__(self, batch: int, instruments: Sequence[str]) -> None:
        self._model, self._solver = NewtonManager.get_model(), NewtonManager._solver
        self._sim = SimulationContext.instance()
        self._painter = Painter(self._model, batch)
        self._nominal = {name: getattr(self._model, name).numpy().copy() for name in _FRICTION}
        shapes = by_environment(self._model.shape_label, batch)
        tools = tuple(f"{name}/" for name in instruments)
        self._grip = where(shapes, lambda name: name.endswith(_PADS) or name.startswith(tools))
        self._ground = where(shapes, lambda name: name.startswith((TABLE, TRAY)))
        bodies = by_environment(self._model.body_label, batch)
        self._bodies = np.column_stack([where(bodies, name.__eq__) for name in instruments])
        welded = np.array(self._model.mujoco.equality_constraint_body2.numpy())
        self._welds = np.argsort(welded)[np.searchsorted(np.sort(welded), self._bodies)]
        names = [self._solver.mj_model.geom(i).name for i in range(self._solver.mj_model.ngeom)]
        self._pads = np.array([_touching(names, f"/{ROBOT}/", pad) for pad in PAD_GEOMS])
        self._solid = np.array([_touching(names, f"/{name}/", "") for name in instruments])

    def step(self, count: int) -> None:
        """So many physics steps."""
        for _ in range(count):
            self._sim.step(render=False)

    def apply(self, envs: Numbers, scenarios: Sequence[Scenario]) -> None:
        """Puts the frictions of scenarios on environments, starting from the nominal ones."""
        factors = np.array([(one.grip_friction_factor, one.table_friction_factor) for one in scenarios])
        grip, ground = self._grip[envs], self._ground[envs]
        shapes = np.concatenate([grip, ground], axis=1)
        scaled = np.repeat(factors, [grip.shape[1], ground.shape[1]], axis=1)
        for name, nominal in self._nominal.items():
            _write(getattr(self._model, name), shapes, nominal[shapes] * scaled)
        NewtonManager.add_model_change(ModelFlags.SHAPE_PROPERTIES)

    def paint(self, envs: Numbers, visuals: Sequence[Visuals]) -> None:
        """Turns the hues of drape and tray, starting from the nominal ones."""
        self._painter.paint(envs, visuals)

    def park(self, envs: Numbers, kinds: Numbers) -> None:
        """Instrument ``kinds[i]`` of environment ``envs[i]`` moves freely; nothing moves its others."""
        flags = np.full((len(envs), self._bodies.shape[1]), int(BodyFlags.KINEMATIC))
        flags[np.arange(len(envs)), kinds] = int(BodyFlags.DYNAMIC)
        _write(self._model.body_flags, self._bodies[envs], flags)
        NewtonManager.add_model_change(ModelFlags.BODY_PROPERTIES)

    def attach(self, envs: Numbers, kinds: Numbers, poses: NDArray[np.float64]) -> None:
        """The surgeon's hand holds instruments where they are, by a weld."""
        welds = self._welds[envs, kinds]
        _write(self._model.mujoco.equality_constraint_relpose, welds, poses)
        self._switch(welds, True)

    def release(self, envs: Numbers) -> None:
        """The surgeon's hand holds nothing."""
        self._switch(self._welds[envs], False)

    def touching(self, kinds: Numbers) -> NDArray[np.bool_]:
        """Whether the pads touch the instrument of each environment, shape (batch, 2): fixed, moving."""
        data = self._solver.mjw_data
        count = int(data.nacon.numpy()[0])
        worlds, pairs = data.contact.worldid.numpy()[:count], data.contact.geom.numpy()[:count]
        touch = data.contact.dist.numpy()[:count] < data.contact.includemargin.numpy()[:count]
        worlds, pairs = worlds[touch], pairs[touch]
        solid = self._solid[kinds[worlds]]  # shape (contacts, geoms)
        found = np.zeros((len(kinds), 2), dtype=bool)
        for one, other in ((pairs[:, 0], pairs[:, 1]), (pairs[:, 1], pairs[:, 0])):
            own = solid[np.arange(len(one)), one]
            for side, pad in enumerate(self._pads):
                found[worlds[own & pad[other]], side] = True
        return found

    def _switch(self, welds: Numbers, held: bool) -> None:
        _write(self._model.mujoco.equality_constraint_enabled, welds, held)
        NewtonManager.add_model_change(ModelFlags.CONSTRAINT_PROPERTIES)


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


def _write(array: Any, rows: Any, values: Any) -> None:
    """Changes rows of one of Newton's arrays."""
    changed = array.numpy().copy()
    changed[rows] = values
    array.assign(changed)


def _touching(names: Sequence[str], owner: str, start: str) -> NDArray[np.bool_]:
    """Shape (geoms,), whether it is a touching geom of an owner whose last name begins so."""
    return np.array(
        [owner in name and "_touch" in name and name.rsplit("/", 1)[-1].startswith(start) for name in names]
    )
