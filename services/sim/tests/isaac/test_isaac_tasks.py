"""The environments for reinforcement learning are what their contract says, in Isaac Lab's own terms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from isaaclab_newton.physics import NewtonManager
from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or_sim.backends.isaaclab.configuration import ROBOT as ROBOT_NAME
from sim2or_sim.backends.isaaclab.configuration import ROOM
from sim2or_sim.backends.isaaclab.tasks import GRASP, HAND_OVER, REACH, make_env
from sim2or_sim.rl import grasp, reach

ROBOT, TASK = load_robot("so101"), load_task("handover")
ENVS = 3

pytestmark = pytest.mark.isaac


@pytest.fixture(scope="module")
def reaching() -> Iterator[Any]:
    """Three arms with targets."""
    env = make_env(REACH, num_envs=ENVS, seed=1)
    yield env.unwrapped
    env.close()


@pytest.mark.parametrize("name", [HAND_OVER, REACH, GRASP])
def test_isaac_lab_finds_them(name: str) -> None:
    """Each is registered with gymnasium, with the configuration that Isaac Lab's tools look for."""
    assert gymnasium.spec(name).kwargs["env_cfg_entry_point"].startswith("sim2or_sim.")


def test_the_state_is_the_arms(reaching: Any) -> None:
    """After moving, positions, tool point and target are those of the profile's kinematics, in its base."""
    reaching.reset()
    for _ in range(3):
        observation = reaching.step(torch.full((ENVS, reach.ACTION_JOINTS), 0.7))[0]["policy"]
    state = reaching.state()
    kinematics = Kinematics(ROBOT)
    position = state.position_rad.numpy().astype(float)
    np.testing.assert_allclose(state.tool_m, kinematics.grasp_position(position), atol=1e-5)
    poses = kinematics.body_poses(position)[:, kinematics.body_names.index(ROBOT.tool.body)]
    np.testing.assert_allclose(state.tool_axes, poses[:, :3, :3], atol=1e-5)
    assert observation.shape == (ENVS, sum(one.size for one in reach.channels(ROBOT.joint_names)))
    torch.testing.assert_close(observation, reach.observation(state))
    assert (state.target_m >= torch.tensor(reach.TARGET_LOW_M)).all()
    assert (state.target_m <= torch.tensor(reach.TARGET_HIGH_M)).all()
    assert len(state.target_m.unique(dim=0)) == ENVS


def test_actions_move_the_command_and_rewards_are_the_contracts(reaching: Any) -> None:
    """Each step moves five joints' targets by a bounded step, and pays the contract's terms."""
    reaching.reset()
    before = reaching.state().command_rad.clone()
    paid = reaching.step(torch.full((ENVS, reach.ACTION_JOINTS), -5.0))[1]
    state = reaching.state()
    moved = (state.command_rad - before)[0].tolist()
    assert moved == pytest.approx([-0.03] * reach.ACTION_JOINTS + [0.0], abs=1e-6)
    total = sum(reach.WEIGHTS[name] * value for name, value in reach.rewards(state).items())
    torch.testing.assert_close(paid, total * TASK.period_s)


def test_an_episode_ends_by_time_with_a_verdict(reaching: Any) -> None:
    """An arm that stays at its target has succeeded at the end; one whose target is elsewhere has not."""
    reaching.reset()
    home = torch.tensor([ROBOT.home_rad] * ENVS)
    reaching.start_from(home)
    reaching.target_m[:] = reaching.state().tool_m
    reaching.target_m[0, 2] += 0.05
    ends = []
    for _ in range(reach.EPISODE_STEPS):
        _, _, ended, late, _ = reaching.step(torch.zeros(ENVS, reach.ACTION_JOINTS))
        ends.append((ended.any().item(), late.all().item()))
    assert ends == [(False, False)] * (reach.EPISODE_STEPS - 1) + [(False, True)]
    assert reaching.termination_manager.get_term("success").tolist() == [False, True, True]
    state = reaching.state()
    torch.testing.assert_close(state.command_rad, state.position_rad)
    assert (state.position_rad[:, 0] != home[:, 0]).all(), "the next episode has begun"
    assert (reaching.episode_length_buf == 0).all()


def test_rsl_rl_takes_it(reaching: Any) -> None:
    """RSL-RL's wrapper of Isaac Lab steps it and hands over the time-outs."""
    wrapped = RslRlVecEnvWrapper(reaching, clip_actions=1.0)
    assert (wrapped.num_envs, wrapped.num_actions) == (ENVS, reach.ACTION_JOINTS)
    observation, _, _, extras = wrapped.step(torch.zeros(ENVS, reach.ACTION_JOINTS))
    assert observation["policy"].shape == (ENVS, 16)
    assert not extras["time_outs"].any()


@pytest.fixture(scope="module")
def grasping(reaching: Any) -> Iterator[Any]:
    """Three arms with an instrument; Isaac Lab has one simulation in a process, so the others end first."""
    reaching.close()
    env = make_env(GRASP, num_envs=ENVS, seed=1)
    yield env.unwrapped
    env.close()


def test_an_instrument_lies_in_every_room(grasping: Any) -> None:
    """Laid where one says, it comes to rest there at its own height; the contract's observation sees it."""
    grasping.reset()
    kinds, at_m = torch.tensor([0, 1, 2]), torch.tensor([[0.0, 0.0], [0.02, -0.03], [-0.01, 0.04]])
    grasping.tray.lay(torch.arange(ENVS), kinds, at_m, torch.tensor([0.0, 0.5, -0.5]))
    grasping.sim.forward()
    grasping.moved()
    for _ in range(8):
        observation = grasping.step(torch.zeros(ENVS, grasp.ACTION_JOINTS))[0]["policy"]
    state = grasping.state()
    torch.testing.assert_close(observation, grasp.observation(state, grasping.rest_m))
    center = torch.tensor(TASK.tray.center_m[:2])
    torch.testing.assert_close(state.instrument_m[:, :2], center + at_m, atol=1e-3, rtol=0)
    torch.testing.assert_close(state.instrument_m[:, 2], grasping.rest_m, atol=5e-4, rtol=0)
    yaw = torch.tensor([0.0, 0.5, -0.5])
    expected = torch.stack([yaw.sin(), -yaw.cos(), torch.zeros(3)], dim=1)
    torch.testing.assert_close(state.tip_axis, expected, atol=0.01, rtol=0)
    assert not state.pads.any()
    assert not grasp.achieved(state, grasping.rest_m).any()


def test_physics_varies_inside_the_tasks_ranges(grasping: Any) -> None:
    """At every reset masses, frictions of grip and gains are drawn anew, each inside the profile's range."""
    ranges, seen = TASK.ranges, []
    for _ in range(2):
        grasping.reset()
        grasping.step(torch.zeros(ENVS, grasp.ACTION_JOINTS))
        masses = {name: grasping.scene[name].data.body_mass.torch.flatten() for name in TASK.instruments}
        factors = {name: mass / TASK.instruments[name].mass_kg for name, mass in masses.items()}
        gains = grasping.scene["robot"].data.joint_stiffness.torch / ROBOT.servo.stiffness_nmprad
        frictions = _frictions()
        for values, (low, high) in (
            *((factor.numpy(), ranges.mass_factor) for factor in factors.values()),
            (gains.numpy(), ranges.gain_factor),
            (frictions["pad"] / ROBOT.tool.pad_friction.slide, ranges.grip_friction_factor),
            (frictions["scalpel"] / TASK.instruments["scalpel"].friction.slide, ranges.grip_friction_factor),
        ):
            assert (values > low - 1e-5).all()
            assert (values < high + 1e-5).all()
            assert len(np.unique(values)) > 1
        np.testing.assert_allclose(frictions["tray"], TASK.tray.friction.slide, rtol=1e-6)
        seen.append(np.concatenate([*(factor.numpy() for factor in factors.values()), frictions["pad"]]))
    assert (seen[0] != seen[1]).all()


def _frictions() -> dict[str, np.ndarray]:
    """Sliding frictions in the model that is stepped, of what touches, by what it belongs to."""
    model = NewtonManager.get_model()
    values, labels = model.shape_material_mu.numpy(), model.shape_label
    parts = {"pad": f"/{ROBOT_NAME}/", "scalpel": "/scalpel/", "tray": f"/{ROOM}/tray"}
    return {
        group: values[[part in label and label.endswith("_touch") for label in labels]]
        for group, part in parts.items()
    }
