"""Many operating rooms in MuJoCo at once, stepped by MuJoCo's own threads without Python in between."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import mujoco
import numpy as np
from mujoco.rollout import Rollout
from numpy.typing import NDArray
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile

from sim2or_sim.backends.mujoco import scene
from sim2or_sim.rl.starts import Starts

Floats = NDArray[np.float64]
Ids = NDArray[np.intp]

VARIANTS = 8
"""Servo gains, masses and frictions differ between so many models; room i has number i % VARIANTS."""
_FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS
_TIME, _LIFT_OFF_M = 1, 0.0002
_PARKED_M = (3.0, 3.0, -0.5)  # where an instrument that plays no part lies still
_GAIN_SPREAD = 0.1
_TOO_FAR = 1e6  # a number beyond this, or none, is a physics that blew up [m, rad, m/s or rad/s]


@dataclass(frozen=True)
class Instruments:
    """Where the instruments are.

    Attributes:
        at_m: Shape (n, 3), their origins in the base frame [m].
        tip_axis: Shape (n, 3), unit vectors toward their tips.
        pads: Shape (n, 2), bool: touched by the fixed and the moving pad.
    """

    at_m: Floats
    tip_axis: Floats
    pads: NDArray[np.bool_]


class Rooms:
    """n rooms: the world's model without what is only seen.

    Attributes:
        position_rad: Shape (n, n_joints), [rad].
        velocity_radps: Shape (n, n_joints), [rad/s].
    """

    def __init__(
        self,
        robot: RobotProfile,
        task: TaskProfile,
        *,
        count: int,
        instrument: str,
        physics_hz: float,
        threads: int,
        handled: bool,
        seed: int = 0,
    ) -> None:
        """Builds the models.

        Args:
            robot: The arm.
            task: The operating room.
            count: How many rooms.
            instrument: What lies on the tray.
            physics_hz: Physics steps per second, a whole multiple of the control rate.
            threads: How many step the rooms.
            handled: Whether the instrument plays a part; otherwise it is out of the way.
            seed: Of the models' variants.
        """
        self._robot, self._task, self._handled = robot, task, handled
        self._substeps = round(physics_hz / task.control_hz)
        self._physics_hz = physics_hz
        model = solid_model(robot, task, instrument, physics_hz)
        variants = [_varied(model, task, np.random.default_rng([seed, number])) for number in range(VARIANTS)]
        self._models = [variants[number % VARIANTS] for number in range(count)]
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._rollout = Rollout(nthread=threads)
        self._state = np.zeros((count, mujoco.mj_stateSize(model, _FULL)))
        self._touch = np.zeros((count, len(scene.PAD_GEOMS)))
        self._qpos = slice(_TIME, _TIME + model.nq)
        joints = [model.joint(name) for name in robot.joint_names]
        self._q = _TIME + np.array([joint.qposadr[0] for joint in joints])
        self._v = _TIME + model.nq + np.array([joint.dofadr[0] for joint in joints])
        self._free = _TIME + int(model.joint(scene.INSTRUMENT_BODY).qposadr[0])
        self._rest_m = task.tray.center_m[2] + task.instruments[instrument].rest_height_m
        longest = round(task.bounds.lag_s[1] * physics_hz)
        self._past = np.zeros((count, -(-longest // self._substeps) + 1, len(joints)))
        self._which = np.zeros((count, self._substeps, 1), dtype=np.intp)
        self._names = ("_state", "_touch", "_past", "_which")

    @property
    def position_rad(self) -> Floats:
        """Shape (n, n_joints), [rad]."""
        return self._state[:, self._q]

    @property
    def velocity_radps(self) -> Floats:
        """Shape (n, n_joints), [rad/s]."""
        return self._state[:, self._v]

    def put(self, ids: Ids, starts: Starts) -> None:
        """Begins episodes in some rooms, the arm at rest and told to stay."""
        self._state[ids] = 0.0
        self._state[np.ix_(ids, self._q)] = starts.start_rad
        at = self._free
        x_m, y_m, _ = self._task.tray.center_m
        half = (starts.instrument[:, 2] - np.pi / 2) / 2  # at yaw zero the tip points along the base's −y
        if self._handled:
            height = np.full(len(ids), self._rest_m + _LIFT_OFF_M)
            place = [x_m + starts.instrument[:, 0], y_m + starts.instrument[:, 1], height]
            self._state[ids, at : at + 3] = np.stack(place, axis=-1)
        else:
            self._state[ids, at : at + 3] = _PARKED_M
        self._state[ids, at + 3], self._state[ids, at + 6] = np.cos(half), np.sin(half)
        self._touch[ids] = 0.0
        self._past[ids] = starts.start_rad[:, None]
        lag = np.round(starts.lag_s * self._physics_hz).astype(np.intp)[:, None]
        age = np.maximum(0, -(-(lag - np.arange(self._substeps)) // self._substeps))
        self._which[ids] = (self._past.shape[1] - 1 - age)[:, :, None]

    def step(self, command_rad: Floats) -> None:
        """One control period; each room hears the targets after its own delay.

        Args:
            command_rad: Shape (n, n_joints), [rad].
        """
        self._past[:, :-1] = self._past[:, 1:]
        self._past[:, -1] = command_rad
        control = np.take_along_axis(self._past, self._which, axis=1)
        states, sensed = self._rollout.rollout(self._models, self._data, self._state, control)
        self._state, self._touch = states[:, -1].copy(), sensed[:, -1].copy()

    def instruments(self) -> Instruments:
        """Where they are and what touches them."""
        free = self._state[:, self._free : self._free + 7]
        w, x, y, z = free[:, 3:].T
        axis = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=-1)
        return Instruments(at_m=free[:, :3].copy(), tip_axis=axis, pads=self._touch > 0)

    def broken(self) -> NDArray[np.bool_]:
        """Shape (n,): the physics blew up."""
        sound: NDArray[np.bool_] = np.all(np.abs(self._state) < _TOO_FAR, axis=-1)
        return ~sound

    def snapshot(self) -> dict[str, NDArray[np.generic]]:
        """Everything that moves, to continue from."""
        return {name[1:]: getattr(self, name).copy() for name in self._names}

    def restore(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Continues from a snapshot."""
        for name in self._names:
            setattr(self, name, arrays[name[1:]].copy())

    def close(self) -> None:
        """Ends the threads."""
        self._rollout.close()


def solid_model(robot: RobotProfile, task: TaskProfile, instrument: str, physics_hz: float) -> mujoco.MjModel:
    """The world's model without geoms that nothing touches, with a sensor for each pad on the instrument."""
    spec = scene.scene_spec(robot, task, instrument)
    for geom in [geom for geom in spec.geoms if not (geom.contype or geom.conaffinity)]:
        spec.delete(geom)
    for geom in spec.geoms:
        geom.material = ""
    for thing in [*spec.textures, *spec.materials, *spec.lights, *spec.cameras]:
        spec.delete(thing)
    spec.option.timestep = 1.0 / physics_hz
    for pad in scene.PAD_GEOMS:
        sensor = spec.add_sensor(name=pad, type=mujoco.mjtSensor.mjSENS_CONTACT)
        sensor.objtype, sensor.objname = mujoco.mjtObj.mjOBJ_GEOM, pad
        sensor.reftype, sensor.refname = mujoco.mjtObj.mjOBJ_BODY, scene.INSTRUMENT_BODY
        sensor.intprm[:3] = [1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND), 0, 1]
    return spec.compile()


def _varied(model: mujoco.MjModel, task: TaskProfile, rng: np.random.Generator) -> mujoco.MjModel:
    """A copy with other servo gains, masses and frictions, from the task's ranges."""
    varied = copy.copy(model)
    gain = rng.uniform(1 - _GAIN_SPREAD, 1 + _GAIN_SPREAD)
    varied.actuator_gainprm[:, 0] *= gain
    varied.actuator_biasprm[:, 1:3] *= gain
    body = model.body(scene.INSTRUMENT_BODY).id
    mass = rng.uniform(*task.ranges.mass_factor)
    varied.body_mass[body] *= mass
    varied.body_inertia[body] *= mass
    grip = [model.geom(name).id for name in scene.PAD_GEOMS]
    varied.geom_friction[grip] *= rng.uniform(*task.ranges.grip_friction_factor)
    mujoco.mj_setConst(varied, mujoco.MjData(varied))
    return varied
