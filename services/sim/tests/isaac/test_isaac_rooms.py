"""The example room in Isaac Lab: seen, repeated to the bit, and no hindrance to the expert."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import scenario_list
from sim2or.contracts.task import load_task
from sim2or.worlds.conformance import WorldConformance
from sim2or.worlds.world import World
from sim2or_sim.backends import make_world
from sim2or_sim.backends.isaaclab.world import IsaacLabWorld
from sim2or_sim.expert import Expert
from sim2or_sim.rooms import load_room

ROBOT, TASK = load_robot("so101"), load_task("handover")
SUITE = WorldConformance()

pytestmark = pytest.mark.isaac


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Two theatres with cameras; one simulation is all that Isaac Lab allows in a process."""
    room = load_room("theatre", ROBOT, TASK)
    made = make_world(ROBOT, TASK, batch=2, backend="isaaclab", room=room)
    yield made
    made.close()


def _dishes(world: IsaacLabWorld) -> np.ndarray:
    """Positions of the loose dish in each environment, shape (2, 3), [m]."""
    return world._scene["part_dish"].data.root_link_pose_w.torch[:, :3].cpu().numpy() - world._origins


def test_the_same_scenario_gives_the_same_bits(world: IsaacLabWorld) -> None:
    """Replayed after another one, with a loose part in the room, a scenario gives the very same numbers."""

    def wave(seed: int) -> np.ndarray:
        world.reset([SUITE.drawn(seed), SUITE.drawn(seed + 1)])
        rows = []
        for step in range(8):
            world.step(SUITE.home(2) + np.float32(0.05 * step))
            rows.append([*world.snapshot(0)["state"], *world.snapshot(1)["state"], *_dishes(world).ravel()])
        return np.array(rows)

    first = wave(1)
    wave(4)
    np.testing.assert_array_equal(first, wave(1))


def test_no_stale_picture_after_a_reset(world: World) -> None:
    """The first picture after a reset in the theatre is of the new scenario."""
    SUITE.test_no_stale_picture_after_a_reset(world)


def test_both_engines_show_the_same_room(world: World) -> None:
    """What the theatre adds to the room camera's picture covers the same pixels in both engines."""
    plain = make_world(ROBOT, TASK)
    theatre = make_world(ROBOT, TASK, room=load_room("theatre", ROBOT, TASK))
    scenario, size = SUITE.plain(), {"height": 120, "width": 160}
    world.reset([scenario, scenario])
    pictures = []
    for one in (plain, theatre):
        one.reset([scenario])
        pictures.append(one.render("overview", **size).astype(int))
        one.close()
    before, after = pictures
    added = np.abs(after - before).max(axis=-1) > 30
    assert added.mean() > 0.05
    seen = world.render("overview", **size).astype(int)
    colors = [picture[added] - picture[added].mean(axis=0) for picture in (after, seen)]
    likeness = np.corrcoef(*(color.ravel() for color in colors))[0, 1]
    assert likeness > 0.7, likeness


def test_a_loose_part_stands_and_is_put_back(world: IsaacLabWorld) -> None:
    """The dish stays on its stand; pushed off in one environment, it stands there again after its reset."""
    world.reset([SUITE.plain(), SUITE.plain()])
    stood = _dishes(world)
    for _ in range(8):
        world.step(SUITE.home(2))
    np.testing.assert_allclose(_dishes(world), stood, atol=1e-3)
    body = world._scene["part_dish"]
    body.write_root_velocity_to_sim_index(
        root_velocity=world._tensor(np.array([[1.5, 1.0, 0.5, 0, 0, 0]])), env_ids=world._ids(np.array([0]))
    )
    for _ in range(6):
        world.step(SUITE.home(2))
    assert np.linalg.norm(_dishes(world) - stood, axis=1)[0] > 0.03
    world.reset([SUITE.plain()], ids=[0])
    np.testing.assert_allclose(_dishes(world)[0], stood[0], atol=1e-6)
    np.testing.assert_allclose(_dishes(world)[1], stood[1], atol=1e-3)


def test_the_expert_hands_over_in_the_theatre(world: World) -> None:
    """Two scenarios of the validation list succeed."""
    scenarios = scenario_list(TASK, "validation", 2)
    experts = [Expert(ROBOT, TASK) for _ in scenarios]
    world.reset(scenarios)
    for index, (expert, scenario) in enumerate(zip(experts, scenarios, strict=True)):
        expert.reset(world, index, scenario)
    while not all(world.truth(index).done for index in range(2)):
        world.step(np.stack([expert.act(world, index)[1] for index, expert in enumerate(experts)]))
    assert [world.truth(index).failure for index in range(2)] == ["", ""]
