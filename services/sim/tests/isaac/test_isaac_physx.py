"""PhysX without Kit does what every World must do; its package is not in the lock (docs/isaaclab.md)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.worlds.conformance import WorldConformance
from sim2or.worlds.world import World
from sim2or_sim.backends.isaaclab.configuration import IsaacSettings
from sim2or_sim.backends.isaaclab.world import IsaacLabWorld
from sim2or_sim.expert import Expert

ROBOT, TASK = load_robot("so101"), load_task("handover")
SCALPEL = list(TASK.instruments).index("scalpel")

pytestmark = [
    pytest.mark.isaac,
    pytest.mark.skipif(find_spec("ovphysx") is None, reason="ovphysx is not installed: docs/isaaclab.md"),
]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Two rooms with cameras, as Newton's tests have them."""
    made = IsaacLabWorld(ROBOT, TASK, batch=2, settings=IsaacSettings(physics="ovphysx"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def expert() -> Expert:
    return Expert(ROBOT, TASK)


class TestPhysxWorld(WorldConformance):
    """The suite on PhysX; its joints stick, where MuJoCo's friction gives way slowly."""

    sag_rtol = 0.05


def test_joints_have_the_profiles_servos(world: IsaacLabWorld) -> None:
    """Gains, torque limits, armature and joint friction that PhysX works with are the profile's."""
    suite, data, servo = WorldConformance(), world._arm.data, ROBOT.servo
    world.reset([suite.plain(), suite.plain()])
    moving = next(body.joint for body in ROBOT.bodies if body.name == ROBOT.tool.pads[1].body)
    limits = {moving: ROBOT.tool.torque_max_nm}
    torques = [limits.get(name, servo.torque_max_nm) for name in world._arm.joint_names]
    for found, expected in (
        (data.joint_stiffness, servo.stiffness_nmprad),
        (data.joint_damping, servo.damping_nmsprad),
        (data.joint_armature, servo.armature_kgm2),
        (data.joint_friction_coeff, servo.joint_friction_nm),
        (data.joint_dynamic_friction_coeff, servo.joint_friction_nm),
        (data.joint_viscous_friction_coeff, servo.joint_damping_nmsprad),
        (data.joint_effort_limits, torques),
    ):
        np.testing.assert_allclose(found.torch.cpu().numpy(), np.broadcast_to(expected, (2, 6)), rtol=1e-5)


def test_scenario_changes_frictions_and_the_next_starts_from_nominal(world: IsaacLabWorld) -> None:
    """Both friction factors reach PhysX's materials of the right things in the right environment."""
    suite, engine = WorldConformance(), world._engine
    nominal = suite.plain()
    varied = nominal.model_copy(update={"grip_friction_factor": 0.7, "table_friction_factor": 1.3})
    pad, tray = ROBOT.tool.pad_friction.slide, TASK.tray.friction.slide
    steel = TASK.instruments["scalpel"].friction.slide
    parts = [engine._grips[0], engine._grips[1 + SCALPEL], engine._room]
    for scenario, factors in ((varied, (0.7, 0.7, 1.3)), (nominal, (1.0, 1.0, 1.0))):
        world.reset([scenario, nominal])
        for part, slide, factor in zip(parts, (pad, steel, tray), factors, strict=True):
            found = part._view.materials()[..., :2]
            np.testing.assert_allclose(found[0], slide * factor, rtol=1e-6)
            np.testing.assert_allclose(found[1], slide, rtol=1e-6)


def test_what_is_parked_hangs_still(world: IsaacLabWorld) -> None:
    """Instruments that the episode does not use stay where they are parked, to the last bit."""
    suite = WorldConformance()
    used = ("scalpel", "forceps")
    world.reset([suite.plain(name) for name in used])
    parked = [(name, env) for env in (0, 1) for name in TASK.instruments if name != used[env]]
    before = [_at(world._scene[name], env) for name, env in parked]
    for _ in range(15):
        world.step(suite.home(2))
    np.testing.assert_array_equal(before, [_at(world._scene[name], env) for name, env in parked])


def test_the_hand_holds_as_softly_as_a_weld_and_lets_go(world: IsaacLabWorld) -> None:
    """Held in the air an instrument sags by 0.2 mm, as it does in MuJoCo's weld; released it falls."""
    suite, engine = WorldConformance(), world._engine
    world.reset([suite.plain("scalpel"), suite.plain("scalpel")])
    body, turn = world._scene["scalpel"], np.sqrt(0.5)
    lifted = np.array([[0.2, 0.0, 0.3, turn, 0.0, 0.0, turn]]) + np.pad(world._origins[:1], ((0, 0), (0, 4)))
    envs, kinds = np.array([0]), np.array([SCALPEL])
    pose = torch.tensor(lifted, dtype=torch.float32, device=world._device)
    first = torch.tensor([0], dtype=torch.int32, device=world._device)
    body.write_root_pose_to_sim_index(root_pose=pose, env_ids=first)
    engine.attach(envs, kinds, lifted)
    engine.step(300)
    held = _at(body, 0)
    engine.release(envs)
    engine.step(60)
    np.testing.assert_allclose(held[:2], lifted[0, :2], atol=1e-5)
    np.testing.assert_allclose(lifted[0, 2] - held[2], 1.86e-4, atol=2e-5)  # 9.81 m/s² over 52,632 1/s²
    np.testing.assert_allclose(np.abs(held[3:] @ lifted[0, 3:]), 1.0, atol=1e-6)
    assert held[2] - _at(body, 0)[2] > 0.04  # a tenth of a second of free fall is 49 mm


def _at(body: object, env: int) -> np.ndarray:
    body.update(TASK.period_s)
    return body.data.root_link_pose_w.torch[env].cpu().numpy().astype(np.float64)
