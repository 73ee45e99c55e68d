"""What only the MuJoCo world has; what every world must do is in test_world_conformance.py."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import Scenario, sample_scenario, sample_visuals
from sim2or.contracts.task import load_task
from sim2or.errors import ConfigError
from sim2or_sim.backends import make_world
from sim2or_sim.backends.mujoco.delay import Delay
from sim2or_sim.backends.mujoco.gl import loads
from sim2or_sim.backends.mujoco.scene import build_scene
from sim2or_sim.backends.mujoco.world import MujocoWorld

ROBOT, TASK = load_robot("so101"), load_task("handover")
HOME = np.array(ROBOT.home_rad, dtype=np.float32)


def _plain(instrument: str = "scalpel", **change: object) -> Scenario:
    base = Scenario(task=TASK.name, seed=0, instrument=instrument, request=TASK.requests[instrument])
    return base.model_copy(update=change)


@pytest.fixture(scope="module")
def world() -> Iterator[MujocoWorld]:
    made = make_world(ROBOT, TASK, render=False)
    yield made
    made.close()


def _wave(world: MujocoWorld, scenario: Scenario, ticks: int = 40) -> np.ndarray:
    world.reset([scenario])
    rows = []
    for tick in range(ticks):
        target = HOME + np.float32(0.15 * np.sin(tick / 5.0))
        world.step(target[None])
        rows.append(world.snapshot()["state"])
    return np.array(rows)


def test_worlds_of_a_batch_do_not_touch() -> None:
    """The second world of a batch moves exactly as it would alone, and its reset leaves the first running."""
    batch, alone = make_world(ROBOT, TASK, batch=2, render=False), make_world(ROBOT, TASK, render=False)
    scenario = sample_scenario(TASK, 900002)
    batch.reset([sample_scenario(TASK, 900000), scenario])
    alone.reset([scenario])
    for _ in range(5):
        batch.step(np.stack([HOME + 0.1, HOME]))
        alone.step(HOME[None])
    assert np.array_equal(batch.snapshot(1)["state"], alone.snapshot()["state"])
    batch.reset([scenario], ids=[1])
    assert batch.sense(0, cameras=False).time_ns == round(5e9 / 30)
    assert batch.sense(1, cameras=False).time_ns == 0


@pytest.mark.parametrize("instrument", list(TASK.instruments))
def test_model_has_the_profile_in_it(instrument: str) -> None:
    """Joint ranges, link masses and the instrument's mass in the model are those of the profiles."""
    model = build_scene(ROBOT, TASK, instrument)
    for joint in ROBOT.joints:
        np.testing.assert_allclose(model.joint(joint.name).range, [joint.lower_rad, joint.upper_rad])
    for body in ROBOT.bodies:
        assert model.body(body.name).mass[0] == pytest.approx(body.mass_kg)
    assert model.body("instrument").mass[0] == pytest.approx(TASK.instruments[instrument].mass_kg)


def test_scenario_changes_masses_and_frictions(world: MujocoWorld) -> None:
    """Mass, frictions and gains reach the model, and the next scenario starts from nominal again."""
    world.reset([_plain(mass_factor=1.2, grip_friction_factor=0.7, table_friction_factor=1.3)])
    model = world._rooms[0].scene.model
    assert model.body("instrument").mass[0] == pytest.approx(1.2 * TASK.instruments["scalpel"].mass_kg)
    assert model.geom("pad_fixed").friction[0] == pytest.approx(0.7 * ROBOT.tool.pad_friction.slide)
    assert model.geom("tray_0").friction[0] == pytest.approx(1.3 * TASK.tray.friction.slide)
    servo, lift = ROBOT.servo, world._rooms[0].scene.model.actuator("shoulder_lift")
    world.reset([_plain(gain_factor=1.1)])
    assert lift.gainprm[0] == pytest.approx(1.1 * servo.stiffness_nmprad)
    assert lift.biasprm[1:3] == pytest.approx([-1.1 * servo.stiffness_nmprad, -1.1 * servo.damping_nmsprad])
    world.reset([_plain()])
    assert lift.gainprm[0] == pytest.approx(servo.stiffness_nmprad)
    assert model.body("instrument").mass[0] == pytest.approx(TASK.instruments["scalpel"].mass_kg)


def test_delay_splits_a_period() -> None:
    """A delay of 30 steps at 20 a period plays ten of the command two before, then ten of the one before."""
    delay = Delay(np.zeros((2, 1)), 20, 40)
    delay.begin([0], np.array([30]), np.zeros((1, 1)))
    delay.push(np.full((2, 1), 1.0))
    assert delay.pieces(0) == [(0.0, 10), (0.0, 10)]
    assert delay.pieces(1) == [(1.0, 20)]
    delay.push(np.full((2, 1), 2.0))
    assert delay.pieces(0) == [(0.0, 10), (1.0, 10)]
    spans = [(told[:, 0].tolist(), count) for told, count in delay.spans()]
    assert spans == [([0.0, 2.0], 10), ([1.0, 2.0], 10)]


def test_broken_physics_is_a_failure_not_an_exception(world: MujocoWorld) -> None:
    """When the state becomes NaN the episode fails as unstable and everything reported stays finite."""
    world.reset([_plain()])
    world.step(HOME[None])
    world._rooms[0].scene.qvel[0] = np.nan
    world.step(HOME[None])
    world.step(HOME[None])
    truth, sensed = world.truth(), world.sense(cameras=False)
    assert (truth.done, truth.success, truth.failure) == (True, False, "unstable")
    assert np.isfinite(truth.instrument).all()
    assert np.isfinite(sensed.position_rad).all()
    world.reset([_plain()])
    assert not world.truth().done


def test_wrong_calls_are_refused(world: MujocoWorld) -> None:
    """An unknown backend, one that is not installed, an empty batch and images without GL are refused."""
    with pytest.raises(ConfigError, match=r"'mujocoo'.*did you mean 'mujoco'"):
        make_world(ROBOT, TASK, backend="mujocoo")
    if find_spec("isaaclab") is None:
        with pytest.raises(ConfigError, match="make setup-isaac"):
            make_world(ROBOT, TASK, backend="isaaclab")
    with pytest.raises(ConfigError, match="batch: 0"):
        make_world(ROBOT, TASK, batch=0)
    world.reset([_plain()])
    with pytest.raises(ConfigError, match="render=False"):
        world.sense()


def test_never_reset_world_says_so() -> None:
    """Reading a world before its first reset is refused with what to do."""
    with pytest.raises(ConfigError, match=r"never reset: call reset\(\)"):
        make_world(ROBOT, TASK, render=False).truth()


@pytest.mark.skipif(not (loads("egl") or loads("osmesa")), reason="no GL library on this machine")
def test_cameras_show_changed_looks() -> None:
    """Looks that are drawn anew change a picture, and a world may be closed twice."""
    world = make_world(ROBOT, TASK)
    world.reset([_plain("forceps", x_m=-0.02)])
    before = world.sense().images
    world.redraw_visuals(0, np.random.default_rng(0))
    assert any(not np.array_equal(before[name], image) for name, image in world.sense().images.items())
    world.close()
    world.close()


def test_looks_leave_the_motion_alone(world: MujocoWorld) -> None:
    """Light, hue and cameras change nothing in the physics."""
    plain = _wave(world, _plain(), 10)
    looks = _plain(visuals=sample_visuals(TASK, np.random.default_rng(3)))
    assert np.array_equal(plain, _wave(world, looks, 10))
