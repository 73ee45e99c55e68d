"""The World protocol on MuJoCo."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.scenario import Scenario, check_scenario, sample_visuals
from sim2or.contracts.task import TaskProfile
from sim2or.errors import ConfigError, MessageError
from sim2or.worlds.world import Sensed, Truth, WorldSpec

from sim2or_sim.backends.mujoco import scene
from sim2or_sim.backends.mujoco.delay import Delay
from sim2or_sim.backends.mujoco.painter import Painter
from sim2or_sim.backends.mujoco.room import HIDDEN
from sim2or_sim.backends.mujoco.variation import Variation
from sim2or_sim.task import Handover, HandState, Reading

_RELEASED_RAD = 0.05  # the jaws count as open beyond this
_LIFT_OFF_M = 0.0002  # the instrument starts this far above the tray and settles
_HIDDEN_M = np.array([0.0, 0.0, -5.0])
_WARNINGS = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)
_SAMPLES_PEOPLE = 4  # anti-aliasing; images for a policy go without, it costs twice the time


class _Room:
    """One operating room: a model for each instrument, and the episode that runs in it."""

    def __init__(self, robot: RobotProfile, task: TaskProfile, built: dict[str, mujoco.MjModel]) -> None:
        self._robot, self._task, self._built = robot, task, built
        self._models: dict[str, tuple[mujoco.MjModel, mujoco.MjData, Variation]] = {}
        self.scenario: Scenario | None = None
        self.stable = True

    def reset(self, scenario: Scenario) -> None:
        """Loads the scenario; nothing of the episode before is left."""
        task, name = self._task, scenario.instrument
        self.scenario, self.stable, self.instrument = scenario, True, task.instruments[name]
        self.model, self.data, self.variation = self._model(name)
        self.variation.apply(self.model, self.data, scenario)
        mujoco.mj_resetData(self.model, self.data)
        self._find(self.model)
        start = np.clip(
            np.array(self._robot.home_rad) + scenario.start_rad, self._robot.lower_rad, self._robot.upper_rad
        )
        self.data.qpos[self._joints], self.data.ctrl[:] = start, start
        rest_m = task.tray.center_m[2] + self.instrument.rest_height_m
        free = self._free
        self.data.qpos[free : free + 3] = (
            task.tray.center_m[0] + scenario.x_m,
            task.tray.center_m[1] + scenario.y_m,
            rest_m + _LIFT_OFF_M,
        )
        # Yaw zero points the tip (x of the instrument) along the base's -y.
        half = (scenario.yaw_rad - np.pi / 2) / 2
        self.data.qpos[free + 3 : free + 7] = (np.cos(half), 0.0, 0.0, np.sin(half))
        self.delay = Delay(round(scenario.lag_s * task.physics_hz), task.substeps, start)
        self.rule = Handover(task, rest_m, _RELEASED_RAD)
        self.steps = 0
        self._place_hand()
        mujoco.mj_forward(self.model, self.data)

    def step(self, target: NDArray[np.float64]) -> None:
        """One control period."""
        self.steps += 1
        if not self.stable:
            return
        kept = self.data.qpos.copy()
        for delayed, count in self.delay.pieces(target):
            self.data.ctrl[:] = delayed
            mujoco.mj_step(self.model, self.data, count)
        if self._broken():
            self._freeze(kept)
            return
        mujoco.mj_kinematics(self.model, self.data)
        if self.rule.done:
            return
        taken = self.rule.taken
        self.rule.update(self.reading())
        self._place_hand()
        if self.rule.taken and not taken:
            self._attach()

    @property
    def time_s(self) -> float:
        return self.steps * self._task.period_s

    def positions(self) -> NDArray[np.float32]:
        return np.asarray(self.data.qpos[self._joints], dtype=np.float32)

    def velocities(self) -> NDArray[np.float32]:
        return np.asarray(self.data.qvel[self._dofs], dtype=np.float32)

    def reading(self) -> Reading:
        """What the task's rule looks at."""
        fixed, moving = self._touching()
        at, turn = self.instrument_pose()
        velocity = self.data.qvel[self._free_dof : self._free_dof + 3]
        return Reading(
            time_s=self.time_s,
            instrument_m=at,
            tip_axis=turn[:, 0].copy(),
            handle_m=at + turn @ np.array(self.instrument.handle_m),
            speed_mps=float(np.sqrt(velocity @ velocity)),
            fixed_pad=fixed,
            moving_pad=moving,
            grasp_m=self.data.site_xpos[self._grasp].copy(),
            gripper_rad=float(self.data.qpos[self._gripper]),
        )

    def instrument_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Origin, shape (3,) [m], and rotation matrix, shape (3, 3), in the base frame."""
        turn = np.empty(9)
        mujoco.mju_quat2Mat(turn, self.data.qpos[self._free + 3 : self._free + 7])
        return self.data.qpos[self._free : self._free + 3].copy(), turn.reshape(3, 3)

    def truth(self) -> Truth:
        at, turn = self.instrument_pose()
        tool = self.data.site_xmat[self._grasp].reshape(3, 3)
        offset = tool.T @ (at - self.data.site_xpos[self._grasp])
        axis = turn[:, 0]
        rule = self.rule
        return Truth(
            instrument=np.concatenate([at, axis, offset, tool.T @ axis]).astype(np.float32),
            taken=rule.taken,
            done=rule.done,
            success=rule.success,
            failure=str(rule.failure),
            facts=dict(rule.facts),
        )

    def _model(self, name: str) -> tuple[mujoco.MjModel, mujoco.MjData, Variation]:
        if name not in self._models:
            model = copy.copy(self._built[name])
            self._models[name] = (model, mujoco.MjData(model), Variation(model))
        return self._models[name]

    def _find(self, model: mujoco.MjModel) -> None:
        """Looks up addresses by name, in the profile's order of joints."""
        joints = [model.joint(name) for name in self._robot.joint_names]
        self._joints = np.array([joint.qposadr[0] for joint in joints])
        self._dofs = np.array([joint.dofadr[0] for joint in joints])
        free = model.joint(scene.INSTRUMENT_BODY)
        self._free, self._free_dof = int(free.qposadr[0]), int(free.dofadr[0])
        self._grasp = model.site(scene.GRASP_SITE).id
        moving = next(body for body in self._robot.bodies if body.name == self._robot.tool.pads[1].body)
        self._gripper = int(model.joint(moving.joint).qposadr[0])
        self._pads = tuple(model.geom(name).id for name in scene.PAD_GEOMS)
        body = model.body(scene.INSTRUMENT_BODY).id
        self._solid = {
            i for i in range(model.ngeom) if model.geom_bodyid[i] == body and model.geom_contype[i]
        }
        self._hands = tuple(int(model.body(name).mocapid[0]) for name in scene.PALM_BODIES)
        palms = [model.body(name).id for name in scene.PALM_BODIES]
        self._hand_geoms = {
            hand: np.flatnonzero(model.geom_bodyid == body)
            for hand, body in zip(self._hands, palms, strict=True)
        }
        self._weld = model.equality(scene.WELD).id

    def _touching(self) -> tuple[bool, bool]:
        touched: set[int] = set()
        if self.data.ncon:
            for one, two in self.data.contact.geom.tolist():
                if one in self._solid:
                    touched.add(two)
                elif two in self._solid:
                    touched.add(one)
        return self._pads[0] in touched, self._pads[1] in touched

    def _place_hand(self) -> None:
        holding = self.rule.state is HandState.HOLDING
        shown, hidden = (self._hands[1], self._hands[0]) if holding else self._hands
        self.data.mocap_pos[shown], self.data.mocap_pos[hidden] = self.rule.palm_m, _HIDDEN_M
        self.model.geom_group[self._hand_geoms[hidden]] = HIDDEN
        self.model.geom_group[self._hand_geoms[shown]] = 0
        x, y, _ = self._task.hand.from_direction
        half = (np.arctan2(y, x) - np.pi / 2) / 2  # the hand's own frame comes from +y
        self.data.mocap_quat[shown] = (np.cos(half), 0.0, 0.0, np.sin(half))
        self.data.mocap_quat[hidden] = self.data.mocap_quat[shown]

    def _attach(self) -> None:
        """Welds the instrument to the hand as they are now."""
        at, _ = self.instrument_pose()
        hand = self._hands[1]
        palm, turn = self.data.mocap_pos[hand], self.data.mocap_quat[hand]
        back, relative, offset = np.empty(4), np.empty(4), np.empty(3)
        mujoco.mju_negQuat(back, turn)
        mujoco.mju_rotVecQuat(offset, at - palm, back)
        mujoco.mju_mulQuat(relative, back, self.data.qpos[self._free + 3 : self._free + 7])
        self.model.eq_data[self._weld, :11] = (0.0, 0.0, 0.0, *offset, *relative, 1.0)
        self.data.eq_active[self._weld] = 1

    def _broken(self) -> bool:
        warned = any(self.data.warning[kind].number for kind in _WARNINGS)
        return warned or not (np.isfinite(self.data.qpos).all() and np.isfinite(self.data.qvel).all())

    def _freeze(self, kept: NDArray[np.float64]) -> None:
        """The physics blew up: show the last good state and stop."""
        self.stable = False
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = kept
        self._place_hand()
        mujoco.mj_forward(self.model, self.data)
        self.rule.abort()


class MujocoWorld:
    """A batch of MuJoCo operating rooms.

    Attributes:
        spec: Names, units, shapes and rates.
    """

    def __init__(
        self, robot: RobotProfile, task: TaskProfile, *, batch: int = 1, render: bool = True
    ) -> None:
        """Builds the models.

        Args:
            robot: The arm.
            task: The task.
            batch: How many rooms.
            render: Whether images may be asked for.
        """
        size = (task.images.height_px, task.images.width_px, 3)
        self.spec = WorldSpec(
            robot=robot.name,
            task=task.name,
            joints=robot.joint_names,
            cameras={name: size for name in task.cameras},
            control_hz=task.control_hz,
            batch=batch,
        )
        self.robot, self.task = robot, task
        self._built = {name: scene.build_scene(robot, task, name) for name in task.instruments}
        self._rooms = [_Room(robot, task, self._built) for _ in range(batch)]
        self._render = render
        self._policy_painter: Painter | None = None
        self._people_painters: list[Painter] = []

    def reset(self, scenarios: Sequence[Scenario], ids: Sequence[int] | None = None) -> None:
        """Puts worlds ``ids`` (default: all) at the start of their scenario.

        Raises:
            ConfigError: An impossible scenario, or a wrong number of scenarios.
        """
        chosen = range(len(self._rooms)) if ids is None else ids
        if len(scenarios) != len(chosen):
            raise ConfigError(f"reset: {len(scenarios)} scenarios for {len(chosen)} worlds")
        for scenario in scenarios:
            check_scenario(self.task, scenario)
        for scenario, index in zip(scenarios, chosen, strict=True):
            self._rooms[index].reset(scenario)

    def step(self, targets_rad: NDArray[np.float32]) -> None:
        """Holds joint position targets, shape (batch, n_joints), [rad], for one control period."""
        targets = np.asarray(targets_rad, dtype=np.float64)
        expected = (len(self._rooms), len(self.spec.joints))
        if targets.shape != expected or not np.isfinite(targets).all():
            raise MessageError(
                f"step: targets_rad has shape {targets.shape}, needs {expected}, all finite [rad]"
            )
        for room, target in zip(self._rooms, targets, strict=True):
            if room.scenario is not None:
                room.step(target)

    def sense(self, index: int = 0, *, cameras: bool = True) -> Sensed:
        """Reads the sensors of one world now; images are rendered only when asked for."""
        room = self._room(index)
        images = {}
        if cameras:
            height, width = self.task.images.height_px, self.task.images.width_px
            mujoco.mj_camlight(room.model, room.data)
            painter = self._for_policy()
            images = {
                name: painter.paint(room.model, room.data, name, height, width) for name in self.task.cameras
            }
        return Sensed(
            position_rad=room.positions(),
            velocity_radps=room.velocities(),
            images=images,
            time_ns=round(room.time_s * 1e9),
        )

    def truth(self, index: int = 0) -> Truth:
        """Reads what only the simulator knows about one world now."""
        return self._room(index).truth()

    def render(self, camera: str, *, index: int = 0, height: int, width: int) -> NDArray[np.uint8]:
        """Renders one camera at any size, for people."""
        room = self._room(index)
        mujoco.mj_camlight(room.model, room.data)
        return self._for_people(height, width).paint(room.model, room.data, camera, height, width)

    def redraw_visuals(self, index: int, rng: np.random.Generator) -> None:
        """Draws light, hues and camera offsets of one world anew, from the task's ranges."""
        room = self._room(index)
        room.variation.apply_visuals(room.model, sample_visuals(self.task, rng))

    def snapshot(self, index: int = 0) -> dict[str, Any]:
        """The engine's full state, for replays and debugging."""
        room = self._room(index)
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(room.model, kind))
        mujoco.mj_getState(room.model, room.data, state, kind)
        assert room.scenario is not None
        return {
            "engine": f"mujoco {mujoco.__version__}",
            "state": state,
            "time_s": room.time_s,
            "scenario": room.scenario.model_dump(),
        }

    def close(self) -> None:
        """Frees renderers and models."""
        for painter in (self._policy_painter, *self._people_painters):
            if painter is not None:
                painter.close()
        self._policy_painter = None
        self._people_painters.clear()

    def _room(self, index: int) -> _Room:
        if not 0 <= index < len(self._rooms):
            raise ConfigError(f"world {index}: valid 0…{len(self._rooms) - 1}")
        room = self._rooms[index]
        if room.scenario is None:
            raise ConfigError(f"world {index} was never reset: call reset() with a scenario first")
        return room

    def _for_policy(self) -> Painter:
        if self._policy_painter is None:
            size = self.task.images
            self._policy_painter = self._painter(size.height_px, size.width_px, samples=0, scenery=False)
        return self._policy_painter

    def _for_people(self, height: int, width: int) -> Painter:
        """The first open buffer that the image fits."""
        for painter in self._people_painters:
            if painter.fits(height, width):
                return painter
        self._people_painters.append(self._painter(height, width, samples=_SAMPLES_PEOPLE, scenery=True))
        return self._people_painters[-1]

    def _painter(self, height: int, width: int, *, samples: int, scenery: bool) -> Painter:
        if not self._render:
            raise ConfigError("images: this world was made with render=False")
        return Painter(next(iter(self._built.values())), height, width, samples, scenery)
