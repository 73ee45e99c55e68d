"""Compiles the kernels that our worlds use, into Warp's cache.

``python -m sim2or_sim.backends.isaaclab.kernels``: images are built with it, so that no worker compiles them
at its start.
"""

from __future__ import annotations

import time
from contextlib import closing

import numpy as np
from sim2or import log
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import scenario_list
from sim2or.contracts.task import load_task

from sim2or_sim.backends import make_world

WORLDS = (1, 2, 4, 8, 16, 32)
"""Batches for which nothing is compiled later: a kernel that looks for contacts is another for each size."""

FILM_PX = (240, 320)


def compile_kernels(worlds: int) -> None:
    """Does once what a worker does all the time: resets, steps, and every kind of picture.

    Args:
        worlds: The size of the batch.
    """
    robot, task = load_robot("so101"), load_task("handover")
    home_rad = np.tile(np.array(robot.home_rad, np.float32), (worlds, 1))
    with closing(make_world(robot, task, batch=worlds, backend="isaaclab")) as world:
        world.reset(scenario_list(task, "train", worlds, 0))
        world.redraw_visuals(0, np.random.default_rng(0))
        world.step(home_rad)
        world.sense(0)
        world.render("room", height=FILM_PX[0], width=FILM_PX[1])
        world.reset(scenario_list(task, "train", 1, worlds), [0])
        world.step(home_rad)


def main() -> None:
    """Compiles and says how long it took."""
    log.configure("kernels")
    for worlds in WORLDS:
        began_s = time.monotonic()
        compile_kernels(worlds)
        log.get_logger().info("compiled", worlds=worlds, wall_s=round(time.monotonic() - began_s, 1))


if __name__ == "__main__":
    main()
