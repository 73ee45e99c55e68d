"""Rooms in MuJoCo's threads: the world's physics, the scenario's delays, episodes that do not touch."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or_sim.backends.mujoco import scene
from sim2or_sim.rl.grasp import AIM_M
from sim2or_sim.rl.mujoco_env import MujocoEnv
from sim2or_sim.rl.near import near_starts
from sim2or_sim.rl.rooms import Rooms, solid_model
from sim2or_sim.rl.starts import Starts, listed_starts
from sim2or_sim.rl.tally import Tally
from sim2or_sim.rl.task import learning_task

ROBOT, TASK = load_robot("so101"), load_task("handover")


def rooms(count: int, *, handled: bool = True, threads: int = 2) -> Rooms:
    return Rooms(
        ROBOT,
        TASK,
        count=count,
        instrument="scalpel",
        physics_hz=600,
        threads=threads,
        handled=handled,
    )


def env(*, num_envs: int = 8, seed: int = 0, threads: int = 2) -> MujocoEnv:
    learning = learning_task("reach", ROBOT, TASK, "scalpel")
    return MujocoEnv(
        learning, ROBOT, TASK, num_envs=num_envs, seed=seed, threads=threads, instrument="scalpel"
    )


def test_the_solid_model_moves_as_the_worlds() -> None:
    """Without what is only seen, an arm that pushes the instrument moves both alike to the last bits."""
    whole = scene.build_scene(ROBOT, TASK, "scalpel")
    solid = solid_model(ROBOT, TASK, "scalpel", TASK.physics_hz)
    ends = []
    for model in (whole, solid):
        data = mujoco.MjData(model)
        data.qpos[:6] = data.ctrl[:] = ROBOT.home_rad
        data.qpos[6:13] = (0.235, -0.05, 0.0112, 1, 0, 0, 0)
        for step in range(300):
            data.ctrl[:] = np.array(ROBOT.home_rad) + 0.4 * np.sin(step / 60) * np.array([1, 1, 1, 0, 1, 1])
            mujoco.mj_step(model, data)
        ends.append(data.qpos.copy())
    assert np.abs(ends[0] - ends[1]).max() < 1e-9


def test_a_room_does_not_know_the_others() -> None:
    """The first of eight rooms, whatever the threads, ends where it ends alone."""
    starts = listed_starts("grasp", ROBOT, TASK, "validation", 8)
    ends = []
    for count, threads in ((1, 1), (8, 1), (8, 3)):
        made = rooms(count, threads=threads)
        made.put(np.arange(count), starts.rows(np.arange(count)))
        for _ in range(20):
            made.step(np.tile(np.array(ROBOT.home_rad) + 0.2, (count, 1)))
        ends.append(made.position_rad[0])
        made.close()
    assert np.array_equal(ends[0], ends[1])
    assert np.array_equal(ends[0], ends[2])


def test_a_command_is_heard_after_its_delay() -> None:
    """With 50 ms of delay nothing moves in the first period of 33 ms and something in the second."""
    made = rooms(2, handled=False)
    home = np.array(ROBOT.home_rad)
    starts = Starts(
        start_rad=np.tile(home, (2, 1)),
        target_m=np.zeros((2, 3)),
        instrument=np.zeros((2, 3)),
        lag_s=np.array([0.0, 0.05]),
    )
    made.put(np.arange(2), starts)
    moved = []
    for _ in range(2):
        made.step(np.tile(home + 0.1 * np.eye(6)[0], (2, 1)))
        moved.append(made.position_rad[:, 0] - home[0])
    made.close()
    assert moved[0][0] > 0.01
    assert abs(moved[0][1]) < 1e-3
    assert moved[1][1] > 0.01


def test_an_instrument_at_rest_is_touched_by_nothing() -> None:
    """It lies where the scenario put it, its tip along the base's −y at yaw zero, and no pad touches it."""
    made = rooms(1)
    one = listed_starts("grasp", ROBOT, TASK, "validation", 1)
    flat = Starts(one.start_rad, one.target_m, np.zeros((1, 3)), np.zeros(1))
    made.put(np.arange(1), flat)
    for _ in range(15):
        made.step(flat.start_rad)
    found = made.instruments()
    made.close()
    assert found.at_m[0] == pytest.approx([0.235, -0.05, 0.011], abs=1e-3)
    assert found.tip_axis[0] == pytest.approx([0, -1, 0], abs=1e-2)
    assert not found.pads.any()


def test_one_seed_is_one_run() -> None:
    """The same seed and actions give the same observations past episodes' ends; another seed does not."""
    seen = []
    for seed in (3, 3, 4):
        made = env(seed=seed)
        torch.manual_seed(0)
        for _ in range(70):
            observation, *_ = made.step(torch.randn(8, 5))
        seen.append(observation["policy"])
        made.close()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_episodes_end_by_time_and_begin_anew() -> None:
    """After as many periods as an episode has, every room has ended once, by time, and starts near home."""
    made = env()
    made.episode_length_buf = torch.zeros(8, dtype=torch.long)
    for _ in range(made.max_episode_length):
        _, _, done, extras = made.step(torch.zeros(8, 5))
    assert done.tolist() == [1] * 8
    assert extras["time_outs"].all()
    state = made.state()
    home = torch.tensor(ROBOT.home_rad)
    assert (state.position_rad - home).abs().max() <= 0.3 + 1e-6
    assert torch.equal(state.command_rad, state.position_rad)
    made.close()


def test_a_snapshot_continues_bit_by_bit() -> None:
    """Restored into other rooms, the same actions give the same observations, episodes' ends included."""
    one, other = env(seed=1), env(seed=2)
    for _ in range(10):
        one.step(torch.ones(8, 5))
    other.restore(*one.snapshot())
    for _ in range(70):
        seen = [made.step(torch.full((8, 5), -0.5))[0]["policy"] for made in (one, other)]
    assert torch.equal(*seen)
    one.close()
    other.close()


def test_episodes_near_the_goal_have_the_instrument_between_open_jaws() -> None:
    """Seen from the tool it lies where it belongs, or up to 6 cm below, and across the jaws."""
    learning = learning_task("grasp", ROBOT, TASK, "scalpel")
    made = MujocoEnv(learning, ROBOT, TASK, num_envs=6, seed=0, threads=1, instrument="scalpel")
    made.begin(np.arange(6), near_starts(ROBOT, TASK, "scalpel", np.random.default_rng(0), 6))
    state = made.state()
    made.close()
    off = (state.tool_axes.transpose(1, 2) @ (state.instrument_m - state.tool_m)[:, :, None])[:, :, 0]
    assert np.abs(off.numpy()[:, :2] - AIM_M[:2]).max() < 1e-3
    assert ((off[:, 2] < AIM_M[2] + 1e-3) & (off[:, 2] > AIM_M[2] - 0.061)).all()
    assert (state.tool_axes[:, :, 0] * state.tip_axis).sum(-1).abs().max() < 0.01


def test_a_tally_gives_means_and_forgets() -> None:
    """Three episodes in two portions: rewards 1, 2 and 6 have the mean 3; then there is nothing left."""
    tally = Tally()
    tally.add(reward=torch.tensor([1.0, 2.0]))
    tally.add(reward=torch.tensor([6.0]))
    assert tally.take() == {"reward": 3.0}
    assert tally.take() == {}
