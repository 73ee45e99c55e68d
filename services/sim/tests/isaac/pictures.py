"""Writes one picture: the same moments of the same hand-over in both engines, side by side.

Usage: .venv-isaac/bin/python services/sim/tests/isaac/pictures.py docs/pictures/engines.png
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import sample_scenario
from sim2or.contracts.task import load_task
from sim2or_sim.backends import make_world
from sim2or_sim.expert import Expert

ROBOT, TASK = load_robot("so101"), load_task("handover")
SCENARIO = sample_scenario(TASK, 900001)
MOMENTS = (0, 70, 125)
SIZE_PX = 240


def moments(engine: str) -> Iterator[NDArray[np.uint8]]:
    """Rows of room, wrist and overview at each moment."""
    world, expert = make_world(ROBOT, TASK, backend=engine), Expert(ROBOT, TASK)
    world.reset([SCENARIO])
    expert.reset(world, 0, SCENARIO)
    for step in range(max(MOMENTS) + 1):
        if step in MOMENTS:
            views = [world.render(name, height=SIZE_PX, width=SIZE_PX) for name in ("room", "wrist")]
            views.append(world.render("overview", height=SIZE_PX, width=SIZE_PX * 4 // 3))
            yield np.hstack(views)
        world.step(expert.act(world, 0)[1][None])
    world.close()


if __name__ == "__main__":
    columns = [np.vstack(list(moments(engine))) for engine in ("mujoco", "isaaclab")]
    Image.fromarray(np.hstack(columns)).save(sys.argv[1])
