"""Geoms of a compiled model as polygons, faces counter-clockwise seen from outside."""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
from numpy.typing import NDArray
from sim2or.errors import ConfigError

BOX, CYLINDER, CAPSULE, ELLIPSOID, SPHERE, MESH = (
    int(getattr(mujoco.mjtGeom, f"mjGEOM_{name}"))
    for name in ("BOX", "CYLINDER", "CAPSULE", "ELLIPSOID", "SPHERE", "MESH")
)
_SLICES, _STACKS = 20, 10

Floats = NDArray[np.float64]
Solid = tuple[Floats, list[list[int]]]
"""Points, shape (n, 3), and faces as indices of points."""


def solid(model: mujoco.MjModel, number: int, what: str) -> Solid:
    """The polygons of a geom in its own frame [m].

    Args:
        model: Compiled.
        number: Of the geom.
        what: Whose it is, for messages.

    Raises:
        ConfigError: It has no surface, as a plane or a height field has none here.
    """
    kind, size = int(model.geom_type[number]), model.geom_size[number].astype(np.float64)
    if kind == MESH:
        return _mesh(model, int(model.geom_dataid[number]))
    if kind == CAPSULE:
        import trimesh

        made = trimesh.creation.capsule(height=2.0 * size[1], radius=size[0], count=[_SLICES, _STACKS])
        return np.asarray(made.vertices), made.faces.tolist()
    if kind not in _UNIT:
        name = str(mujoco.mjtGeom(kind)).removeprefix("mjtGeom.mjGEOM_").lower()
        raise ConfigError(
            f"{what}: a {name} has no surface to show; valid: box, cylinder, capsule, ellipsoid, sphere, mesh"
        )
    points, faces = _UNIT[kind]()
    return points * half_sizes(kind, size), faces


def half_sizes(kind: int, size: Floats) -> Floats:
    """Half sizes along x, y and z of a primitive, shape (3,), from MuJoCo's size [m]."""
    if kind == CYLINDER:
        return np.array([size[0], size[0], size[1]])
    return np.full(3, size[0]) if kind == SPHERE else size


def geom(model: mujoco.MjModel, number: int, what: str) -> tuple[Floats, NDArray[np.int64]]:
    """The triangles of a geom in its own frame: points, shape (n, 3) [m], and faces, shape (m, 3).

    Raises:
        ConfigError: As ``solid``.
    """
    points, faces = solid(model, number, what)
    triangles = [(face[0], face[k], face[k + 1]) for face in faces for k in range(1, len(face) - 1)]
    return points, np.array(triangles, dtype=np.int64)


def color(model: mujoco.MjModel, number: int) -> Floats:
    """The colour of a geom as seen, shape (3,); a texture is given by its mean."""
    found = np.array(model.geom_rgba[number, :3], dtype=np.float64)
    material = model.geom_matid[number]
    if material >= 0 and np.array_equal(model.geom_rgba[number], _DEFAULT_RGBA):
        found = np.array(model.mat_rgba[material, :3], dtype=np.float64)
    texture = model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB] if material >= 0 else -1
    if texture >= 0:
        start, channels = model.tex_adr[texture], model.tex_nchannel[texture]
        count = model.tex_height[texture] * model.tex_width[texture] * channels
        found *= model.tex_data[start : start + count].reshape(-1, channels)[:, :3].mean(axis=0) / 255.0
    return found


_DEFAULT_RGBA = np.array([0.5, 0.5, 0.5, 1.0], dtype=np.float32)
"""A geom of this colour wears its material's. Source: MuJoCo's XML reference, geom/material."""


def _mesh(model: mujoco.MjModel, number: int) -> Solid:
    points, faces = model.mesh_vertadr[number], model.mesh_faceadr[number]
    return (
        model.mesh_vert[points : points + model.mesh_vertnum[number]].astype(np.float64),
        model.mesh_face[faces : faces + model.mesh_facenum[number]].tolist(),
    )


def _cube() -> Solid:
    points = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    return points, [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]


def _tube() -> Solid:
    """Lower ring, upper ring; the ends are polygons."""
    around = 2 * np.pi * np.arange(_SLICES) / _SLICES
    points = np.array([[np.cos(a), np.sin(a), z] for z in (-1.0, 1.0) for a in around])
    lower, upper = list(range(_SLICES)), list(range(_SLICES, 2 * _SLICES))
    sides = [[i, (i + 1) % _SLICES, _SLICES + (i + 1) % _SLICES, _SLICES + i] for i in lower]
    return points, [lower[::-1], upper, *sides]


def _ball() -> Solid:
    """Poles first, then rings from top to bottom."""
    polar = np.pi * np.arange(1, _STACKS) / _STACKS
    around = 2 * np.pi * np.arange(_SLICES) / _SLICES
    rings = [[np.sin(p) * np.cos(a), np.sin(p) * np.sin(a), np.cos(p)] for p in polar for a in around]
    points = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], *rings])
    faces: list[list[int]] = []
    last = 2 + _SLICES * (_STACKS - 2)
    for i in range(_SLICES):
        k = (i + 1) % _SLICES
        faces += [[0, 2 + i, 2 + k], [1, last + k, last + i]]
        for ring in range(_STACKS - 2):
            upper, lower = 2 + _SLICES * ring, 2 + _SLICES * (ring + 1)
            faces += [[upper + i, lower + i, lower + k], [upper + i, lower + k, upper + k]]
    return points, faces


_UNIT: dict[int, Callable[[], Solid]] = {BOX: _cube, CYLINDER: _tube, ELLIPSOID: _ball, SPHERE: _ball}
"""Solids of half size one."""
