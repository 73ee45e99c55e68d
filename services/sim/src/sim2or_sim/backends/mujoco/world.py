"""The World protocol on MuJoCo."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.scenario import Scenario, check_scenario, sample_visuals
from sim2or.contracts.task import Failure, TaskProfile
from sim2or.errors import ConfigError, MessageError
from sim2or.worlds.world import Sensed, Truth, WorldSpec

from sim2or_sim.backends.mujoco import scene
from sim2or_sim.backends.mujoco.delay import Delay
from sim2or_sim.backends.mujoco.painter import Painter
from sim2or_sim.backends.mujoco.room import HIDDEN
from sim2or_sim.backends.mujoco.variation import Variation
from sim2or_sim.task import Handovers, Reading

if TYPE_CHECKING:
    from sim2or_sim.rooms.room import Room

_LIFT_OFF_M = 0.0002  # the instrument starts this far above the tray and settles
_HIDDEN_M = np.array([0.0, 0.0, -5.0])
_WARNINGS = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)
_SAMPLES_PEOPLE = 4  # anti-aliasing; images for a policy go without, it costs twice the time


class _Scene:
    """The model of one instrument's operating room, its state, and where in them things are.

    Arrays are views of the engine's own, so that reading and writing them costs no look-up.

    Attributes:
        joints: Addresses of the arm's joints in ``qpos``, in the profile's order.
        pose: Shape (7,), the instrument's pose, quaternion wxyz [m].
        velocity: Shape (3,), its linear velocity [m/s].
        turn: Shape (9,), its rotation matrix, row by row; as new as the last kinematics.
        grasp: Shape (3,), the point between the pads in the base frame [m]; likewise.
        tool: Shape (9,), the tool's rotation matrix; likewise.
        gripper: Address of the moving jaw's joint in ``qpos``.
    """

    def __init__(self, built: mujoco.MjModel, robot: RobotProfile) -> None:
        self.model = model = copy.copy(built)
        self.data = data = mujoco.MjData(model)
        self.variation = Variation(model)
        joints = [model.joint(name) for name in robot.joint_names]
        self.joints = np.array([joint.qposadr[0] for joint in joints])
        self.dofs = np.array([joint.dofadr[0] for joint in joints])
        free, body = model.joint(scene.INSTRUMENT_BODY), model.body(scene.INSTRUMENT_BODY).id
        address, dof = int(free.qposadr[0]), int(free.dofadr[0])
        self.qpos, self.qvel, self.ctrl = data.qpos, data.qvel, data.ctrl
        self.pose, self.velocity = data.qpos[address : address + 7], data.qvel[dof : dof + 3]
        self.turn, site = data.xmat[body], model.site(scene.GRASP_SITE).id
        self.grasp, self.tool = data.site_xpos[site], data.site_xmat[site]
        moving = next(body for body in robot.bodies if body.name == robot.tool.pads[1].body)
        self.gripper = int(model.joint(moving.joint).qposadr[0])
        self._pads = tuple(model.geom(name).id for name in scene.PAD_GEOMS)
        self._solid = {
            i for i in range(model.ngeom) if model.geom_bodyid[i] == body and model.geom_contype[i]
        }
        self._hands = tuple(int(model.body(name).mocapid[0]) for name in scene.PALM_BODIES)
        palms = [model.body(name).id for name in scene.PALM_BODIES]
        self._hand_geoms = [np.flatnonzero(model.geom_bodyid == palm) for palm in palms]
        self._weld = model.equality(scene.WELD).id
        self._warnings = [data.warning[kind] for kind in _WARNINGS]

    def sound(self) -> bool:
        """Whether the physics is still one."""
        if any(warning.number for warning in self._warnings):
            return False
        return isfinite(self.qpos.dot(self.qpos) + self.qvel.dot(self.qvel))

    def touching(self) -> tuple[bool, bool]:
        """Whether the fixed and the moving pad touch the instrument."""
        touched: set[int] = set()
        if self.data.ncon:
            for one, two in self.data.contact.geom.tolist():
                if one in self._solid:
                    touched.add(two)
                elif two in self._solid:
                    touched.add(one)
        return self._pads[0] in touched, self._pads[1] in touched

    def place_hand(self, palm_m: NDArray[np.float64], quaternion: tuple[float, ...], holding: bool) -> None:
        """Of the two looks of the hand the one in use is at the palm, the other is hidden."""
        for number, hand in enumerate(self._hands):
            shown = number == holding
            self.data.mocap_pos[hand] = palm_m if shown else _HIDDEN_M
            self.data.mocap_quat[hand] = quaternion
            self.model.geom_group[self._hand_geoms[number]] = 0 if shown else HIDDEN

    def attach(self) -> None:
        """Welds the instrument to the closed hand as they are now."""
        hand = self._hands[1]
        palm, turn = self.data.mocap_pos[hand], self.data.mocap_quat[hand]
        back, relative, offset = np.empty(4), np.empty(4), np.empty(3)
        mujoco.mju_negQuat(back, turn)
        mujoco.mju_rotVecQuat(offset, self.pose[:3] - palm, back)
        mujoco.mju_mulQuat(relative, back, self.pose[3:])
        self.model.eq_data[self._weld, :11] = (0.0, 0.0, 0.0, *offset, *relative, 1.0)
        self.data.eq_active[self._weld] = 1


class _Room:
    """One operating room: a scene for each instrument, of which one is in use."""

    def __init__(self, robot: RobotProfile, task: TaskProfile, built: dict[str, mujoco.MjModel]) -> None:
        self._robot, self._task, self._built = robot, task, built
        self._scenes: dict[str, _Scene] = {}
        self.scenario: Scenario | None = None
        x, y, _ = task.hand.from_direction
        half = (np.arctan2(y, x) - np.pi / 2) / 2  # the hand's own frame comes from +y
        self._hand_quaternion = (float(np.cos(half)), 0.0, 0.0, float(np.sin(half)))

    def reset(self, scenario: Scenario, start: NDArray[np.float64], height_m: float) -> None:
        """Loads the scenario, the arm at ``start`` [rad]; nothing of the episode before is left."""
        task, name = self._task, scenario.instrument
        self.scenario = scenario
        if name not in self._scenes:
            self._scenes[name] = _Scene(self._built[name], self._robot)
        self.scene = one = self._scenes[name]
        one.variation.apply(one.model, one.data, scenario)
        mujoco.mj_resetData(one.model, one.data)
        one.qpos[one.joints], one.ctrl[:] = start, start
        one.pose[:3] = (
            task.tray.center_m[0] + scenario.x_m,
            task.tray.center_m[1] + scenario.y_m,
            height_m + _LIFT_OFF_M,
        )
        # Yaw zero points the tip (x of the instrument) along the base's -y.
        half = (scenario.yaw_rad - np.pi / 2) / 2
        one.pose[3:] = (np.cos(half), 0.0, 0.0, np.sin(half))
        self.place_hand(np.array(task.hand.rest_m), holding=False)
        mujoco.mj_forward(one.model, one.data)

    def step(self, pieces: list[tuple[NDArray[np.float64], int]]) -> bool:
        """One control period; when the physics blew up, the last good state stays, and the answer is no."""
        one = self.scene
        kept = one.qpos.copy()
        for told, count in pieces:
            one.ctrl[:] = told
            mujoco.mj_step(one.model, one.data, count)
        if not one.sound():
            mujoco.mj_resetData(one.model, one.data)
            one.qpos[:] = kept
            self.place_hand(self._palm_m, self._holding)
            mujoco.mj_forward(one.model, one.data)
            return False
        mujoco.mj_kinematics(one.model, one.data)
        return True

    def place_hand(self, palm_m: NDArray[np.float64], holding: bool) -> None:
        """The surgeon's hand is there [m], open or closed."""
        self._palm_m, self._holding = palm_m.copy(), holding
        self.scene.place_hand(palm_m, self._hand_quaternion, holding)

    def instrument(self) -> NDArray[np.float32]:
        """``Truth.instrument``."""
        one, axis = self.scene, self.scene.turn[::3]
        tool = one.tool.reshape(3, 3)
        parts = (one.pose[:3], axis, (one.pose[:3] - one.grasp) @ tool, axis @ tool)
        told: NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
        return told


class _Seen:
    """What the task's rule looks at, one row for each room of a batch, in arrays that stay where they are.

    Attributes:
        handles_m: Shape (batch, 3), handles in the instruments' frames [m].
    """

    def __init__(self, batch: int) -> None:
        self._poses, self._turns = np.zeros((batch, 7)), np.zeros((batch, 9))
        self._velocities, self._grasps_m, self.handles_m = np.zeros((3, batch, 3))
        self._grippers_rad, self._pads = np.zeros(batch), np.zeros((2, batch), dtype=bool)
        self._matrices, self._at_m = self._turns.reshape(batch, 3, 3), self._poses[:, :3]
        self._times_s, self._speeds_mps = np.zeros((2, batch))
        self._grips_m = np.zeros((batch, 3))
        self._reading = Reading(
            time_s=self._times_s,
            instrument_m=self._at_m,
            tip_axis=self._matrices[:, :, 0],
            handle_m=self._grips_m,
            speed_mps=self._speeds_mps,
            fixed_pad=self._pads[0],
            moving_pad=self._pads[1],
            grasp_m=self._grasps_m,
            gripper_rad=self._grippers_rad,
        )

    def look(self, index: int, one: _Scene) -> None:
        """Reads one room."""
        self._poses[index], self._turns[index] = one.pose, one.turn
        self._velocities[index], self._grasps_m[index] = one.velocity, one.grasp
        self._grippers_rad[index] = one.qpos[one.gripper]
        self._pads[:, index] = one.touching()

    def now(self, time_s: NDArray[np.float64]) -> Reading:
        """The reading after every room was looked at.

        Args:
            time_s: Shape (batch,), since reset [s].
        """
        self._times_s[:] = time_s
        np.sqrt(np.vecdot(self._velocities, self._velocities), out=self._speeds_mps)
        np.add(self._at_m, np.matvec(self._matrices, self.handles_m), out=self._grips_m)
        return self._reading


class MujocoWorld:
    """A batch of MuJoCo operating rooms.

    Attributes:
        spec: Names, units, shapes and rates.
    """

    def __init__(
        self,
        robot: RobotProfile,
        task: TaskProfile,
        *,
        batch: int = 1,
        render: bool = True,
        room: Room | None = None,
    ) -> None:
        """Builds the models.

        Args:
            robot: The arm.
            task: The task.
            batch: How many rooms.
            render: Whether images may be asked for.
            room: One's own operating room instead of the built-in one.
        """
        self.spec = WorldSpec.of(robot, task, batch)
        self.robot, self.task = robot, task
        self._built = {name: scene.build_scene(robot, task, name, room) for name in task.instruments}
        self._rooms = [_Room(robot, task, self._built) for _ in range(batch)]
        self._rule = Handovers(task, batch)
        longest = round(task.bounds.lag_s[1] * task.physics_hz)
        self._delay = Delay(np.tile(np.array(robot.home_rad), (batch, 1)), task.substeps, longest)
        self._steps, self._stable = np.zeros(batch, dtype=int), np.zeros(batch, dtype=bool)
        self._seen = _Seen(batch)
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
        ids, robot, task = list(chosen), self.robot, self.task
        offsets_rad = np.array([one.start_rad for one in scenarios]).reshape(len(ids), -1)
        starts = np.clip(np.array(robot.home_rad) + offsets_rad, robot.lower_rad, robot.upper_rad)
        tools = [task.instruments[one.instrument] for one in scenarios]
        heights_m = task.tray.center_m[2] + np.array([tool.rest_height_m for tool in tools])
        for row, index in enumerate(ids):
            self._rooms[index].reset(scenarios[row], starts[row], float(heights_m[row]))
            self._seen.handles_m[index] = tools[row].handle_m
        lags = np.array([round(one.lag_s * task.physics_hz) for one in scenarios], dtype=int)
        self._delay.begin(ids, lags, starts)
        self._rule.begin(ids, heights_m)
        self._steps[ids], self._stable[ids] = 0, True

    def step(self, targets_rad: NDArray[np.float32]) -> None:
        """Holds joint position targets, shape (batch, n_joints), [rad], for one control period."""
        targets = np.asarray(targets_rad, dtype=np.float64)
        expected = (len(self._rooms), len(self.spec.joints))
        if targets.shape != expected or np.count_nonzero(np.isfinite(targets)) != targets.size:
            raise MessageError(
                f"step: targets_rad has shape {targets.shape}, needs {expected}, all finite [rad]"
            )
        self._delay.push(targets)
        self._steps += 1
        for index, room in enumerate(self._rooms):
            if self._stable[index]:
                if room.step(self._delay.pieces(index)):
                    self._seen.look(index, room.scene)
                else:
                    self._stable[index] = False
                    self._rule.abort(np.arange(len(self._rooms)) == index)
        self._judge()

    def _judge(self) -> None:
        """The rule of the task after one control period."""
        rule = self._rule
        rule.update(self._seen.now(self._steps * self.task.period_s), among=self._stable)
        for index in np.flatnonzero(rule.moved) if np.count_nonzero(rule.moved) else ():
            self._rooms[index].place_hand(rule.palm_m[index], bool(rule.taken[index]))
            if rule.took[index]:
                self._rooms[index].scene.attach()

    def sense(self, index: int = 0, *, cameras: bool = True) -> Sensed:
        """Reads the sensors of one world now; images are rendered only when asked for."""
        one, images = self._room(index).scene, {}
        if cameras:
            height, width = self.task.images.height_px, self.task.images.width_px
            mujoco.mj_camlight(one.model, one.data)
            painter = self._for_policy()
            images = {
                name: painter.paint(one.model, one.data, name, height, width) for name in self.task.cameras
            }
        return Sensed(
            position_rad=one.qpos[one.joints].astype(np.float32),
            velocity_radps=one.qvel[one.dofs].astype(np.float32),
            images=images,
            time_ns=round(self._time_s(index) * 1e9),
        )

    def truth(self, index: int = 0) -> Truth:
        """Reads what only the simulator knows about one world now."""
        room, rule = self._room(index), self._rule
        failure = rule.failure(index)
        return Truth(
            instrument=room.instrument(),
            taken=bool(rule.taken[index]),
            done=bool(rule.success[index]) or failure is not Failure.NONE,
            success=bool(rule.success[index]),
            failure=failure.value,
            facts=rule.facts(index),
        )

    def render(self, camera: str, *, index: int = 0, height: int, width: int) -> NDArray[np.uint8]:
        """Renders one camera at any size, for people."""
        one = self._room(index).scene
        mujoco.mj_camlight(one.model, one.data)
        return self._for_people(height, width).paint(one.model, one.data, camera, height, width)

    def redraw_visuals(self, index: int, rng: np.random.Generator) -> None:
        """Draws light, hues and camera offsets of one world anew, from the task's ranges."""
        one = self._room(index).scene
        one.variation.apply_visuals(one.model, sample_visuals(self.task, rng))

    def snapshot(self, index: int = 0) -> dict[str, Any]:
        """The engine's full state, for replays and debugging."""
        room = self._room(index)
        kind, one = mujoco.mjtState.mjSTATE_INTEGRATION, room.scene
        state = np.empty(mujoco.mj_stateSize(one.model, kind))
        mujoco.mj_getState(one.model, one.data, state, kind)
        assert room.scenario is not None
        return {
            "engine": f"mujoco {mujoco.__version__}",
            "state": state,
            "time_s": self._time_s(index),
            "scenario": room.scenario.model_dump(),
        }

    def close(self) -> None:
        """Frees renderers and models."""
        for painter in (self._policy_painter, *self._people_painters):
            if painter is not None:
                painter.close()
        self._policy_painter = None
        self._people_painters.clear()

    def _time_s(self, index: int) -> float:
        return float(self._steps[index] * self.task.period_s)

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
