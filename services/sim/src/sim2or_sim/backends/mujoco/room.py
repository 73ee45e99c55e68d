"""The looks of the operating room: materials, drape, lamps, walls and the surgeon's gloved hand."""

from __future__ import annotations

from collections.abc import Callable, Collection

import mujoco
from sim2or.contracts.geometry import Part
from sim2or.contracts.room import Fitting
from sim2or.contracts.task import Table

GLOVE = (0.80, 0.86, 0.95)
GOWN = (0.16, 0.42, 0.62)
_GLOSS = {"matte": 0.1, "satin": 0.4, "steel": 0.8}
FLOOR, _FLOOR_M = "floor", -0.85
SCENERY = 2  # drawn for people only; outside the views of the robot's cameras
HIDDEN = 4  # never drawn: groups above 2 are off
_BOX, _CYLINDER = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER


def material(gloss: float) -> str:
    """The material nearest to a gloss of 0 (dull) … 1 (mirror-like)."""
    return min(_GLOSS, key=lambda name: abs(_GLOSS[name] - gloss))


def add_materials(spec: mujoco.MjSpec) -> None:
    """Adds the materials that ``material`` names."""
    for name, gloss in _GLOSS.items():
        spec.add_material(name=name, specular=gloss, shininess=0.2 + 0.6 * gloss, reflectance=0.0)


def add_room(spec: mujoco.MjSpec, keep: Collection[Fitting]) -> None:
    """Adds the light, and of floor, walls and fixtures what is kept; nothing of it touches anything."""
    world = spec.worldbody
    world.add_light(
        name="lamp",
        pos=[0.25, -0.1, 1.6],
        dir=[0.0, 0.05, -1.0],
        diffuse=[0.50, 0.50, 0.48],
        specular=[0.25] * 3,
        castshadow=False,
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
    )
    for fitting, add in _FITTINGS.items():
        if fitting in keep:
            add(spec, world)


def _add_floor(spec: mujoco.MjSpec, world: mujoco.MjsBody) -> None:
    """Tiles; they touch only where an own room has loose parts."""
    spec.add_texture(
        name="tiles",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.60, 0.66, 0.68],
        rgb2=[0.56, 0.62, 0.645],
        width=64,
        height=64,
    )
    tiles = spec.add_material(name="tiles", texrepeat=[8, 8], specular=0.1)
    tiles.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "tiles"
    _box(world, [0.3, 0.3, _FLOOR_M - 0.01], [2.4, 2.4, 0.01], [1, 1, 1], "tiles", name=FLOOR)


def _add_walls(spec: mujoco.MjSpec, world: mujoco.MjsBody) -> None:
    _box(world, [-1.6, 0.3, 0.4], [0.02, 2.4, 1.25], [0.72, 0.82, 0.82])
    _box(world, [0.3, 2.2, 0.4], [2.4, 0.02, 1.25], [0.76, 0.85, 0.84])
    _box(world, [2.7, 0.3, 0.4], [0.02, 2.4, 1.25], [0.72, 0.82, 0.82])
    _box(world, [0.3, -2.1, 0.4], [2.4, 0.02, 1.25], [0.76, 0.85, 0.84])
    _box(world, [-1.57, 0.3, _FLOOR_M + 0.06], [0.02, 2.4, 0.06], [0.45, 0.55, 0.56])


def add_drape(spec: mujoco.MjSpec, table: Table) -> None:
    """The drape hanging over the table's edges, and the column under it."""
    (x, y, top), (half_x, half_y) = table.center_m, table.half_m
    color = [0.9 * c for c in table.color]
    world = spec.worldbody
    for i, sign in enumerate((-1, 1)):
        _box(world, [x + sign * half_x, y, top - 0.16], [0.006, half_y, 0.155], color, name=f"drape_x{i}")
        _box(world, [x, y + sign * half_y, top - 0.16], [half_x, 0.006, 0.155], color, name=f"drape_y{i}")
    _box(
        world,
        [x, y, (top + _FLOOR_M) / 2 - 0.05],
        [0.10, 0.16, -_FLOOR_M / 2 - 0.05],
        [0.82, 0.84, 0.86],
        "steel",
    )
    _box(world, [x, y, _FLOOR_M + 0.05], [0.26, 0.36, 0.05], [0.70, 0.72, 0.75], "steel")


def hand_parts(closed: bool) -> list[Part]:
    """A left-behind-the-handle hand: fingers point along −y of its frame, palm down; origin in the palm.

    Args:
        closed: Fingers curled around a handle, else stretched out and ready.
    """
    parts = [
        _part("ellipsoid", (0.0, 0.030, 0.004), (0.040, 0.044, 0.016)),
        _part("ellipsoid", (0.0, 0.052, 0.004), (0.032, 0.034, 0.018)),
        _part("capsule", (0.0, 0.100, 0.006), (0.027, 0.030), (1.5708, 0.0, 0.0)),
        Part(
            shape="capsule",
            at_m=(0.0, 0.375, 0.026),
            half_m=(0.042, 0.245),
            euler_rad=(1.64, 0.0, 0.0),
            color=GOWN,
            gloss=0.1,
        ),
        Part(
            shape="cylinder",
            at_m=(0.0, 0.126, 0.008),
            half_m=(0.0315, 0.010),
            euler_rad=(1.5, 0.0, 0.0),
            color=(0.88, 0.92, 0.95),
            gloss=0.1,
        ),
    ]
    for i in range(4):
        parts += _finger(i, closed)
    turn = (1.2, 0.0, 0.7) if closed else (1.35, 0.0, -0.55)
    parts.append(_part("capsule", (-0.040 if not closed else -0.026, 0.006, -0.010), (0.0105, 0.024), turn))
    return parts


def _finger(number: int, closed: bool) -> list[Part]:
    x = -0.027 + 0.018 * number
    length = (0.021, 0.024, 0.023, 0.018)[number]
    if closed:
        return [
            _part("capsule", (x, -0.014, 0.006), (0.0095, 0.8 * length), (1.75, 0.0, 0.0)),
            _part("capsule", (x, -0.030, -0.008), (0.009, 0.5 * length), (0.25, 0.0, 0.0)),
            _part("capsule", (x, -0.020, -0.024), (0.0085, 0.4 * length), (-1.2, 0.0, 0.0)),
        ]
    spread = (number - 1.5) * 0.08
    return [
        _part("capsule", (x, -0.020, 0.006), (0.0095, length), (1.62, spread, 0.0)),
        _part(
            "capsule",
            (x * 1.12, -0.020 - 1.85 * length, -0.001),
            (0.0085, 0.85 * length),
            (1.25, spread, 0.0),
        ),
    ]


def _part(
    shape: str,
    at_m: tuple[float, float, float],
    half_m: tuple[float, ...],
    euler_rad: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Part:
    return Part.model_validate(
        {"shape": shape, "at_m": at_m, "half_m": half_m, "euler_rad": euler_rad, "color": GLOVE, "gloss": 0.4}
    )


def _add_monitor(spec: mujoco.MjSpec, world: mujoco.MjsBody) -> None:
    """A patient monitor on the wall, with three traces."""
    x, y, z = -1.54, 0.62, 0.46
    _box(world, [x, y, z], [0.03, 0.36, 0.22], [0.10, 0.11, 0.12], "satin", group=SCENERY)
    _box(world, [x + 0.03, y, z], [0.006, 0.34, 0.20], [0.02, 0.07, 0.12], "satin", group=SCENERY)
    for i, color in enumerate(([0.2, 0.9, 0.35], [0.95, 0.8, 0.2], [0.3, 0.7, 0.95])):
        for k in range(9):
            height = 0.07 if k % 3 == 1 else 0.008
            at = [x + 0.038, y - 0.26 + 0.06 * k, z + 0.12 - 0.12 * i]
            _box(world, at, [0.002, 0.030 if k % 3 != 1 else 0.006, height / 2], color, group=SCENERY)


def _add_lamps(spec: mujoco.MjSpec, world: mujoco.MjsBody) -> None:
    """Two surgical lamps overhead."""
    for x, y in ((-0.35, 0.55), (0.15, 0.95)):
        at = [x, y, 0.62]
        for size, z, color in ((0.24, 0.0, [0.88, 0.90, 0.92, 1]), (0.20, -0.04, [1.0, 1.0, 0.92, 1])):
            world.add_geom(
                type=_CYLINDER,
                pos=[at[0], at[1], at[2] + z],
                size=[size, 0.03, 0],
                rgba=color,
                contype=0,
                conaffinity=0,
                mass=0.0,
                group=SCENERY,
            )
        _box(world, [x, y, 1.1], [0.02, 0.02, 0.45], [0.80, 0.82, 0.84], group=SCENERY)


_FITTINGS: dict[Fitting, Callable[[mujoco.MjSpec, mujoco.MjsBody], None]] = {
    Fitting.FLOOR: _add_floor,
    Fitting.WALLS: _add_walls,
    Fitting.MONITOR: _add_monitor,
    Fitting.LAMPS: _add_lamps,
}
"""In the order in which they are added; the drape goes with the table."""


def _box(
    world: mujoco.MjsBody,
    at: list[float],
    half: list[float],
    color: list[float],
    gloss: str = "matte",
    name: str = "",
    group: int = 0,
) -> None:
    geom = world.add_geom(
        group=group,
        type=_BOX,
        pos=at,
        size=half,
        rgba=[*color, 1.0],
        contype=0,
        conaffinity=0,
        mass=0.0,
        material=gloss,
    )
    if name:
        geom.name = name
