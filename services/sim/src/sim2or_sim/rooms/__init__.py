"""Operating rooms of one's own: manifests of parts, loaded into either engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile

import sim2or_sim.backends.mujoco  # noqa: F401 before MuJoCo is imported: it chooses its GL library

if TYPE_CHECKING:
    from sim2or_sim.rooms.room import Room


def load_room(reference: str, robot: RobotProfile, task: TaskProfile) -> Room | None:
    """Loads the room that a job names.

    Args:
        reference: "" for the built-in room, a bundled room's name, or ``PATH@sha256:…``.
        robot: The arm that works in it.
        task: Its task; nothing of the room may stand in its way.

    Raises:
        ConfigError: Names the manifest, the part, the value and what to do.
    """
    if not reference:
        return None
    from sim2or.contracts.room import read_pinned

    from sim2or_sim.rooms.room import Room  # trimesh and scipy: only when there is a room

    room = Room(read_pinned(reference))
    room.check(robot, task)
    return room


def room_summary(room: Room | None) -> dict[str, Any]:
    """What a stage's summary, and so its artifact's manifest, says about the room: digests and licences."""
    return {"room": room.record.model_dump(mode="json")} if room else {}
