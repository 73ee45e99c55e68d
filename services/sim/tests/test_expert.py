"""The scripted expert hands over each instrument, smoothly enough never to be clipped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import Scenario, sample_scenario
from sim2or.contracts.task import load_task
from sim2or.worlds.world import Truth
from sim2or_sim.backends import make_world
from sim2or_sim.backends.mujoco.reach import Reach
from sim2or_sim.backends.mujoco.world import MujocoWorld
from sim2or_sim.expert import Expert, duration_steps, minimum_jerk

ROBOT, TASK = load_robot("so101"), load_task("handover")


@pytest.fixture(scope="module")
def world() -> Iterator[MujocoWorld]:
    made = make_world(ROBOT, TASK, render=False)
    yield made
    made.close()


@pytest.fixture(scope="module")
def expert() -> Expert:
    return Expert(ROBOT, TASK)


def _run(
    world: MujocoWorld, expert: Expert, scenario: Scenario, noise_seed: int | None = None
) -> tuple[Truth, NDArray[np.float32], NDArray[np.float32]]:
    world.reset([scenario])
    expert.reset(world, 0, scenario, noise_seed)
    start = world.sense(cameras=False).position_rad
    labels, executed = [start, start], [start, start]
    while not world.truth().done:
        label, command = expert.act(world, 0)
        world.step(command[None])
        labels.append(label)
        executed.append(command)
    for _ in range(TASK.linger_steps):
        label, command = expert.act(world, 0)
        world.step(command[None])
        labels.append(label)
        executed.append(command)
    return world.truth(), np.array(labels), np.array(executed)


@pytest.mark.parametrize("seed", [900000, 900001, 900002, 900016, 900020, 900048])
def test_hands_over(world: MujocoWorld, expert: Expert, seed: int) -> None:
    """Each instrument is handed over within the limit, its handle offered to the hand within ten degrees."""
    truth, _, _ = _run(world, expert, sample_scenario(TASK, seed))
    assert truth.success, truth.failure
    assert truth.facts["handle_angle_rad"] < np.deg2rad(10)


def test_noise_is_executed_and_labels_are_clean(world: MujocoWorld, expert: Expert) -> None:
    """With noise the executed targets differ from the labels, without it they are the labels."""
    scenario = sample_scenario(TASK, 900005, TASK.demo_ranges)
    truth, labels, executed = _run(world, expert, scenario, noise_seed=5)
    assert truth.success
    assert np.abs(executed - labels)[:, :5].max() > 0.002
    assert np.array_equal(executed[:, 5], labels[:, 5])
    _, labels, executed = _run(world, expert, scenario)
    assert np.array_equal(executed, labels)


def test_noise_repeats_with_its_seed(world: MujocoWorld, expert: Expert) -> None:
    """The same scenario and noise seed give the same demonstration."""
    scenario = sample_scenario(TASK, 900008)
    first, again = (_run(world, expert, scenario, noise_seed=8)[2] for _ in range(2))
    assert np.array_equal(first, again)


def test_targets_stay_well_within_the_limits(world: MujocoWorld, expert: Expert) -> None:
    """Speed, acceleration, step and workspace of noisy targets leave a fifth of each limit unused."""
    _, _, executed = _run(world, expert, sample_scenario(TASK, 900011, TASK.demo_ranges), noise_seed=11)
    step = np.abs(np.diff(executed.astype(float), axis=0))
    change = np.abs(np.diff(executed.astype(float), n=2, axis=0))
    for joint, limit in enumerate(ROBOT.joints):
        assert step[:, joint].max() < 0.8 * limit.step_max_rad
        assert step[:, joint].max() * TASK.control_hz < 0.8 * limit.velocity_max_radps
        assert change[:, joint].max() * TASK.control_hz**2 < 0.8 * limit.acceleration_max_radps2
    tool = Kinematics(ROBOT).grasp_position(executed)
    assert (tool > TASK.safety.tool_low_m).all()
    assert (tool < TASK.safety.tool_high_m).all()


def test_reach_puts_the_grasp_point_there() -> None:
    """Inverse kinematics reaches a point over the tray to 0.2 mm, pointing down, and keeps the jaws."""
    goal = np.array([0.25, -0.09, 0.03])
    solved = Reach(ROBOT).solve(goal, 0.4, np.array(ROBOT.home_rad))
    kinematics = Kinematics(ROBOT)
    np.testing.assert_allclose(kinematics.grasp_position(solved), goal, atol=2e-4)
    gripper = kinematics.body_poses(solved)[kinematics.body_names.index(ROBOT.tool.body)]
    np.testing.assert_allclose(gripper[:3, 2], [0, 0, 1], atol=5e-3)
    assert solved[5] == ROBOT.home_rad[5]


def test_motion_plan_by_hand() -> None:
    """1.1 rad at a peak of 2.2 rad/s takes 1.875 · 1.1 / 2.2 = 0.9375 s, 29 periods; half way is half way."""
    assert duration_steps(np.array([0.0, 1.1]), 30.0) == 29
    assert [minimum_jerk(share) for share in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
