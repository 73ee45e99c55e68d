"""Isaac Lab does what every World must do, and what only it has is right too."""

from __future__ import annotations

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.errors import ConfigError
from sim2or.worlds.conformance import WorldConformance
from sim2or.worlds.world import World
from sim2or_sim.backends import make_world
from sim2or_sim.backends.isaaclab.world import IsaacLabWorld
from sim2or_sim.expert import Expert

ROBOT, TASK = load_robot("so101"), load_task("handover")

pytestmark = pytest.mark.isaac


@pytest.fixture(scope="module")
def expert() -> Expert:
    return Expert(ROBOT, TASK)


def test_a_world_that_was_never_reset_says_so(world: World) -> None:
    """Reading a world before its first reset is refused with what to do."""
    with pytest.raises(ConfigError, match=r"never reset: call reset\(\)"):
        world.truth()


class TestIsaacLabWorld(WorldConformance):
    """The suite on Isaac Lab."""


def test_a_second_world_in_the_process_is_refused(world: World) -> None:
    """Isaac Lab's simulation is one in a process: the error says to close the other."""
    with pytest.raises(ConfigError, match="one world at a time"):
        make_world(ROBOT, TASK, backend="isaaclab")


def test_scenario_changes_masses_and_frictions(world: IsaacLabWorld) -> None:
    """Mass, frictions and gains reach the solver's model, and the next scenario starts from nominal."""
    suite = WorldConformance()
    varied = {
        "mass_factor": 1.2,
        "grip_friction_factor": 0.7,
        "table_friction_factor": 1.3,
        "gain_factor": 1.1,
    }
    nominal = suite.plain()
    world.reset([nominal.model_copy(update=varied), nominal])
    world.step(suite.home(2))
    solver = world._engine._solver
    names = [solver.mj_model.geom(i).name for i in range(solver.mj_model.ngeom)]
    bodies = [solver.mj_model.body(i).name for i in range(solver.mj_model.nbody)]
    pad = next(i for i, name in enumerate(names) if "pad_fixed_touch" in name)
    tray = next(i for i, name in enumerate(names) if "tray_0_touch" in name)
    scalpel = next(i for i, name in enumerate(bodies) if name.endswith("scalpel"))
    mass_kg, slide = TASK.instruments["scalpel"].mass_kg, ROBOT.tool.pad_friction.slide

    def found() -> np.ndarray:
        mass, friction = solver.mjw_model.body_mass.numpy(), solver.mjw_model.geom_friction.numpy()
        gain = solver.mjw_model.actuator_gainprm.numpy()[:, 0, 0]
        return np.column_stack([mass[:, scalpel], friction[:, pad, 0], friction[:, tray, 0], gain])

    plain = [mass_kg, slide, TASK.tray.friction.slide, ROBOT.servo.stiffness_nmprad]
    np.testing.assert_allclose(found(), [np.multiply(plain, [1.2, 0.7, 1.3, 1.1]), plain], rtol=1e-6)
    world.reset([nominal, nominal])
    world.step(suite.home(2))
    np.testing.assert_allclose(found(), [plain, plain], rtol=1e-6)


def test_broken_physics_is_a_failure_not_an_exception(world: IsaacLabWorld) -> None:
    """When the state becomes NaN that episode fails as unstable, finite to the last; the other goes on."""
    suite = WorldConformance()
    world.reset([suite.plain(), suite.plain("forceps")])
    world.step(suite.home(2))
    world._place_arms(np.array([0]), np.array([ROBOT.home_rad]), np.full((1, 6), np.nan))
    for _ in range(3):
        world.step(suite.home(2))
    truth, sensed = world.truth(0), world.sense(0, cameras=False)
    assert (truth.done, truth.success, truth.failure) == (True, False, "unstable")
    assert np.isfinite(truth.instrument).all()
    assert np.isfinite(sensed.position_rad).all()
    assert not world.truth(1).done
    world.reset([suite.plain()], ids=[0])
    for _ in range(3):
        world.step(suite.home(2))
    assert not world.truth(0).done


def test_looks_drawn_anew_change_the_pictures(world: IsaacLabWorld) -> None:
    """Light, hues and camera offsets drawn anew change both cameras' pictures of that world alone."""
    suite = WorldConformance()
    world.reset([suite.plain(), suite.plain()])
    before = [world.sense(i).images for i in (0, 1)]
    world.redraw_visuals(0, np.random.default_rng(0))
    for name in TASK.cameras:
        assert not np.array_equal(before[0][name], world.sense(0).images[name])
        np.testing.assert_array_equal(before[1][name], world.sense(1).images[name])
