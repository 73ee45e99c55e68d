"""The World protocol on Isaac Lab."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from isaaclab.scene import InteractiveScene
from isaaclab.sim import SimulationContext
from numpy.typing import NDArray
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.scenario import Scenario, check_scenario, sample_visuals
from sim2or.contracts.task import Failure, TaskProfile
from sim2or.errors import ConfigError, MessageError, choices
from sim2or.worlds.world import Sensed, Truth, WorldSpec

from sim2or_sim.backends.isaaclab import configuration
from sim2or_sim.backends.isaaclab.cameras import Cameras
from sim2or_sim.backends.isaaclab.configuration import ROBOT, IsaacSettings, parked_m
from sim2or_sim.backends.isaaclab.engine import Numbers, make_engine, prepare
from sim2or_sim.backends.isaaclab.state import Floats, Rows, State, host
from sim2or_sim.backends.isaaclab.usd import write_assets
from sim2or_sim.backends.mujoco.delay import Delay
from sim2or_sim.backends.mujoco.scene import PALM_BODIES
from sim2or_sim.rooms.room import Room
from sim2or_sim.task import Handovers, Reading

_LIFT_OFF_M = 0.0002  # the instrument starts this far above the tray and settles


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
        room: Room | None = None,
    ) -> None:
        """Writes the USD and builds the simulation.

        Args:
            robot: The arm.
            task: The task.
            batch: How many rooms.
            render: Whether images may be asked for.
            settings: Device, physics and renderer; default from ``SIM2OR_ISAAC_…``.
            room: One's own operating room instead of the built-in one.

        Raises:
            ConfigError: Another Isaac Lab world is open in this process, or the settings do not fit together.
        """
        if SimulationContext.instance() is not None:
            raise ConfigError("isaaclab: one world at a time in a process; close() the other first")
        self.spec = WorldSpec.of(robot, task, batch)
        self.robot, self.task = robot, task
        self._names = list(task.instruments)
        self._scenarios: list[Scenario | None] = [None] * batch
        self._begun, self._stable = np.zeros((2, batch), dtype=bool)
        self._steps, self._kinds = np.zeros((2, batch), dtype=np.int64)
        self._rule = Handovers(task, batch)
        home = np.tile(np.array(robot.home_rad), (batch, 1))
        self._delay = Delay(home, task.substeps, round(task.bounds.lag_s[1] * task.physics_hz))
        self._handles_m = np.array([tool.handle_m for tool in task.instruments.values()])
        self._open(settings or IsaacSettings(), render, room)

    def _open(self, settings: IsaacSettings, render: bool, room: Room | None) -> None:
        robot, task, batch = self.robot, self.task, self.spec.batch
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sim2or-usd-")))
            stack.enter_context(configuration.runtime(settings, render))
            assets = write_assets(robot, task, directory, room)
            self._sim = SimulationContext(configuration.simulation(task, settings, len(assets.loose)))
            stack.callback(self._clear)
            scene = configuration.scene(assets, batch, settings)
            self._cameras = Cameras(task, settings, render)
            self._cameras.add_to(scene)
            with prepare(settings, self._names):
                self._scene = InteractiveScene(scene)
            self._sim.reset()
            self._closing = stack.pop_all()
        self._device = settings.device
        self._arm = self._scene[ROBOT]
        self._order = [self._arm.joint_names.index(name) for name in robot.joint_names]
        self._back = np.argsort(self._order)
        self._gripper = self._arm.body_names.index(robot.tool.body)
        moving = next(body for body in robot.bodies if body.name == robot.tool.pads[1].body)
        self._jaw = robot.joint_names.index(moving.joint)
        tools = [self._scene[name].data for name in self._names]
        self._masses = [tool.body_mass.torch.clone() for tool in tools]
        self._inertias = [tool.body_inertia.torch.clone() for tool in tools]
        arm = self._arm.data
        self._gains = [gain.torch.clone() for gain in (arm.joint_stiffness, arm.joint_damping)]
        self._engine = make_engine(settings, self._scene, self._names, render)
        self._cameras.bind(self._scene, self._engine)
        self._origins = self._scene.env_origins.cpu().numpy().astype(np.float64)
        self._loose = {
            name: np.array([*part.at_m, *np.roll(part.turn_wxyz, -1)]) for name, part in assets.loose.items()
        }

    def reset(self, scenarios: Sequence[Scenario], ids: Sequence[int] | None = None) -> None:
        """Puts worlds ``ids`` (default: all) at the start of their scenario.

        Raises:
            ConfigError: An impossible scenario, or a wrong number of scenarios.
        """
        chosen = np.arange(self.spec.batch) if ids is None else np.array(ids, dtype=np.int64)
        if len(scenarios) != len(chosen):
            raise ConfigError(f"reset: {len(scenarios)} scenarios for {len(chosen)} worlds")
        for scenario in scenarios:
            check_scenario(self.task, scenario)
        if len(chosen):
            self._begin(chosen, scenarios)

    def step(self, targets_rad: NDArray[np.float32]) -> None:
        """Holds joint position targets, shape (batch, n_joints), [rad], for one control period."""
        targets = np.asarray(targets_rad, dtype=np.float64)
        expected = (self.spec.batch, len(self.spec.joints))
        if targets.shape != expected or not np.isfinite(targets).all():
            raise MessageError(
                f"step: targets_rad has shape {targets.shape}, needs {expected}, all finite [rad]"
            )
        going = (self._begun & self._stable)[:, None]
        held = self._now.position_rad if self._begun.any() else np.array(self.robot.home_rad)
        self._delay.push(np.where(going, np.clip(targets, self.robot.lower_rad, self.robot.upper_rad), held))
        self._play()
        self._steps += self._begun
        self._scene.update(self.task.period_s)
        self._judge(self._read())
        self._sim.forward()
        self._cameras.age()

    def sense(self, index: int = 0, *, cameras: bool = True) -> Sensed:
        """Reads the sensors of one world now; images are rendered only when asked for."""
        self._scenario(index)
        images = {name: self._cameras.picture(name, index) for name in self.task.cameras} if cameras else {}
        return Sensed(
            position_rad=self._now.position_rad[index].astype(np.float32),
            velocity_radps=self._now.velocity_radps[index].astype(np.float32),
            images=images,
            time_ns=round(self._time_s(index) * 1e9),
        )

    def truth(self, index: int = 0) -> Truth:
        """Reads what only the simulator knows about one world now."""
        self._scenario(index)
        rule, failure = self._rule, self._rule.failure(index)
        at, axis = self._now.instrument[index, :3], self._now.instrument_turns[index, :, 0]
        tool, grasp_m = self._now.gripper_turns[index], self._grasps_m[index]
        return Truth(
            instrument=np.concatenate([at, axis, (at - grasp_m) @ tool, axis @ tool]).astype(np.float32),
            taken=bool(rule.taken[index]),
            done=bool(rule.success[index]) or failure is not Failure.NONE,
            success=bool(rule.success[index]),
            failure=failure.value,
            facts=rule.facts(index),
        )

    def render(self, camera: str, *, index: int = 0, height: int, width: int) -> NDArray[np.uint8]:
        """Renders one camera at any size, for people.

        Raises:
            ConfigError: Unknown camera.
        """
        self._scenario(index)
        names = [*self.task.cameras, *self.task.views]
        if camera not in names:
            raise ConfigError(f"camera: {camera!r}; {choices(camera, names)}")
        return self._cameras.picture(camera, index, height=height, width=width)

    def redraw_visuals(self, index: int, rng: np.random.Generator) -> None:
        """Draws light, hues and camera offsets of one world anew, from the task's ranges.

        Pictures of the whole batch are rendered again: redraw all worlds before sensing the first.
        """
        self._scenario(index)
        self._cameras.dress([index], [sample_visuals(self.task, rng)])

    def snapshot(self, index: int = 0) -> dict[str, Any]:
        """The state of what moves in one world, for replays and debugging."""
        scenario = self._scenario(index)
        return {
            "engine": f"isaaclab {importlib.metadata.version('isaaclab')}",
            "state": self._now.numbers[index].copy(),
            "time_s": self._time_s(index),
            "scenario": scenario.model_dump(),
        }

    def close(self) -> None:
        """Frees the simulation, so that another may be opened; safe to call twice."""
        self._closing.close()

    def _clear(self) -> None:
        if self._sim is SimulationContext.instance():
            SimulationContext.clear_instance()

    def _scenario(self, index: int) -> Scenario:
        if not 0 <= index < self.spec.batch:
            raise ConfigError(f"world {index}: valid 0…{self.spec.batch - 1}")
        scenario = self._scenarios[index]
        if scenario is None:
            raise ConfigError(f"world {index} was never reset: call reset() with a scenario first")
        return scenario

    def _time_s(self, index: int) -> float:
        return float(self._steps[index] * self.task.period_s)

    def _begin(self, envs: Numbers, scenarios: Sequence[Scenario]) -> None:
        """Loads scenarios; nothing of the episodes before is left."""
        robot, task = self.robot, self.task
        for env, scenario in zip(envs, scenarios, strict=True):
            self._scenarios[env] = scenario
        kinds = np.array([self._names.index(one.instrument) for one in scenarios])
        self._kinds[envs], self._steps[envs] = kinds, 0
        self._begun[envs] = self._stable[envs] = True
        offsets_rad = np.array([one.start_rad for one in scenarios])
        starts = np.clip(np.array(robot.home_rad) + offsets_rad, robot.lower_rad, robot.upper_rad)
        self._delay.begin(envs, np.array([round(one.lag_s * task.physics_hz) for one in scenarios]), starts)
        self._place_arms(envs, starts)
        self._stiffen(envs, np.array([one.gain_factor for one in scenarios]))
        rests_m = task.tray.center_m[2] + np.array(
            [task.instruments[one.instrument].rest_height_m for one in scenarios]
        )
        self._rule.begin(envs, rests_m)
        self._lay(envs, kinds, scenarios, rests_m + _LIFT_OFF_M)
        self._engine.release(envs)
        self._engine.apply(envs, scenarios)
        self._weigh(envs, kinds, np.array([one.mass_factor for one in scenarios]))
        for name, pose in self._loose.items():
            self._put(name, envs, np.tile(pose, (len(envs), 1)))
        self._place_hands(envs)
        self._sim.forward()
        self._scene.update(0.0)
        self._now = self._read()
        self._cameras.dress(envs, [one.visuals for one in scenarios])

    def _lay(self, envs: Numbers, kinds: Numbers, scenarios: Sequence[Scenario], heights_m: Floats) -> None:
        """Puts one instrument on each tray; the others are parked."""
        x_m, y_m, _ = self.task.tray.center_m
        at_m = np.column_stack(
            [[x_m + one.x_m for one in scenarios], [y_m + one.y_m for one in scenarios], heights_m]
        )
        # Yaw zero points the tip (x of the instrument) along the base's -y.
        laid = upright(at_m, np.array([one.yaw_rad for one in scenarios]) - np.pi / 2)
        for number, name in enumerate(self._names):
            used = (kinds == number)[:, None]
            self._put(name, envs, np.where(used, laid, upright(np.array([parked_m(number)]), np.zeros(1))))
        self._engine.park(envs, kinds)

    def _place_arms(self, envs: Numbers, position_rad: Floats, velocity_radps: float | Floats = 0.0) -> None:
        """Puts arms somewhere and tells them to stay; at rest unless a velocity is given."""
        ids, position = self._ids(envs), self._tensor(position_rad[:, self._back])
        velocity = np.broadcast_to(velocity_radps, position_rad.shape)[:, self._back]
        self._arm.write_joint_state_to_sim_index(
            position=position, velocity=self._tensor(velocity), env_ids=ids
        )
        self._arm.actuators.target_command.set_position_index(value=position, env_ids=ids)

    def _stiffen(self, envs: Numbers, factors: Floats) -> None:
        """Servo gains, starting from the nominal ones."""
        ids, column = self._ids(envs), self._tensor(factors[:, None])
        stiffness, damping = (gain[envs] * column for gain in self._gains)
        self._arm.write_joint_stiffness_to_sim_index(stiffness=stiffness, env_ids=ids)
        self._arm.write_joint_damping_to_sim_index(damping=damping, env_ids=ids)

    def _weigh(self, envs: Numbers, kinds: Numbers, factors: Floats) -> None:
        """Masses and inertias of the instruments in use, starting from the nominal ones."""
        ids = self._ids(envs)
        for number, name in enumerate(self._names):
            body, column = self._scene[name], self._tensor(np.where(kinds == number, factors, 1.0)[:, None])
            body.set_masses_index(masses=self._masses[number][envs] * column, env_ids=ids)
            inertias = self._inertias[number][envs]
            body.set_inertias_index(
                inertias=inertias * column.reshape(-1, *[1] * (inertias.ndim - 1)), env_ids=ids
            )

    def _put(self, name: str, envs: Numbers, poses: Floats, *, kinematic: bool = False) -> None:
        """Puts a thing somewhere in its environments, at rest: poses of shape (n, 7), quaternion xyzw [m]."""
        moved, ids, body = poses.copy(), self._ids(envs), self._scene[name]
        moved[:, :3] += self._origins[envs]
        body.write_root_pose_to_sim_index(root_pose=self._tensor(moved), env_ids=ids)
        if not kinematic:
            rest = torch.zeros((len(envs), 6), device=self._device)
            body.write_root_velocity_to_sim_index(root_velocity=rest, env_ids=ids)

    def _place_hands(self, envs: Numbers) -> None:
        """Of the two looks of a hand the one in use follows the palm."""
        x, y, _ = self.task.hand.from_direction
        yaw_rad = np.full(len(envs), np.arctan2(y, x) - np.pi / 2)  # the hand's own frame comes from +y
        there = upright(self._rule.palm_m[envs], yaw_rad)
        for number, name in enumerate(PALM_BODIES):
            away = upright(np.array([parked_m(len(self._names) + number)]), yaw_rad[:1])
            shown = (self._rule.taken[envs] == number)[:, None]
            self._put(name, envs, np.where(shown, there, away), kinematic=True)

    def _play(self) -> None:
        """One control period of physics; commands change only where an environment's delay says so."""
        for told, count in self._delay.spans():
            self._arm.actuators.target_command.set_position_index(value=self._tensor(told[:, self._back]))
            self._arm.write_data_to_sim()
            self._engine.step(count)

    def _read(self) -> State:
        """Copies what moves, once a control period."""
        arm, rows = self._arm.data, np.arange(self.spec.batch)
        poses = np.stack([host(self._scene[name].data.root_link_pose_w) for name in self._names], axis=1)
        speeds = np.stack([host(self._scene[name].data.root_link_vel_w) for name in self._names], axis=1)
        gripper, instrument = host(arm.body_link_pose_w)[:, self._gripper], poses[rows, self._kinds]
        gripper[:, :3] -= self._origins
        instrument[:, :3] -= self._origins
        return State(
            position_rad=host(arm.joint_pos)[:, self._order],
            velocity_radps=host(arm.joint_vel)[:, self._order],
            gripper=gripper,
            instrument=instrument,
            velocity=speeds[rows, self._kinds],
        )

    def _judge(self, read: State) -> None:
        """The rule of the task after one control period."""
        broken: Rows = self._begun & ~(self._stable & read.sound())
        if broken.any():
            read = self._freeze(broken, read)
        self._now, rule = read, self._rule
        rule.update(self._reading(), among=self._begun & ~broken)
        if rule.moved.any():
            self._place_hands(np.flatnonzero(rule.moved))
        if rule.took.any():
            envs = np.flatnonzero(rule.took)
            poses = read.instrument[envs].copy()
            poses[:, :3] += self._origins[envs]
            self._engine.attach(envs, self._kinds[envs], poses)

    def _reading(self) -> Reading:
        now, pads = self._now, self._engine.touching(self._kinds)
        at, turns = now.instrument[:, :3], now.instrument_turns
        return Reading(
            time_s=self._steps * self.task.period_s,
            instrument_m=at,
            tip_axis=turns[:, :, 0],
            handle_m=at + (turns @ self._handles_m[self._kinds][:, :, None])[:, :, 0],
            speed_mps=np.linalg.norm(now.velocity[:, :3], axis=1),
            fixed_pad=pads[:, 0],
            moving_pad=pads[:, 1],
            grasp_m=self._grasps_m,
            gripper_rad=now.position_rad[:, self._jaw],
        )

    @property
    def _grasps_m(self) -> Floats:
        """Shape (batch, 3), the points between the pads, in the base frame [m]."""
        ahead = self._now.gripper_turns @ np.array(self.robot.tool.grasp_m)
        points: Floats = self._now.gripper[:, :3] + ahead
        return points

    def _freeze(self, broken: Rows, read: State) -> State:
        """The physics blew up there: shows the last good state of these rows and stops them."""
        self._stable &= ~broken
        self._rule.abort(broken)
        kept, envs = read.keeping(self._now, broken), np.flatnonzero(broken)
        self._place_arms(envs, kept.position_rad[envs])
        for number, name in enumerate(self._names):
            own = envs[self._kinds[envs] == number]
            if len(own):
                self._put(name, own, kept.instrument[own])
        return kept

    def _ids(self, envs: Numbers) -> torch.Tensor:
        return torch.tensor(envs, dtype=torch.int32, device=self._device)

    def _tensor(self, values: Floats) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def upright(at_m: Floats, yaw_rad: Floats) -> Floats:
    """Poses turned about the vertical: shape (n, 7), quaternion xyzw [m]."""
    none = np.zeros(len(at_m))
    return np.column_stack([at_m, none, none, np.sin(yaw_rad / 2), np.cos(yaw_rad / 2)])
