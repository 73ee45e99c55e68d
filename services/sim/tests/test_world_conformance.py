"""MuJoCo does what every World must do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.worlds.conformance import WorldConformance
from sim2or.worlds.world import World
from sim2or_sim.backends import make_world
from sim2or_sim.backends.mujoco.gl import loads
from sim2or_sim.expert import Expert


@pytest.fixture(scope="class")
def world() -> Iterator[World]:
    made = make_world(load_robot("so101"), load_task("handover"), batch=2)
    yield made
    made.close()


@pytest.fixture(scope="class")
def expert(world: World) -> Expert:
    return Expert(load_robot("so101"), load_task("handover"))


@pytest.mark.skipif(not (loads("egl") or loads("osmesa")), reason="no GL library on this machine")
class TestMujocoWorld(WorldConformance):
    """The suite on MuJoCo."""
