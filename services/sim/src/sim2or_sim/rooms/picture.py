"""Pictures of a room in either engine, for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sim2or.contracts.geometry import Vector
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.room import read_room
from sim2or.contracts.scenario import sample_scenario
from sim2or.contracts.task import Camera, TaskProfile

from sim2or_sim.backends import make_world
from sim2or_sim.rooms.room import Room

VIEW = "theatre"
_SEED = 900001
_FROM_M, _TO_M, _FOVY_RAD = (1.70, -1.40, 0.95), (-0.38, 0.75, 0.02), 0.82


def show(
    name: str, robot: RobotProfile, task: TaskProfile, *, engine: str, out: Path, height: int
) -> tuple[str, ...]:
    """Writes one picture: the whole room, and beside it what the robot's room camera sees.

    Args:
        name: A bundled room's name or the path of a manifest; "" for the built-in room.
        robot: The arm in it.
        task: The task in it.
        engine: ``mujoco`` or ``isaaclab``.
        out: The file to write, as its suffix says.
        height: Of the picture [px].

    Returns:
        The views from left to right.
    """
    views = {**task.views, VIEW: looking(_FROM_M, _TO_M, _FOVY_RAD)}
    seen = task.model_copy(update={"views": views})
    room = Room(read_room(name)) if name else None
    world = make_world(robot, seen, backend=engine, room=room)
    try:
        world.reset([sample_scenario(task, _SEED)])
        whole = world.render(VIEW, height=height, width=height * 4 // 3)
        others = [
            world.render(view, height=height // 2, width=height * 2 // 3) for view in ("room", "overview")
        ]
    finally:
        world.close()
    Image.fromarray(np.hstack([whole, np.vstack(others)[: len(whole)]])).save(out)
    return (VIEW, "room above overview")


def looking(at_m: Vector, to_m: Vector, fovy_rad: float) -> Camera:
    """A camera at one point that looks at another, upright; both in the robot's base frame [m]."""
    ahead = np.array(to_m) - at_m
    right = np.cross(ahead, [0.0, 0.0, 1.0])
    above = np.cross(right, ahead)
    axes = [tuple(float(value) for value in axis / np.linalg.norm(axis)) for axis in (right, above)]
    return Camera.model_validate(
        {"body": "base", "at_m": at_m, "x_axis": axes[0], "y_axis": axes[1], "fovy_rad": fovy_rad}
    )
