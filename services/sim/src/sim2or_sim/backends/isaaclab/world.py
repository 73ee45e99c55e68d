"""The World protocol on Isaac Lab."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from isaaclab.scene import InteractiveScene
from isaaclab.sim import SimulationContext
from isaaclab_newton.cloner import newton_builder_world_hook
from numpy.typing import NDArray
from sim2or.contracts.kinematics import rotation
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.scenario import Scenario, check_scenario, sample_visuals
from sim2or.contracts.task import TaskProfile
from sim2or.errors import ConfigError, MessageError, choices
from sim2or.worlds.world import Sensed, Truth, WorldSpec

from sim2or_sim.backends.isaaclab import configuration
from sim2or_sim.backends.isaaclab.cameras import Cameras
from sim2or_sim.backends.isaaclab.configuration import ROBOT, IsaacSettings, parked_m
from sim2or_sim.backends.isaaclab.engine import Engine, weld_hook
from sim2or_sim.backends.isaaclab.usd import write_assets
from sim2or_sim.backends.mujoco.delay import Delay
from sim2or_sim.backends.mujoco.scene import PALM_BODIES
from sim2or_sim.task import Handover, HandState, Reading

_RELEASED_RAD = 0.05  # the jaws count as open beyond this
_LIFT_OFF_M = 0.0002  # the instrument starts this far above the tray and settles
_TOO_FAR = 1e6  # a number beyond this is a physics that blew up [m, rad, m/s or rad/s]

Floats = NDArray[np.float64]


@dataclass
class _Room:
    """The episode of one environment; ``kept`` is the last state that was sound."""

    scenario: Scenario
    delay: Delay
    rule: Handover
    steps: int = 0
    stable: bool = True
    kept: _State | None = None


@dataclass(frozen=True)
class _State:
    """What moves in one environment, in its base frame.

    Attributes:
        joints: Shape (2, n_joints): positions [rad] and velocities [rad/s], in the profile's order.
        gripper: Shape (7,), pose of the tool's body, quaternion xyzw [m].
        instrument: Shape (7,), its pose, quaternion xyzw [m].
        velocity: Shape (6,), the instrument's linear and angular velocity [m/s, rad/s].
    """

    joints: Floats
    gripper: Floats
    instrument: Floats
    velocity: Floats

    def sound(self) -> bool:
        """Whether every number can be believed."""
        parts = (self.joints, self.gripper, self.instrument, self.velocity)
        return all(np.isfinite(part).all() and np.abs(part).max() < _TOO_FAR for part in parts)


class IsaacLabWorld:
    """A batch of operating rooms in Isaac Lab; Isaac Lab allows one simulation in a process.

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
        settings: IsaacSettings | None = None,
    ) -> None:
        """Writes the USD and builds the simulation.

        Args:
            robot: The arm.
            task: The task.
            batch: How many rooms.
            render: Whether images may be asked for.
            settings: Device and renderer; default from ``SIM2OR_ISAAC_…``.

        Raises:
            ConfigError: Another Isaac Lab world is open in this process.
        """
        if SimulationContext.instance() is not None:
            raise ConfigError("isaaclab: one world at a time in a process; close() the other first")
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
        self._rooms: list[_Room | None] = [None] * batch
        self._names = list(task.instruments)
        self._open(settings or IsaacSettings(), render)

    def _open(self, settings: IsaacSettings, render: bool) -> None:
        robot, task, batch = self.robot, self.task, self.spec.batch
        self._directory = tempfile.TemporaryDirectory(prefix="sim2or-usd-")
        assets = write_assets(robot, task, Path(self._directory.name))
        self._sim = SimulationContext(configuration.simulation(task, settings))
        self._device = settings.device
        scene = configuration.scene(assets, batch)
        self._cameras = Cameras(task, settings, render)
        self._cameras.add_to(scene)
        with newton_builder_world_hook(weld_hook(self._names)):
            self._scene = InteractiveScene(scene)
        self._sim.reset()
        self._arm = self._scene[ROBOT]
        self._order = [self._arm.joint_names.index(name) for name in robot.joint_names]
        self._back = np.argsort(self._order)
        self._gripper = self._arm.body_names.index(robot.tool.body)
        moving = next(body for body in robot.bodies if body.name == robot.tool.pads[1].body)
        self._jaw = robot.joint_names.index(moving.joint)
        self._masses = {name: self._scene[name].data.body_mass.torch.clone() for name in self._names}
        self._inertias = {name: self._scene[name].data.body_inertia.torch.clone() for name in self._names}
        self._engine = Engine(batch, self._names)
        self._cameras.bind(self._scene, self._engine)
        self._origins = self._scene.env_origins.cpu().numpy().astype(np.float64)

    def reset(self, scenarios: Sequence[Scenario], ids: Sequence[int] | None = None) -> None:
        """Puts worlds ``ids`` (default: all) at the start of their scenario.

        Raises:
            ConfigError: An impossible scenario, or a wrong number of scenarios.
        """
        chosen = list(range(len(self._rooms))) if ids is None else list(ids)
        if len(scenarios) != len(chosen):
            raise ConfigError(f"reset: {len(scenarios)} scenarios for {len(chosen)} worlds")
        for scenario in scenarios:
            check_scenario(self.task, scenario)
        for scenario, index in zip(scenarios, chosen, strict=True):
            self._begin(index, scenario)
        self._sim.forward()
        self._scene.update(0.0)
        self._read()
        for index in chosen:
            room = self._room(index)
            room.kept = self._states[index]
            self._cameras.dress(index, room.scenario.visuals)

    def step(self, targets_rad: NDArray[np.float32]) -> None:
        """Holds joint position targets, shape (batch, n_joints), [rad], for one control period."""
        targets = np.asarray(targets_rad, dtype=np.float64)
        expected = (len(self._rooms), len(self.spec.joints))
        if targets.shape != expected or not np.isfinite(targets).all():
            raise MessageError(
                f"step: targets_rad has shape {targets.shape}, needs {expected}, all finite [rad]"
            )
        self._play([self._pieces(room, target) for room, target in zip(self._rooms, targets, strict=True)])
        self._scene.update(self.task.period_s)
        self._read()
        pads = self._engine.touching([self._instrument(index) for index in range(len(self._rooms))])
        for index, room in enumerate(self._rooms):
            if room is not None:
                self._judge(index, room, pads[index])
        self._sim.forward()
        self._cameras.age()

    def sense(self, index: int = 0, *, cameras: bool = True) -> Sensed:
        """Reads the sensors of one world now; images are rendered only when asked for."""
        room, state = self._room(index), self._states[index]
        images = {name: self._cameras.picture(name, index) for name in self.task.cameras} if cameras else {}
        return Sensed(
            position_rad=state.joints[0].astype(np.float32),
            velocity_radps=state.joints[1].astype(np.float32),
            images=images,
            time_ns=round(room.steps * self.task.period_s * 1e9),
        )

    def truth(self, index: int = 0) -> Truth:
        """Reads what only the simulator knows about one world now."""
        rule, state = self._room(index).rule, self._states[index]
        at, turn = _pose(state.instrument)
        grasp_m, tool = self._grasp(state)
        axis = turn[:, 0]
        return Truth(
            instrument=np.concatenate([at, axis, tool.T @ (at - grasp_m), tool.T @ axis]).astype(np.float32),
            taken=rule.taken,
            done=rule.done,
            success=rule.success,
            failure=str(rule.failure),
            facts=dict(rule.facts),
        )

    def render(self, camera: str, *, index: int = 0, height: int, width: int) -> NDArray[np.uint8]:
        """Renders one camera at any size, for people.

        Raises:
            ConfigError: Unknown camera.
        """
        self._room(index)
        names = [*self.task.cameras, *self.task.views]
        if camera not in names:
            raise ConfigError(f"camera: {camera!r}; {choices(camera, names)}")
        return self._cameras.picture(camera, index, height=height, width=width)

    def redraw_visuals(self, index: int, rng: np.random.Generator) -> None:
        """Draws light, hues and camera offsets of one world anew, from the task's ranges."""
        self._room(index)
        self._cameras.dress(index, sample_visuals(self.task, rng))

    def snapshot(self, index: int = 0) -> dict[str, Any]:
        """The state of what moves in one world, for replays and debugging."""
        room, state = self._room(index), self._states[index]
        parts = (state.joints.ravel(), state.gripper, state.instrument, state.velocity)
        return {
            "engine": f"isaaclab {importlib.metadata.version('isaaclab')}",
            "state": np.concatenate(parts),
            "time_s": room.steps * self.task.period_s,
            "scenario": room.scenario.model_dump(),
        }

    def close(self) -> None:
        """Frees the simulation, so that another may be opened; safe to call twice."""
        if self._sim is SimulationContext.instance():
            SimulationContext.clear_instance()
        self._directory.cleanup()

    def _room(self, index: int) -> _Room:
        if not 0 <= index < len(self._rooms):
            raise ConfigError(f"world {index}: valid 0…{len(self._rooms) - 1}")
        room = self._rooms[index]
        if room is None:
            raise ConfigError(f"world {index} was never reset: call reset() with a scenario first")
        return room

    def _instrument(self, index: int) -> str:
        room = self._rooms[index]
        return room.scenario.instrument if room else self._names[0]

    def _begin(self, index: int, scenario: Scenario) -> None:
        """Loads the scenario; nothing of the episode before is left."""
        robot, task, name = self.robot, self.task, scenario.instrument
        start = np.clip(np.array(robot.home_rad) + scenario.start_rad, robot.lower_rad, robot.upper_rad)
        rest_m = task.tray.center_m[2] + task.instruments[name].rest_height_m
        self._rooms[index] = room = _Room(
            scenario=scenario,
            delay=Delay(round(scenario.lag_s * task.physics_hz), task.substeps, start),
            rule=Handover(task, rest_m, _RELEASED_RAD),
        )
        self._place_arm(index, start)
        x_m, y_m, _ = task.tray.center_m
        at_m = np.array([x_m + scenario.x_m, y_m + scenario.y_m, rest_m + _LIFT_OFF_M])
        # Yaw zero points the tip (x of the instrument) along the base's -y.
        self._place(name, index, at_m, scenario.yaw_rad - np.pi / 2)
        others = [other for other in self._names if other != name]
        for other in others:
            self._place(other, index, np.array(parked_m(self._names.index(other))), 0.0)
        self._engine.park(index, parked=others, free=[name])
        self._engine.release(index)
        self._engine.apply(index, scenario)
        self._weigh(name, index, scenario.mass_factor)
        self._place_hand(index, room)

    def _place_arm(self, index: int, position_rad: Floats, velocity_radps: Floats | None = None) -> None:
        """Puts the arm somewhere and tells it to stay; at rest unless a velocity is given."""
        ids = self._ids(index)
        position = self._row(position_rad[self._back])
        speed = np.zeros(len(self._order)) if velocity_radps is None else velocity_radps
        velocity = self._row(speed[self._back])
        self._arm.write_joint_state_to_sim_index(position=position, velocity=velocity, env_ids=ids)
        self._arm.actuators.target_command.set_position_index(value=position, env_ids=ids)

    def _place(self, name: str, index: int, at_m: Floats, yaw_rad: float) -> None:
        """Puts a body somewhere, at rest, turned about the vertical."""
        pose = np.array([*at_m, 0.0, 0.0, np.sin(yaw_rad / 2), np.cos(yaw_rad / 2)])
        self._put(name, index, pose)

    def _put(self, name: str, index: int, pose: Floats) -> None:
        moved = pose.copy()
        moved[:3] += self._origins[index]
        ids, body = self._ids(index), self._scene[name]
        body.write_root_pose_to_sim_index(root_pose=self._row(moved), env_ids=ids)
        body.write_root_velocity_to_sim_index(root_velocity=self._row(np.zeros(6)), env_ids=ids)

    def _weigh(self, name: str, index: int, factor: float) -> None:
        ids, body = self._ids(index), self._scene[name]
        body.set_masses_index(masses=self._masses[name][index : index + 1] * factor, env_ids=ids)
        body.set_inertias_index(inertias=self._inertias[name][index : index + 1] * factor, env_ids=ids)

    def _place_hand(self, index: int, room: _Room) -> None:
        """Of the two looks of the hand the one in use follows the palm."""
        x, y, _ = self.task.hand.from_direction
        yaw_rad = float(np.arctan2(y, x) - np.pi / 2)  # the hand's own frame comes from +y
        shown = PALM_BODIES[room.rule.state is HandState.HOLDING]
        for number, name in enumerate(PALM_BODIES):
            hidden_m = np.array(parked_m(len(self._names) + number))
            self._place(name, index, room.rule.palm_m if name == shown else hidden_m, yaw_rad)

    def _pieces(self, room: _Room | None, target: Floats) -> list[tuple[Floats, int]]:
        """What one environment is told in this period, each with the number of physics steps."""
        if room is None:
            return [(np.array(self.robot.home_rad), self.task.substeps)]
        room.steps += 1
        if not room.stable:
            assert room.kept is not None
            return [(room.kept.joints[0], self.task.substeps)]
        return room.delay.pieces(np.clip(target, self.robot.lower_rad, self.robot.upper_rad))

    def _play(self, pieces: list[list[tuple[Floats, int]]]) -> None:
        """One control period of physics; commands change only where an environment's delay says so."""
        ends = sorted({int(end) for piece in pieces for end in np.cumsum([count for _, count in piece])})
        for begin, end in pairwise([0, *ends]):
            told = np.stack([_at(piece, begin) for piece in pieces])[:, self._back]
            self._arm.actuators.target_command.set_position_index(value=self._tensor(told))
            self._arm.write_data_to_sim()
            for _ in range(end - begin):
                self._sim.step(render=False)

    def _read(self) -> None:
        """Copies what moves, once a control period."""
        arm = self._arm.data
        joints = np.stack([_numpy(arm.joint_pos), _numpy(arm.joint_vel)], axis=1)[:, :, self._order]
        gripper = _numpy(arm.body_link_pose_w)[:, self._gripper]
        gripper[:, :3] -= self._origins
        self._states = []
        poses = {name: _numpy(self._scene[name].data.root_link_pose_w) for name in self._names}
        speeds = {name: _numpy(self._scene[name].data.root_link_vel_w) for name in self._names}
        for index in range(len(self._rooms)):
            name = self._instrument(index)
            pose = poses[name][index]
            pose[:3] -= self._origins[index]
            self._states.append(_State(joints[index], gripper[index], pose, speeds[name][index]))

    def _judge(self, index: int, room: _Room, pads: NDArray[np.bool_]) -> None:
        """The rule of the task after one control period."""
        if not room.stable or not self._states[index].sound():
            self._freeze(index, room)
            return
        room.kept = self._states[index]
        if room.rule.done:
            return
        taken, palm_m = room.rule.taken, room.rule.palm_m
        room.rule.update(self._reading(index, room, pads))
        if room.rule.taken != taken or not np.array_equal(room.rule.palm_m, palm_m):
            self._place_hand(index, room)
        if room.rule.taken and not taken:
            pose = self._states[index].instrument.copy()
            pose[:3] += self._origins[index]
            self._engine.attach(index, room.scenario.instrument, pose)

    def _reading(self, index: int, room: _Room, pads: NDArray[np.bool_]) -> Reading:
        state = self._states[index]
        at, turn = _pose(state.instrument)
        return Reading(
            time_s=room.steps * self.task.period_s,
            instrument_m=at,
            tip_axis=turn[:, 0].copy(),
            handle_m=at + turn @ np.array(self.task.instruments[room.scenario.instrument].handle_m),
            speed_mps=float(np.linalg.norm(state.velocity[:3])),
            fixed_pad=bool(pads[0]),
            moving_pad=bool(pads[1]),
            grasp_m=self._grasp(state)[0],
            gripper_rad=float(state.joints[0, self._jaw]),
        )

    def _grasp(self, state: _State) -> tuple[Floats, Floats]:
        """The point between the pads, shape (3,) [m], and the gripper's rotation, in the base frame."""
        at, turn = _pose(state.gripper)
        return at + turn @ np.array(self.robot.tool.grasp_m), turn

    def _freeze(self, index: int, room: _Room) -> None:
        """The physics blew up: show the last good state and stop."""
        room.stable = False
        room.rule.abort()
        kept = room.kept
        assert kept is not None
        self._place_arm(index, kept.joints[0])
        self._put(room.scenario.instrument, index, kept.instrument)
        self._states[index] = kept

    def _ids(self, index: int) -> torch.Tensor:
        return torch.tensor([index], dtype=torch.int32, device=self._device)

    def _row(self, values: Floats) -> torch.Tensor:
        return self._tensor(values[None])

    def _tensor(self, values: Floats) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def _numpy(data: Any) -> Floats:
    """A copy of Isaac Lab's buffer on the host."""
    copied: Floats = data.torch.detach().cpu().numpy().astype(np.float64)
    return copied


def _pose(pose: Floats) -> tuple[Floats, Floats]:
    """Position and rotation matrix of a pose with a quaternion xyzw."""
    x, y, z, w = pose[3:]
    return pose[:3].copy(), rotation((w, x, y, z))


def _at(pieces: list[tuple[Floats, int]], step: int) -> Floats:
    """What is commanded in that physics step."""
    passed = 0
    for target, count in pieces:
        passed += count
        if step < passed:
            return target
    return pieces[-1][0]
