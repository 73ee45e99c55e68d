"""Rooms as engines take them: every part as surfaces to see and shapes to touch, in metres, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sim2or.contracts.kinematics import Kinematics, transform
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.room import Fitting, RoomFiles, RoomPart, RoomRecord
from sim2or.contracts.task import TaskProfile
from sim2or.errors import ConfigError

from sim2or_sim.rooms import formats
from sim2or_sim.rooms.surface import (
    Floats,
    Surface,
    bounds,
    by_color,
    crosses,
    hull,
    is_inside,
    pieces,
)

MAX_TRIANGLES = 50_000
"""Of one part: both engines render on a CPU, some ten million triangles a second."""

MAX_HULLS = 32
_SMALLEST_M, _LARGEST_M = 0.005, 15.0
_FARTHEST_M = 20.0
_THIN_M = 0.0005  # no box to touch is thinner
_ARM_MARGIN_M = 0.06  # half the width of a link about its origin
_UNITS = {"millimetres": 0.001, "centimetres": 0.01, "inches": 0.0254}


@dataclass(frozen=True)
class Furniture:
    """One part.

    Attributes:
        part: What the manifest says.
        seen: What is drawn, a surface for each colour, in the part's frame.
        hulls: What touches: convex surfaces, in the part's frame; one that is a box has ``box``.
        box: Centre and half sizes, shape (2, 3), where its box is what touches [m].
    """

    part: RoomPart
    seen: tuple[Surface, ...]
    hulls: tuple[Surface, ...]
    box: Floats | None = None

    @property
    def body(self) -> str:
        """Its name in both engines."""
        return f"part_{self.part.name}"

    @property
    def size_m(self) -> Floats:
        """Along its own x, y and z, shape (3,)."""
        size: Floats = np.ptp(bounds(self.seen), axis=0)
        return size

    @property
    def triangles(self) -> int:
        """How many are drawn."""
        return sum(len(surface.faces) for surface in self.seen)

    def solids(self) -> tuple[Surface, ...]:
        """What touches, as surfaces."""
        if self.box is None:
            return self.hulls
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        return (hull(self.box[0] + signs * self.box[1], self.part.name),)


class Room:
    """A room whose parts are loaded.

    Args:
        files: The manifest and what it names.

    Raises:
        ConfigError: A part's file is not what it should be, or its size, place or number of triangles absurd.
    """

    def __init__(self, files: RoomFiles) -> None:
        self._files = files
        self.parts = tuple(_furniture(part, files) for part in files.manifest.parts)

    @property
    def keep(self) -> frozenset[Fitting]:
        """What of the built-in room stays."""
        return frozenset(self._files.manifest.keep)

    @property
    def fixed(self) -> tuple[Furniture, ...]:
        """The parts that stay where they are."""
        return tuple(part for part in self.parts if part.part.motion == "fixed")

    @property
    def loose(self) -> tuple[Furniture, ...]:
        """The parts that move when they are pushed."""
        return tuple(part for part in self.parts if part.part.motion == "free")

    @property
    def digests(self) -> dict[str, str]:
        """As an episode's header has them: kind to digest."""
        return self._files.digests

    @property
    def record(self) -> RoomRecord:
        """What an artifact that was made in this room says about it."""
        return self._files.record()

    def check(self, robot: RobotProfile, task: TaskProfile) -> None:
        """Refuses a room in which the arm cannot work.

        Raises:
            ConfigError: Names the first part that stands in the way, and how far the way reaches.
        """
        for part in self.parts:
            for place, low, high in ways(robot, task):
                if reaches(part, low, high):
                    raise ConfigError(
                        f"room {self._files.manifest.name}: {intrusion(part, place, low, high)}"
                    )


def ways(robot: RobotProfile, task: TaskProfile) -> list[tuple[str, Floats, Floats]]:
    """What must stay free: name, lower and higher corner of a box in the robot's base frame [m]."""
    origins = Kinematics(robot).body_origins(np.array(robot.home_rad))
    arm_low, arm_high = origins.min(axis=0) - _ARM_MARGIN_M, origins.max(axis=0) + _ARM_MARGIN_M
    arm_low[2] = max(arm_low[2], 0.001)  # what it stands on may touch it
    safety = task.safety
    return [
        ("the arm's base", arm_low, arm_high),
        ("the tool's workspace", np.array(safety.tool_low_m), np.array(safety.tool_high_m)),
    ]


def reaches(part: Furniture, low: Floats, high: Floats) -> bool:
    """Whether a part reaches into a box of the robot's base frame."""
    pose = transform(part.part.at_m, part.part.turn_wxyz)
    solids = [surface.moved(pose) for surface in part.solids()]
    if any(is_inside(solid, (low + high) / 2) for solid in solids):
        return True
    return any(crosses(surface.moved(pose), low, high) for surface in part.seen) or any(
        crosses(solid, low, high) for solid in solids
    )


def intrusion(part: Furniture, place: str, low: Floats, high: Floats) -> str:
    """Says what stands in the way of what."""
    spans = ", ".join(f"{axis} {a:.2f}…{b:.2f}" for axis, a, b in zip("xyz", low, high, strict=True))
    return (
        f"part {part.part.name!r} reaches into {place} ({spans} m); move it: at_m is {list(part.part.at_m)}"
    )


def _furniture(part: RoomPart, files: RoomFiles) -> Furniture:
    what = f"room {files.manifest.name!r}: part {part.name!r}: {part.file}"
    own = formats.read(part, files.files[part.name], what)
    read = [surface.moved(np.eye(4), part.scale) for surface in own]
    seen = [
        surface if part.color is None else surface.colored(part.color) for surface in read if surface.seen
    ]
    if not seen:
        raise ConfigError(f"{what}: nothing of it is seen; put its looks into MuJoCo's geom groups 0 to 2")
    _check_size(part, seen, what)
    triangles = sum(len(surface.faces) for surface in seen)
    if triangles > MAX_TRIANGLES:
        raise ConfigError(
            f"{what}: {triangles:,} triangles; at most {MAX_TRIANGLES:,}: decimate it "
            "(Blender: modifier Decimate)"
        )
    touching = [surface for surface in read if surface.touches] or seen
    hulls, box = _collision(part, touching, what)
    return Furniture(part, tuple(by_color(seen)), hulls, box)


def _check_size(part: RoomPart, seen: Sequence[Surface], what: str) -> None:
    low, high = bounds(seen)
    longest = float((high - low).max())
    if not _SMALLEST_M <= longest <= _LARGEST_M:
        sizes = " x ".join(f"{size:.4g}" for size in high - low)
        raise ConfigError(
            f"{what}: {sizes} m at scale {part.scale:g}; a part's longest side is "
            f"{_SMALLEST_M:g}…{_LARGEST_M:g} m{_guess(longest, part.scale)}"
        )
    pose = transform(part.at_m, part.turn_wxyz)
    farthest = float(np.abs(bounds([surface.moved(pose) for surface in seen])).max())
    if farthest > _FARTHEST_M:
        raise ConfigError(
            f"{what}: it reaches {farthest:.4g} m from the robot; at most {_FARTHEST_M:g} m: is its origin "
            f"far from its mesh, or at_m {list(part.at_m)} not in metres?"
        )


def _guess(longest_m: float, scale: float) -> str:
    fits = [
        f"{scale * factor:g} if it is in {unit}"
        for unit, factor in _UNITS.items()
        if _SMALLEST_M * 10 <= longest_m * factor <= _LARGEST_M / 3
    ]
    return f"; try scale {' or '.join(fits)}" if fits else "; is scale right?"


def _collision(
    part: RoomPart, touching: Sequence[Surface], what: str
) -> tuple[tuple[Surface, ...], Floats | None]:
    if part.collision == "none":
        return (), None
    if part.collision == "box":
        low, high = bounds(touching)
        return (), np.stack([(low + high) / 2, np.maximum((high - low) / 2, _THIN_M)])
    if part.collision == "hull":
        return (hull(np.concatenate([surface.points for surface in touching]), what),), None
    found = pieces(touching)
    if len(found) > MAX_HULLS:
        raise ConfigError(
            f"{what}: {len(found)} connected pieces; at most {MAX_HULLS} hulls: use collision: hull or box, "
            "or join its pieces"
        )
    return tuple(hull(points, what) for points in found), None
