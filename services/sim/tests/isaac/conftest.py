"""These tests run in an environment of their own, ``make test-isaac``; elsewhere they are not collected."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.worlds.world import World

collect_ignore_glob = [] if find_spec("isaaclab") else ["test_*.py"]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Two rooms with cameras; one simulation is all that Isaac Lab allows in a process."""
    from sim2or_sim.backends import make_world

    made = make_world(load_robot("so101"), load_task("handover"), batch=2, backend="isaaclab")
    yield made
    made.close()
