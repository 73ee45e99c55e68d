"""The learning contract: observations, rewards and actions worked out by hand; lists that do not meet."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.errors import ConfigError
from sim2or_sim.rl import grasp, reach
from sim2or_sim.rl.action import DELTA_MAX_RAD, next_command
from sim2or_sim.rl.contract import CONTRACT_FILE, Contract
from sim2or_sim.rl.kinematics import ToolKinematics
from sim2or_sim.rl.starts import SEEDS, listed_starts
from sim2or_sim.rl.state import State
from sim2or_sim.rl.task import TaskName, learning_task

ROBOT, TASK = load_robot("so101"), load_task("handover")
REST_M = torch.tensor(0.011)


def a_state(**changes: torch.Tensor) -> State:
    """One room: joints at zero, the tool straight down over an instrument at rest."""
    one = {
        "position_rad": torch.zeros(1, 6),
        "velocity_radps": torch.zeros(1, 6),
        "command_rad": torch.zeros(1, 6),
        "tool_m": torch.tensor([[0.2, 0.0, 0.1]]),
        "tool_axes": torch.eye(3)[None],
        "target_m": torch.zeros(1, 3),
        "instrument_m": torch.tensor([[0.2, 0.0, 0.011]]),
        "tip_axis": torch.tensor([[0.0, -1.0, 0.0]]),
        "pads": torch.zeros(1, 2, dtype=torch.bool),
        "action": torch.zeros(1, 6),
        "previous_action": torch.zeros(1, 6),
    }
    return replace(State(**one), **changes)


def test_reach_observes_its_channels_in_order() -> None:
    """Five joints, their commands' lead, the target, and the way from the tool to it."""
    state = a_state(
        position_rad=torch.arange(6.0)[None] / 10,
        command_rad=torch.arange(6.0)[None] / 10 + 0.02,
        target_m=torch.tensor([[0.25, 0.1, 0.08]]),
    )
    found = reach.observation(state)[0]
    expected = [0, 0.1, 0.2, 0.3, 0.4, *[0.02] * 5, 0.25, 0.1, 0.08, 0.05, 0.1, -0.02]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert len(found) == sum(channel.size for channel in reach.channels(ROBOT.joint_names))


def test_reach_is_achieved_within_a_centimetre() -> None:
    """9.9 mm from the target count and 10.1 mm do not."""
    for off_m, achieved in ((0.0099, True), (0.0101, False)):
        state = a_state(target_m=torch.tensor([[0.2, off_m, 0.1]]))
        assert bool(reach.achieved(state)) is achieved


def test_reach_rewards_closeness_and_costs_haste() -> None:
    """On the target both shares are one; a step from +1 to −1 on one joint costs four."""
    on = a_state(target_m=torch.tensor([[0.2, 0.0, 0.1]]), action=torch.tensor([[-1.0, 0, 0, 0, 0]]))
    on = replace(on, previous_action=torch.tensor([[1.0, 0, 0, 0, 0]]))
    terms = reach.rewards(on)
    assert [float(terms[name]) for name in ("approach", "precision", "action_rate", "speed")] == [1, 1, 4, 0]
    assert set(terms) == set(reach.WEIGHTS)


def test_grasp_sees_the_instrument_as_the_tool_does() -> None:
    """With the tool turned by 90° about the vertical, what lies along the base's x is along the tool's −y."""
    turned = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    state = a_state(tool_axes=turned, instrument_m=torch.tensor([[0.25, 0.0, 0.1]]))
    found = grasp.observation(state, REST_M)[0]
    assert found[15:18].tolist() == pytest.approx([0.0, -0.05, 0.0], abs=1e-6)
    assert found[18:21].tolist() == pytest.approx([-1.0, 0.0, 0.0], abs=1e-6)
    assert float(found[21]) == pytest.approx(0.089)
    assert len(found) == sum(channel.size for channel in grasp.channels(ROBOT.joint_names))


def test_grasp_needs_both_pads_and_height() -> None:
    """Held by both pads 50 mm above its rest it counts; by one pad, or 1 mm lower, it does not."""
    high, low = torch.tensor([[0.2, 0.0, 0.0611]]), torch.tensor([[0.2, 0.0, 0.060]])
    both, one = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    for instrument_m, pads, achieved in ((high, both, True), (high, one, False), (low, both, False)):
        state = a_state(instrument_m=instrument_m, pads=pads)
        assert bool(grasp.achieved(state, REST_M)) is achieved
    assert set(grasp.rewards(a_state(), REST_M)) == set(grasp.WEIGHTS)


def test_an_action_moves_its_joint_by_a_bounded_step_inside_the_range() -> None:
    """Ten times too large an action moves 0.03 rad, no joint leaves its range, and the gripper stays."""
    lower, upper = torch.full((6,), -0.5), torch.full((6,), 0.5)
    moves = torch.eye(6)[:, :5]
    command = torch.tensor([[0.0, 0.0, 0.49, -0.49, 0.2, 0.3]])
    action = torch.tensor([[10.0, -0.5, 1.0, -1.0, 0.0]])
    found = next_command(command, command, action, moves, lower, upper)[0]
    expected = [DELTA_MAX_RAD, -DELTA_MAX_RAD / 2, 0.5, -0.5, 0.2, 0.3]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_targets_do_not_wind_up() -> None:
    """What cannot follow has its target 0.06 rad ahead, however long it pushes; what does not act stays."""
    wide = torch.full((6,), 3.0)
    moves, position = torch.eye(6)[:, :5], torch.zeros(1, 6)
    command = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.3]])
    for _ in range(100):
        command = next_command(
            command, position, torch.tensor([[1.0, -1.0, 0.5, 0.0, 1.0]]), moves, -wide, wide
        )
    assert command[0].tolist() == pytest.approx([0.06, -0.06, 0.06, 0.0, 0.06, 0.3], abs=1e-6)


def test_full_steps_stay_inside_the_kernels_limits() -> None:
    """The speed of a full step and the change to the opposite one are what every joint may do."""
    speed_radps = DELTA_MAX_RAD * TASK.control_hz
    change_radps2 = 2 * DELTA_MAX_RAD * TASK.control_hz**2
    for joint in ROBOT.joints:
        assert speed_radps <= joint.velocity_max_radps
        assert change_radps2 <= joint.acceleration_max_radps2
        assert joint.step_max_rad >= DELTA_MAX_RAD


def test_torch_kinematics_are_the_contracts() -> None:
    """The tool point and axes of random poses agree with the numpy kinematics to a micrometre."""
    position = np.random.default_rng(0).uniform(ROBOT.lower_rad, ROBOT.upper_rad, (200, 6))
    tool_m, axes = ToolKinematics(ROBOT)(torch.tensor(position, dtype=torch.float32))
    shared = Kinematics(ROBOT)
    body = shared.body_names.index(ROBOT.tool.body)
    assert np.abs(tool_m.numpy() - shared.grasp_position(position)).max() < 1e-6
    assert np.abs(axes.numpy() - shared.body_poses(position)[:, body, :3, :3]).max() < 1e-5


def test_lists_are_disjoint_and_repeatable() -> None:
    """No seed is in two lists, and the same seed gives the same episode however many are asked for."""
    ends = sorted((first, first + count) for first, count in SEEDS.values())
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ends))
    few, many = (listed_starts("reach", ROBOT, TASK, "validation", count) for count in (2, 5))
    assert np.array_equal(few.target_m, many.target_m[:2])
    assert np.array_equal(few.start_rad, many.start_rad[:2])


def test_targets_are_inside_the_kernels_box() -> None:
    """The safety kernel lets the tool go wherever a target may be."""
    low, high = np.array(reach.TARGET_LOW_M), np.array(reach.TARGET_HIGH_M)
    assert (low > np.array(TASK.safety.tool_low_m)).all()
    assert (high < np.array(TASK.safety.tool_high_m)).all()


def test_an_unknown_list_is_named_with_the_valid_ones() -> None:
    """The valid lists stand in the message."""
    with pytest.raises(ConfigError, match=r"'testing'.*validation"):
        listed_starts("reach", ROBOT, TASK, "testing", 1)


@pytest.mark.parametrize("name", ["reach", "grasp"])
def test_a_contract_survives_its_file(name, tmp_path) -> None:
    """What is read is what was written, sizes included."""
    learning = learning_task(name, ROBOT, TASK, "scalpel")
    contract = learning.contract(ROBOT, TASK.control_hz)
    contract.write(tmp_path)
    assert Contract.read(tmp_path) == contract
    assert contract.size == {"reach": 16, "grasp": 22}[name]


def test_a_missing_or_broken_contract_is_refused(tmp_path) -> None:
    """Both errors name the file; the missing one says what to do."""
    with pytest.raises(ConfigError, match="train it again"):
        Contract.read(tmp_path)
    (tmp_path / CONTRACT_FILE).write_text('{"version": 1}')
    with pytest.raises(ConfigError, match="no observation contract"):
        Contract.read(tmp_path)


@pytest.mark.parametrize(("goal", "privileged"), [("reach", False), ("grasp", True)])
def test_who_is_told_where_the_instrument_lies_is_privileged(goal: TaskName, *, privileged: bool) -> None:
    """Only the simulator knows the instrument's pose: what learns from it says so."""
    learning = learning_task(goal, load_robot("so101"), load_task("handover"), "scalpel")
    told = any("instrument" in channel.name for channel in learning.channels)
    assert (learning.privileged, told) == (privileged, privileged)
