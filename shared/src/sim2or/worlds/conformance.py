"""What every World must do, whatever its engine: a suite for pytest to inherit.

Inherit from ``WorldConformance`` in a test module that offers two fixtures: ``world``, a batch of two with
cameras, and ``expert``, which can hand over. Only the protocol is used; nothing here knows an engine.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from sim2or.contracts.kinematics import Kinematics, rotation, transform
from sim2or.contracts.robot import RobotProfile, load_robot
from sim2or.contracts.scenario import CameraOffset, Scenario, Visuals, sample_scenario
from sim2or.contracts.task import Camera, TaskProfile, load_task
from sim2or.errors import ConfigError, MessageError
from sim2or.worlds.world import World

Floats = NDArray[np.float64]

_LARGE_PX = 480
"""Pictures for geometry; a policy's pixel is several of these."""


class Demonstrator(Protocol):
    """Whoever can do the task, with the simulator's own knowledge."""

    def reset(self, world: Any, index: int, scenario: Scenario) -> None:
        """Starts an episode of one world."""

    def act(self, world: Any, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Its joint targets [rad], without and with noise."""


class WorldConformance:
    """The suite; both profiles may be replaced by a subclass.

    Attributes:
        robot: The arm that the worlds were made with.
        task: The task that the worlds were made with.
        sag_rtol: How much of its sag a joint's dry friction may take.
    """

    robot: RobotProfile = load_robot("so101")
    task: TaskProfile = load_task("handover")
    sag_rtol: float = 0.02

    # ---- determinism, batches, clock

    def test_same_scenario_is_bit_identical(self, world: World) -> None:
        """A scenario replayed after another one gives the very same bits: reset leaves nothing behind."""
        scenarios = [self.drawn(1), self.drawn(2)]
        first = self.wave(world, scenarios)
        self.wave(world, [self.drawn(4), self.drawn(5)])
        np.testing.assert_array_equal(first, self.wave(world, scenarios))

    def test_worlds_of_a_batch_do_not_touch(self, world: World) -> None:
        """What the first world is, and how it is moved, changes no bit of the second."""
        quiet = self.wave(world, [self.drawn(1), self.drawn(2)], scale=0.0)[:, 1]
        waved = self.wave(world, [self.drawn(3), self.drawn(2)], scale=1.0, only=0)[:, 1]
        np.testing.assert_array_equal(quiet, waved)

    def test_clock_counts_control_periods_and_resets_alone(self, world: World) -> None:
        """The clock is zero at reset and grows by a period a step; resetting one world leaves the other."""
        world.reset([self.plain(), self.plain("forceps")])
        assert [world.sense(i, cameras=False).time_ns for i in (0, 1)] == [0, 0]
        for _ in range(3):
            world.step(self.home(2))
        before = world.snapshot(0)["state"]
        world.reset([self.plain("scissors")], ids=[1])
        assert world.sense(0, cameras=False).time_ns == round(3e9 / self.task.control_hz)
        assert world.sense(1, cameras=False).time_ns == 0
        np.testing.assert_array_equal(world.snapshot(0)["state"], before)

    # ---- units and actions

    def test_an_action_is_a_joint_target_in_radians(self, world: World) -> None:
        """Each joint goes where it alone is told, within a hundredth of a radian, in the spec's order."""
        for joint, name in enumerate(world.spec.joints):
            world.reset([self.plain(), self.plain()])
            goal = self.home(2)
            goal[0, joint] += 0.12 if self.home(1)[0, joint] < 1.0 else -0.12
            for _ in range(12):
                world.step(goal)
            reached = world.sense(0, cameras=False)
            np.testing.assert_allclose(reached.position_rad, goal[0], atol=0.01, err_msg=name)
            np.testing.assert_allclose(world.sense(1, cameras=False).position_rad, goal[1], atol=0.01)
            np.testing.assert_allclose(reached.velocity_radps, 0.0, atol=0.05)

    def test_a_target_beyond_the_range_stops_at_its_end(self, world: World) -> None:
        """Joints stay within their range, give or take a hundredth of a radian, whatever is asked for."""
        world.reset([self.plain(), self.plain()])
        for _ in range(30):
            goal = self.home(2)
            goal[:, [0, 5]] = 9.0
            world.step(goal)
        assert (world.sense(0, cameras=False).position_rad < self.robot.upper_rad + 0.01).all()

    def test_lag_holds_a_command_back(self, world: World) -> None:
        """With 50 ms of lag the arm has not moved after one period (33 ms); without lag it has."""
        world.reset([self.plain(), self.plain(lag_s=0.05)])
        start = [world.sense(i, cameras=False).position_rad[0] for i in (0, 1)]
        goal = self.home(2)
        goal[:, 0] += 0.1
        world.step(goal)
        moved = [abs(float(world.sense(i, cameras=False).position_rad[0] - start[i])) for i in (0, 1)]
        assert moved[0] > 0.02
        assert moved[1] < 1e-3

    def test_gains_make_the_servos_stiffer(self, world: World) -> None:
        """With a quarter of the gains gravity pulls the arm four times as far from its targets."""
        world.reset([self.plain(), self.plain(gain_factor=0.25)])
        for _ in range(15):
            world.step(self.home(2))
        sags = [world.sense(i, cameras=False).position_rad - self.home(1)[0] for i in (0, 1)]
        lifted = [self.robot.joint_names.index(name) for name in ("shoulder_lift", "elbow_flex")]
        np.testing.assert_allclose(sags[1][lifted] / sags[0][lifted], 4.0, rtol=self.sag_rtol)

    @pytest.mark.parametrize("targets", [np.zeros(6), np.zeros((3, 6)), np.full((2, 6), np.nan)])
    def test_wrong_targets_are_refused(self, world: World, targets: Floats) -> None:
        """A wrong shape or a number that is not finite never reaches the physics."""
        world.reset([self.plain(), self.plain()])
        with pytest.raises(MessageError, match=r"targets_rad has shape"):
            world.step(targets.astype(np.float32))

    def test_wrong_calls_are_refused(self, world: World) -> None:
        """An impossible scenario, too few of them, and a world that does not exist are refused."""
        with pytest.raises(ConfigError, match="yaw_rad = 3 is impossible"):
            world.reset([self.plain(yaw_rad=3.0)], ids=[0])
        with pytest.raises(ConfigError, match="1 scenarios for 2 worlds"):
            world.reset([self.plain()])
        with pytest.raises(ConfigError, match=r"world 7: valid 0…1"):
            world.sense(7)

    # ---- what is where

    def test_instrument_lies_where_the_scenario_says(self, world: World) -> None:
        """At reset the instrument is at the tray's centre plus the offset, its tip along −y turned by yaw."""
        world.reset([self.plain(x_m=0.02, y_m=-0.03, yaw_rad=0.5), self.plain("forceps")])
        at, tray = world.truth(0).instrument, self.task.tray.center_m
        np.testing.assert_allclose(at[:2], [tray[0] + 0.02, tray[1] - 0.03], atol=1e-6)
        np.testing.assert_allclose(at[3:6], [np.sin(0.5), -np.cos(0.5), 0.0], atol=1e-6)
        np.testing.assert_allclose(world.truth(1).instrument[:2], tray[:2], atol=1e-6)

    @pytest.mark.parametrize("name", list(task.instruments))
    def test_instrument_comes_to_rest_on_the_tray(self, world: World, name: str) -> None:
        """Half a second later it lies there still, at the profile's height, to half a millimetre."""
        world.reset([self.plain(name), self.plain(name, yaw_rad=0.7)])
        placed = [world.truth(i).instrument for i in (0, 1)]
        for _ in range(15):
            world.step(self.home(2))
        rest_m = self.task.tray.center_m[2] + self.task.instruments[name].rest_height_m
        for index, before in enumerate(placed):
            now = world.truth(index).instrument
            np.testing.assert_allclose(now[:3], [*before[:2], rest_m], atol=5e-4)
            np.testing.assert_allclose(now[3:6], before[3:6], atol=0.01)

    def test_truth_agrees_with_the_profiles_kinematics(self, world: World) -> None:
        """The instrument seen from the grasp point and our own kinematics give its place in the base."""
        world.reset([self.drawn(3), self.drawn(4)])
        for _ in range(5):
            world.step(self.home(2) + np.float32(0.05))
        kinematics = Kinematics(self.robot)
        for index in (0, 1):
            truth, sensed = world.truth(index), world.sense(index, cameras=False)
            gripper = kinematics.body_poses(sensed.position_rad)[
                kinematics.body_names.index(self.robot.tool.body)
            ]
            found = kinematics.grasp_position(sensed.position_rad) + gripper[:3, :3] @ truth.instrument[6:9]
            np.testing.assert_allclose(found, truth.instrument[:3], atol=2e-5)

    # ---- pictures

    def test_sensing_tells_no_secrets(self, world: World) -> None:
        """Sensors report joints, images and time only, in the declared shapes; no image unless asked for."""
        world.reset([self.plain(), self.plain()])
        blind, seeing = world.sense(0, cameras=False), world.sense(0)
        assert set(vars(seeing)) == {"position_rad", "velocity_radps", "images", "time_ns"}
        assert blind.images == {}
        assert {name: image.shape for name, image in seeing.images.items()} == dict(world.spec.cameras)
        assert {image.dtype for image in seeing.images.values()} == {np.dtype(np.uint8)}
        assert seeing.position_rad.dtype == seeing.velocity_radps.dtype == np.float32
        np.testing.assert_allclose(seeing.position_rad, self.home(1)[0], atol=1e-6)

    def test_cameras_see_the_instrument_and_follow_the_looks(self, world: World) -> None:
        """Both cameras see the green forceps; light changes the picture, not the motion."""
        bright = Visuals(light_factor=0.8)
        world.reset([self.plain("forceps", x_m=-0.02), self.plain("forceps", x_m=-0.02, visuals=bright)])
        pictures = [world.sense(i).images for i in (0, 1)]
        for image in pictures[0].values():
            red, green, blue = (image[..., channel].astype(int) for channel in range(3))
            assert ((green > 2 * red) & (green > 2 * blue)).sum() > 20
        for name, image in pictures[0].items():
            assert 0.7 < pictures[1][name].mean() / image.mean() < 0.95
        world.step(self.home(2))
        np.testing.assert_array_equal(world.snapshot(0)["state"], world.snapshot(1)["state"])

    def test_any_size_for_people(self, world: World) -> None:
        """Cameras and views render at any size, a wider one showing more at its sides; no unknown ones."""
        world.reset([self.plain(), self.plain()])
        for name in (*self.task.cameras, *self.task.views):
            wide = world.render(name, height=96, width=160).astype(int)
            assert wide.shape == (96, 160, 3)
            square = world.render(name, height=96, width=96).astype(int)
            assert np.abs(wide[:, 32:128] - square).mean() < 2, name
        with pytest.raises(ConfigError, match=r"'rom'.*did you mean 'room'"):
            world.render("rom", height=48, width=64)

    def test_no_stale_picture_after_a_reset(self, world: World) -> None:
        """The first pictures after a reset show the new episode: they equal those of a second reset."""
        start = self.plain("scissors", x_m=0.01, yaw_rad=0.3)
        self.wave(world, [self.drawn(1), self.drawn(2)], ticks=8)
        world.sense(0)
        world.reset([start, start])
        first = [world.sense(i).images for i in (0, 1)]
        world.reset([start, start])
        for index, images in enumerate(first):
            for name, again in world.sense(index).images.items():
                np.testing.assert_array_equal(images[name], again, err_msg=name)
        np.testing.assert_array_equal(first[0]["wrist"], first[1]["wrist"])

    @pytest.mark.parametrize("camera", list(task.cameras))
    @pytest.mark.parametrize("turned", [False, True])
    def test_a_known_point_is_where_the_profile_projects_it(
        self, world: World, camera: str, turned: bool
    ) -> None:
        """The scalpel's red band is seen within a policy's pixel, also once arm and camera have moved."""
        offset = CameraOffset(shift_m=(0.004, -0.003, 0.005), turn_rad=(0.015, -0.01, 0.017))
        visuals = Visuals(cameras=dict.fromkeys(self.task.cameras, offset) if turned else {})
        world.reset([self.plain(), self.plain("scalpel", yaw_rad=0.2, visuals=visuals)])
        for _ in range(8):
            world.step(self.home(2) + np.float32(0.06 if turned else 0.0))
        image = world.render(camera, index=1, height=_LARGE_PX, width=_LARGE_PX).astype(int)
        red = (image[..., 0] > 2 * image[..., 1]) & (image[..., 0] > 2 * image[..., 2]) & (image[..., 0] > 60)
        rows, columns = np.nonzero(red)
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        corners, bare = self.project(world, camera, offset if turned else CameraOffset())
        expected = np.array([*corners.min(axis=0), *corners.max(axis=0)])
        edges = np.array([*bare[corners.argmin(axis=0)], *bare[corners.argmax(axis=0)]])
        assert edges.sum() >= 2
        pixel = _LARGE_PX / self.task.images.height_px
        np.testing.assert_allclose(seen[edges], expected[edges], atol=pixel)

    def test_the_wrist_camera_moves_with_the_arm(self, world: World) -> None:
        """When the arm moves, most of the wrist's picture changes and most of the room's does not."""
        world.reset([self.plain(), self.plain()])
        before = world.sense(0).images
        for _ in range(12):
            world.step(self.home(2) + np.array([0.3, 0.2, 0.0, 0.0, 0.2, 0.0], np.float32))
        after = world.sense(0).images
        changed = {
            name: float(np.mean(np.abs(after[name].astype(int) - before[name]).max(axis=2) > 8))
            for name in before
        }
        assert changed["wrist"] > 0.2
        assert 0.0 < changed["room"] < 0.5

    # ---- the task

    @pytest.mark.slow
    def test_episodes_end_and_stay_ended(self, world: World, expert: Demonstrator) -> None:
        """The expert hands over in one world, the other arm waits: success and time-out, both final."""
        scenarios = [self.plain("scalpel", yaw_rad=0.1), self.plain("forceps")]
        world.reset(scenarios)
        expert.reset(world, 0, scenarios[0])
        taken: list[bool] = []
        for _ in range(self.task.limit_steps - 1):
            targets = self.home(2)
            targets[0] = expert.act(world, 0)[1]
            world.step(targets)
            taken.append(world.truth(0).taken)
        won, waiting = world.truth(0), world.truth(1)
        assert (won.done, won.success, won.failure) == (True, True, "")
        assert taken == sorted(taken)
        assert won.facts["handle_angle_rad"] < np.deg2rad(10)
        assert not waiting.done
        for _ in range(2):
            world.step(self.home(2))
            lost = world.truth(1)
            assert (lost.done, lost.success, lost.failure) == (True, False, "not_grasped")
        assert world.truth(0).success
        assert world.sense(1, cameras=False).time_ns == round(
            (self.task.limit_steps + 1) * 1e9 / self.task.control_hz
        )
        world.reset(scenarios)
        assert not world.truth(0).done
        assert not world.truth(1).done

    # ---- helpers

    def plain(self, instrument: str = "scalpel", **change: object) -> Scenario:
        """A scenario with nothing drawn."""
        base = Scenario(
            task=self.task.name, seed=0, instrument=instrument, request=self.task.requests[instrument]
        )
        return base.model_copy(update=change)

    def drawn(self, number: int) -> Scenario:
        """A scenario of the validation list."""
        return sample_scenario(self.task, self.task.lists["validation"].first_seed + number)

    def home(self, batch: int) -> NDArray[np.float32]:
        """Targets that hold the home pose, shape (batch, n_joints), [rad]."""
        return np.tile(np.array(self.robot.home_rad, dtype=np.float32), (batch, 1))

    def wave(
        self, world: World, scenarios: list[Scenario], *, ticks: int = 15, scale: float = 1.0, only: int = -1
    ) -> NDArray[Any]:
        """States of both worlds while one arm (``only``) or both wave, shape (ticks, 2, n_state)."""
        world.reset(scenarios)
        rows = []
        for tick in range(ticks):
            targets = self.home(2)
            moved = slice(None) if only < 0 else only
            targets[moved] += np.float32(scale * 0.15 * np.sin(tick / 5.0))
            world.step(targets)
            rows.append([world.snapshot(i)["state"] for i in (0, 1)])
        return np.array(rows)

    def project(self, world: World, camera: str, offset: CameraOffset) -> tuple[Floats, NDArray[np.bool_]]:
        """Where the corners of the scalpel's red band should be in a large picture.

        Returns:
            Shape (8, 2), column and row [px]; and shape (8,), whether the handle cannot hide that corner.
        """
        parts = self.task.instruments["scalpel"].parts
        band = next(part for part in parts if part.color[0] > 0.8 and part.visible)
        signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
        truth = world.truth(1).instrument.astype(float)
        tip = truth[3:6] / np.linalg.norm(truth[3:6])
        side = np.cross([0.0, 0.0, 1.0], tip)
        turn = np.column_stack([tip, side, np.cross(tip, side)])
        corners = truth[:3] + (np.array(band.at_m) + signs * np.array(band.half_m)) @ turn.T
        place = self.task.cameras[camera]
        kinematics = Kinematics(self.robot)
        sensed = world.sense(1, cameras=False)
        body = kinematics.body_poses(sensed.position_rad)[kinematics.body_names.index(place.body)]
        seen = np.linalg.inv(body @ mount(place, offset)) @ np.column_stack([corners, np.ones(8)]).T
        focal_px = _LARGE_PX / 2 / np.tan(place.fovy_rad / 2)
        right, up = seen[0] / -seen[2], seen[1] / -seen[2]
        return _LARGE_PX / 2 + focal_px * np.column_stack([right, -up]), signs[:, 0] > 0


def mount(place: Camera, offset: CameraOffset) -> Floats:
    """Pose of a camera in its body, shape (4, 4): x right, y up, it looks along −z."""
    x = np.array(place.x_axis) / np.linalg.norm(place.x_axis)
    y = np.array(place.y_axis) - x * (x @ place.y_axis)
    y /= np.linalg.norm(y)
    nominal = np.eye(4)
    nominal[:3, :3], nominal[:3, 3] = np.column_stack([x, y, np.cross(x, y)]), place.at_m
    turn = np.eye(4)
    for axis, angle in enumerate(offset.turn_rad):
        quaternion = [np.cos(angle / 2), 0.0, 0.0, 0.0]
        quaternion[1 + axis] = np.sin(angle / 2)
        turn[:3, :3] = turn[:3, :3] @ rotation((quaternion[0], quaternion[1], quaternion[2], quaternion[3]))
    return nominal @ transform(offset.shift_m, (1.0, 0.0, 0.0, 0.0)) @ turn
