"""Parts of an own operating room in a MuJoCo model: fixed ones are geoms of the world, loose ones bodies."""

from __future__ import annotations

import mujoco
import numpy as np
from sim2or.contracts.geometry import Friction, Quaternion, Vector
from sim2or.contracts.kinematics import rotation

from sim2or_sim.backends.mujoco.contact import GROUND, INSTRUMENT, LOOSE, PAD, touch
from sim2or_sim.backends.mujoco.room import FLOOR, HIDDEN, material
from sim2or_sim.rooms.room import Furniture, Room
from sim2or_sim.rooms.surface import Surface, bounds

_FLOOR_FRICTION = Friction(slide=0.8)


def add_furniture(spec: mujoco.MjSpec, room: Room) -> None:
    """Adds every part; geoms are named ``part_<name>_<number>``, loose bodies ``part_<name>``."""
    floor = spec.geom(FLOOR)
    if room.loose and floor is not None:
        touch(floor, GROUND, PAD | INSTRUMENT | LOOSE, _FLOOR_FRICTION)
    for part in room.fixed:
        _add_part(spec, spec.worldbody, part, part.part.at_m, part.part.turn_wxyz)
    for part in room.loose:
        body = spec.worldbody.add_body(name=part.body, pos=part.part.at_m, quat=part.part.turn_wxyz)
        body.add_freejoint(name=part.body)
        _add_part(spec, body, part, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))


def _add_part(
    spec: mujoco.MjSpec, body: mujoco.MjsBody, part: Furniture, at_m: Vector, turn_wxyz: Quaternion
) -> None:
    """What is seen and what touches are geoms of their own."""
    for number, surface in enumerate(part.seen):
        geom = _add_mesh(spec, body, f"{part.body}_{number}", surface)
        geom.pos, geom.quat = at_m, turn_wxyz
        geom.rgba, geom.material = [*surface.color, 1.0], material(part.part.gloss)
        geom.contype, geom.conaffinity, geom.mass = 0, 0, 0.0
    volumes = [float(np.prod(np.ptp(bounds([solid]), axis=0))) for solid in part.solids()]
    loose = part.part.motion == "free"
    own, others = (LOOSE, PAD | INSTRUMENT | GROUND | LOOSE) if loose else (GROUND, PAD | INSTRUMENT | LOOSE)
    for geom, volume in zip(_add_touching(spec, body, part, at_m, turn_wxyz), volumes, strict=True):
        touch(geom, own, others, part.part.friction)
        geom.group = HIDDEN
        geom.mass = (part.part.mass_kg or 0.0) * volume / sum(volumes) if loose else 0.0


def _add_touching(
    spec: mujoco.MjSpec, body: mujoco.MjsBody, part: Furniture, at_m: Vector, turn_wxyz: Quaternion
) -> list[mujoco.MjsGeom]:
    first = len(part.seen)
    if part.box is not None:
        name = f"{part.body}_{first}"
        geom = body.add_geom(name=name, type=mujoco.mjtGeom.mjGEOM_BOX, size=part.box[1], quat=turn_wxyz)
        geom.pos = rotation(turn_wxyz) @ part.box[0] + at_m
        return [geom]
    geoms = []
    for number, surface in enumerate(part.hulls, first):
        geom = _add_mesh(spec, body, f"{part.body}_{number}", surface)
        geom.pos, geom.quat = at_m, turn_wxyz
        geoms.append(geom)
    return geoms


def _add_mesh(spec: mujoco.MjSpec, body: mujoco.MjsBody, name: str, surface: Surface) -> mujoco.MjsGeom:
    """A mesh whose inertia is a shell's, as what is drawn need not be closed."""
    mesh = spec.add_mesh(name=name, inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
    mesh.uservert, mesh.userface = surface.points.ravel(), surface.faces.ravel()
    return body.add_geom(name=name, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name)
