"""The survey of a room before it is used: sizes, masses, digests, licences, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.room import manifest_path, read_room, room_names
from sim2or.contracts.task import TaskProfile

from sim2or_sim.backends.mujoco import scene
from sim2or_sim.rooms.room import Furniture, Room, intrusion, reaches, ways

_SETTLE_S = 1.0
_SETTLED_M = 0.02
_SHORT = 12


@dataclass(frozen=True)
class Survey:
    """What there is, and what is wrong.

    Attributes:
        title: Its name for people.
        columns: What each row says.
        rows: One for each part.
        reference: What a job writes under ``room``.
        problems: Each a line with what to do; a room with problems is not used.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    reference: str
    problems: tuple[str, ...]


COLUMNS = ("part", "label", "format", "size m", "kg", "triangles", "touches", "sha256", "licence")


def survey(name: str, robot: RobotProfile, task: TaskProfile) -> Survey:
    """Looks at every part, and lets the loose ones settle for a second.

    Args:
        name: A bundled room's name or the path of a manifest.
        robot: The arm that will work in it.
        task: Its task.

    Raises:
        ConfigError: The manifest or a part's file cannot be used at all.
    """
    files = read_room(name)
    room = Room(files)
    digest = files.manifest.digest()
    return Survey(
        title=files.manifest.title,
        columns=COLUMNS,
        rows=tuple(_row(part) for part in room.parts),
        reference=name if name in room_names() else f"{manifest_path(name)}@{digest}",
        problems=(*_intrusions(room, robot, task), *_falls(room, robot, task)),
    )


def _row(part: Furniture) -> tuple[str, ...]:
    given = part.part
    touching = {"none": "nothing", "box": "its box"}.get(given.collision) or f"{len(part.hulls)} hulls"
    return (
        given.name,
        given.label,
        given.format,
        " x ".join(f"{size:.3f}" for size in part.size_m),
        "fixed" if given.motion == "fixed" else f"{given.mass_kg:g}",
        f"{part.triangles:,}",
        touching,
        given.sha256[:_SHORT],
        given.license,
    )


def _intrusions(room: Room, robot: RobotProfile, task: TaskProfile) -> list[str]:
    return [
        intrusion(part, place, low, high)
        for part in room.parts
        for place, low, high in ways(robot, task)
        if reaches(part, low, high)
    ]


def _falls(room: Room, robot: RobotProfile, task: TaskProfile) -> list[str]:
    """Loose parts that do not stay where the manifest puts them."""
    if not room.loose:
        return []
    model = scene.build_scene(robot, task, next(iter(task.instruments)), room)
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, round(_SETTLE_S * task.physics_hz))
    found = []
    for part in room.loose:
        moved_m = float(np.linalg.norm(data.body(part.body).xpos - part.part.at_m))
        if not moved_m < _SETTLED_M:
            found.append(
                f"part {part.part.name!r} is loose and moves {moved_m:.2f} m in the first {_SETTLE_S:g} s; "
                "put it on something that touches (collision: box, hull or pieces), or make it fixed"
            )
    return found
