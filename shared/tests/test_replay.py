"""Recorded commands come back as they were told, and only in the scenario that they were told in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import Scenario, sample_scenario
from sim2or.contracts.task import load_task
from sim2or.episode import Episode as Demonstration
from sim2or.episode import EpisodeHeader, write_episode, write_index
from sim2or.errors import JobError
from sim2or.messages.observation import Observation
from sim2or.rollout import motion
from sim2or.rollout.episode import Episode
from sim2or.rollout.motion import motion_path
from sim2or.rollout.replay import Recording, ReplayActor, read_recordings

ROBOT, TASK = load_robot("so101"), load_task("handover")
SCENARIO = sample_scenario(TASK, 900_000)
COMMANDS = np.linspace(0, 1, 8 * 6, dtype=np.float32).reshape(8, 6)


def episode(commands: np.ndarray = COMMANDS) -> Episode:
    """An episode with these commands; the arm is at −1 throughout."""
    found = Episode("e")
    for tick, command in enumerate(commands):
        found.measured_rad.append(np.full(6, -1, np.float32))
        found.velocity_radps.append(np.zeros(6, np.float32))
        found.commanded_rad.append(command)
        found.time_ns.append(tick)
        found.hold.append(False)
        found.age_ns.append(0)
        found.instrument.append(np.arange(12, dtype=np.float32))
        found.taken.append(tick > 5)
    return found


def rollouts(directory: Path, scenario: Scenario = SCENARIO, commands: np.ndarray = COMMANDS) -> Path:
    """Rollouts of one trial."""
    directory.mkdir()
    line = {"seed": scenario.seed, "scenario": scenario.model_dump(mode="json")}
    (directory / "trials.jsonl").write_text(json.dumps(line) + "\n")
    motion.write(motion_path(directory, scenario.seed), episode(commands))
    return directory


def demonstrations(directory: Path) -> Path:
    """Collected episodes: one, whose labels are ``COMMANDS``."""
    header = EpisodeHeader(
        index=0,
        seed=SCENARIO.seed,
        robot=ROBOT.name,
        task=TASK.name,
        joints=ROBOT.joint_names,
        request=SCENARIO.request,
        parent="train:0",
        success=True,
        control_hz=TASK.control_hz,
        physics_hz=TASK.physics_hz,
        scenario=SCENARIO.model_dump(mode="json"),
    )
    rows = len(COMMANDS)
    recorded = Demonstration(
        header=header,
        actions_rad=COMMANDS,
        position_rad=COMMANDS,
        velocity_radps=COMMANDS,
        time_s=np.arange(rows) / 30,
        instrument=np.zeros((rows, 12), np.float32),
        taken=np.zeros(rows, np.uint8),
        images={name: np.zeros((rows, 8, 8, 3), np.uint8) for name in TASK.cameras},
    )
    write_episode(recorded, directory)
    write_index([recorded.index_entry()], directory)
    return directory


def question(tick: int) -> Observation:
    """An observation at a tick."""
    return Observation(
        robot="so101",
        task="handover",
        request=SCENARIO.request,
        episode="e",
        tick=tick,
        state_rad=np.zeros(6, np.float32),
        images={},
        captured_ns=tick,
    )


def test_a_motion_comes_back_as_it_was(tmp_path: Path) -> None:
    """Every column of an episode, bit for bit, under its name."""
    path = motion_path(tmp_path, 7)
    motion.write(path, episode())
    table = motion.read(path)
    for name, rows in episode().arrays().items():
        np.testing.assert_array_equal(table[name], rows)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00torn", None])
def test_a_torn_motion_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """An empty, torn or missing file is named with what to do."""
    path = tmp_path / "7.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobError, match=r"7\.npy.*roll out again"):
        motion.read(path)


def test_an_array_without_the_columns_is_no_motion(tmp_path: Path) -> None:
    """The fields that are missing are named."""
    np.save(tmp_path / "7.npy", np.zeros(3, [("time_ns", np.int64)]))
    with pytest.raises(JobError, match="no field measured_rad, commanded_rad"):
        motion.read(tmp_path / "7.npy")


def test_commands_are_played_by_tick_and_the_last_one_stays() -> None:
    """A chunk begins at the observation's tick; past the end of the record it repeats the last command."""
    actor = ReplayActor({SCENARIO.seed: Recording(SCENARIO.model_dump(mode="json"), COMMANDS)}, horizon=4)
    actor.reset(SCENARIO)
    np.testing.assert_array_equal(actor.act(question(2)).actions_rad, COMMANDS[2:6])
    np.testing.assert_array_equal(actor.act(question(6)).actions_rad, COMMANDS[[6, 7, 7, 7]])


@pytest.mark.parametrize("make", [rollouts, demonstrations])
def test_rollouts_and_demonstrations_can_be_replayed(tmp_path: Path, make: object) -> None:
    """What the robot was told, or what a demonstration teaches, by the seed of its scenario."""
    recordings = read_recordings([make(tmp_path / "in")])  # type: ignore[operator]
    assert list(recordings) == [SCENARIO.seed]
    np.testing.assert_array_equal(recordings[SCENARIO.seed].commands_rad, COMMANDS)
    ReplayActor(recordings, horizon=4).reset(SCENARIO)


def test_where_nothing_was_told_the_arm_stays(tmp_path: Path) -> None:
    """A tick without a command is replayed as the position measured there."""
    commands = COMMANDS.copy()
    commands[0] = np.nan
    found = read_recordings([rollouts(tmp_path / "in", commands=commands)])[SCENARIO.seed].commands_rad
    np.testing.assert_array_equal(found[:2], [np.full(6, -1), COMMANDS[1]])


def test_another_scenario_is_refused() -> None:
    """No commands of a seed, or commands told in another scenario of that seed: both say what differs."""
    actor = ReplayActor({SCENARIO.seed: Recording(SCENARIO.model_dump(mode="json"), COMMANDS)}, horizon=4)
    with pytest.raises(JobError, match=r"no commands of seed=900001; .* 1 seeds in 900000…900000"):
        actor.reset(sample_scenario(TASK, 900_001))
    with pytest.raises(JobError, match=r"seed=900000 .*differs in mass_factor"):
        actor.reset(SCENARIO.model_copy(update={"mass_factor": 1.5}))


def test_what_holds_no_commands_is_refused(tmp_path: Path) -> None:
    """A directory of neither kind, and the same seed twice."""
    (tmp_path / "else").mkdir()
    with pytest.raises(JobError, match=r"neither trials\.jsonl nor index\.jsonl"):
        read_recordings([tmp_path / "else"])
    one, two = rollouts(tmp_path / "a"), rollouts(tmp_path / "b")
    with pytest.raises(JobError, match="seed=900000 occurs twice"):
        read_recordings([one, two])
