"""The World protocol, hand-overs and episodes in the example room, on MuJoCo."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.room import manifest_path, read_room
from sim2or.contracts.scenario import scenario_list
from sim2or.contracts.task import load_task
from sim2or.episode import EpisodeFile, read_index
from sim2or.errors import ConfigError
from sim2or.messages.collect import CollectSpec
from sim2or.messages.rollout import RolloutSpec
from sim2or.worlds.conformance import WorldConformance
from sim2or.worlds.world import World
from sim2or_sim.backends import make_world
from sim2or_sim.backends.mujoco.gl import loads
from sim2or_sim.collect import collect
from sim2or_sim.expert import Expert
from sim2or_sim.rollout import run as rollout
from sim2or_sim.rooms import load_room
from sim2or_sim.rooms.room import Room

ROBOT, TASK = load_robot("so101"), load_task("handover")

needs_gl = pytest.mark.skipif(not (loads("egl") or loads("osmesa")), reason="no GL library on this machine")


@dataclass
class Work:
    """Where a stage works."""

    work: Path
    shard: int = 0
    shards: int = 1
    inputs: dict[str, list[Path]] = field(default_factory=dict)
    digests: dict[str, list[str]] = field(default_factory=dict)

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        assert done <= total


@pytest.fixture(scope="module")
def theatre() -> Room:
    room = load_room("theatre", ROBOT, TASK)
    assert room is not None
    return room


@pytest.fixture(scope="module")
def world(theatre: Room) -> Iterator[World]:
    made = make_world(ROBOT, TASK, batch=2, room=theatre)
    yield made
    made.close()


@pytest.fixture(scope="module")
def expert() -> Expert:
    return Expert(ROBOT, TASK)


@needs_gl
class TestMujocoTheatre(WorldConformance):
    """The suite in the example room."""

    def test_the_room_is_seen(self, world: World) -> None:
        """The room camera's and the overview's pictures differ from those of the built-in room."""
        plain = make_world(ROBOT, TASK)
        scenario = self.plain()
        plain.reset([scenario])
        world.reset([scenario], ids=[0])
        for camera in ("room", "overview"):
            size = {"height": 96, "width": 128}
            one, other = (w.render(camera, **size).astype(int) for w in (plain, world))
            assert (np.abs(one - other).max(axis=-1) > 30).mean() > 0.01, camera
        plain.close()

    def test_a_loose_part_is_put_back(self, world: Any) -> None:
        """A dish that was pushed off its stand stands there again after the next reset."""
        world.reset([self.plain()], ids=[0])
        data = world._rooms[0].scene.data
        stood = data.body("part_dish").xpos.copy()
        data.joint("part_dish").qvel[:2] = 2.0
        for _ in range(10):
            world.step(self.home(2))
        assert np.linalg.norm(data.body("part_dish").xpos - stood) > 0.05
        world.reset([self.plain()], ids=[0])
        np.testing.assert_array_equal(world._rooms[0].scene.data.body("part_dish").xpos, stood)


def test_the_expert_hands_over_in_the_theatre(theatre: Room) -> None:
    """Three scenarios of the validation list succeed, and end as in the built-in room."""
    scenarios = scenario_list(TASK, "validation", 3)
    ends = []
    for room in (None, theatre):
        world = make_world(ROBOT, TASK, batch=3, render=False, room=room)
        experts = [Expert(ROBOT, TASK) for _ in scenarios]
        world.reset(scenarios)
        for index, scenario in enumerate(scenarios):
            experts[index].reset(world, index, scenario)
        while not all(world.truth(index).done for index in range(3)):
            world.step(np.stack([expert.act(world, index)[1] for index, expert in enumerate(experts)]))
        ends.append([world.truth(index) for index in range(3)])
        world.close()
    assert all(truth.success for truth in ends[1])
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one.instrument, other.instrument, atol=2e-3)


@needs_gl
def test_an_episode_knows_its_room(tmp_path: Path) -> None:
    """Digests and licences of the room are in each episode and in the summaries of collect and rollout."""
    context = Work(tmp_path / "collect")
    spec = CollectSpec(demos=1, seed_list="validation", room="theatre", extra_steps=0)
    made = collect(spec, context)
    entry = read_index(made.outputs["episodes"])[0]
    with EpisodeFile(made.outputs["episodes"] / entry.file) as file:
        file.check(ROBOT, TASK)
        header = file.header
    record = read_room("theatre").record()
    assert header.room == record
    assert header.digests["room"] == record.digest
    assert made.summary["room"] == record.model_dump(mode="json")
    json.dumps(made.summary)
    trials = RolloutSpec(list="validation", trials=1, actor="expert", room="theatre", films_successes=0)
    assert rollout(trials, Work(tmp_path / "rollout")).summary["room"]["digest"] == record.digest


def test_nothing_is_recorded_in_a_room_without_a_licence(tmp_path: Path) -> None:
    """Collecting in a room of which a part has no licence is refused before anything starts."""
    source = manifest_path("theatre")
    shutil.copytree(source.parent, tmp_path / "mine")
    manifest = tmp_path / "mine" / source.name
    manifest.write_text(manifest.read_text().replace("license: Apache-2.0, ", "", 1))
    spec = CollectSpec(demos=1, room=f"{manifest}@sha256:{64 * '0'}")
    with pytest.raises(ConfigError, match=r"parts\.0\.license: missing key"):
        collect(spec, Work(tmp_path / "collect"))
