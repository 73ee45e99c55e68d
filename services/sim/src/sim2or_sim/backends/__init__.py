"""Engines behind the World protocol."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from sim2or.errors import ConfigError, choices

from sim2or_sim.backends.simulation import Simulation

if TYPE_CHECKING:
    from sim2or_sim.rooms.room import Room

BACKENDS = ("mujoco", "isaaclab")


def make_world(
    robot: RobotProfile,
    task: TaskProfile,
    batch: int = 1,
    backend: str = "mujoco",
    render: bool = True,
    room: Room | None = None,
) -> Simulation:
    """Makes a batch of simulated worlds.

    Args:
        robot: The arm.
        task: The task.
        batch: How many worlds step together.
        backend: The engine.
        render: Whether images will be asked for; without, no GL library is needed.
        room: One's own operating room instead of the built-in one.

    Raises:
        ConfigError: Unknown backend, a batch below one, or no GL library for rendering.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend: {backend!r}; {choices(backend, BACKENDS)}")
    if batch < 1:
        raise ConfigError(f"batch: {batch}; it must be at least 1")
    if backend == "isaaclab":
        return _isaaclab(robot, task, batch, render, room)
    from sim2or_sim.backends.mujoco.gl import choose_gl

    choose_gl(render)
    from sim2or_sim.backends.mujoco.world import MujocoWorld

    return MujocoWorld(robot, task, batch=batch, render=render, room=room)


def _isaaclab(
    robot: RobotProfile, task: TaskProfile, batch: int, render: bool, room: Room | None
) -> Simulation:
    if find_spec("isaaclab") is None:
        raise ConfigError(
            "backend: 'isaaclab' is not installed in this environment; "
            "run `make setup-isaac` and use .venv-isaac"
        )
    from sim2or_sim.backends.isaaclab.world import IsaacLabWorld

    return IsaacLabWorld(robot, task, batch=batch, render=render, room=room)
