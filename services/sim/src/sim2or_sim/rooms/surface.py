"""Surfaces: triangles of one colour, as every file format gives them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sim2or.errors import ConfigError

HULL_POINTS = 64
"""Most corners of a hull; Newton takes no more, and both engines shall have the same one."""

Floats = NDArray[np.float64]
Color = tuple[float, float, float]

_WELD_M = 1e-5
_FLAT_M = 1e-4


@dataclass(frozen=True)
class Surface:
    """Triangles of one colour, counter-clockwise seen from outside.

    Attributes:
        points: Shape (n, 3), [m].
        faces: Shape (m, 3), indices of points.
        color: Red, green, blue in 0–1, as seen (sRGB).
        seen: Whether it is drawn.
        touches: Whether it may collide.
    """

    points: Floats
    faces: NDArray[np.int64]
    color: Color = (0.7, 0.7, 0.7)
    seen: bool = True
    touches: bool = True

    def moved(self, pose: Floats, scale: float = 1.0) -> Surface:
        """Scaled, then put at a pose, shape (4, 4)."""
        points = self.points * scale @ pose[:3, :3].T + pose[:3, 3]
        return Surface(points, self.faces, self.color, self.seen, self.touches)

    def colored(self, color: Color) -> Surface:
        """The same in another colour."""
        return Surface(self.points, self.faces, color, self.seen, self.touches)


def bounds(surfaces: Iterable[Surface]) -> Floats:
    """Lowest and highest corner, shape (2, 3), [m]."""
    points = np.concatenate([surface.points for surface in surfaces])
    return np.stack([points.min(axis=0), points.max(axis=0)])


def by_color(surfaces: Iterable[Surface]) -> list[Surface]:
    """One surface for each colour, in the order in which colours first appear."""
    found: dict[Color, list[Surface]] = {}
    for surface in surfaces:
        found.setdefault(surface.color, []).append(surface)
    return [_joined(same) for same in found.values()]


def pieces(surfaces: Iterable[Surface]) -> list[Floats]:
    """Points of each connected piece of surface; corners closer than 10 µm are one."""
    found: list[Floats] = []
    for surface in surfaces:
        _, first, same = np.unique(
            np.round(surface.points / _WELD_M), axis=0, return_index=True, return_inverse=True
        )
        faces = same.reshape(-1)[surface.faces]
        edges = np.concatenate([faces[:, :2], faces[:, 1:]])
        links = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(first), len(first)))
        count, labels = connected_components(links, directed=False)
        used = np.unique(faces)
        points = surface.points[first]
        found += [
            points[used[labels[used] == label]] for label in range(count) if (labels[used] == label).any()
        ]
    return found


def hull(points: Floats, what: str) -> Surface:
    """The convex hull, of at most ``HULL_POINTS`` corners: where there are more, those that lie farthest out.

    Args:
        points: Shape (n, 3), [m].
        what: The part, for messages.

    Raises:
        ConfigError: The points are flat.
    """
    if thickness_m(points) < _FLAT_M:
        raise ConfigError(f"{what}: it is flat, so it has no hull; use collision: box or none")
    found = trimesh.convex.convex_hull(points)
    if len(found.vertices) > HULL_POINTS:
        outer = np.unique(np.argmax(found.vertices @ _directions().T, axis=0))
        found = trimesh.convex.convex_hull(found.vertices[outer])
    return Surface(np.asarray(found.vertices, dtype=np.float64), np.asarray(found.faces, dtype=np.int64))


def thickness_m(points: Floats) -> float:
    """Extent of points, shape (n, 3), along the axis along which they vary least [m]."""
    middle = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(middle.T @ middle)
    return float(np.ptp(middle @ axes[:, 0]))


def is_inside(hulled: Surface, point: Floats) -> bool:
    """Whether a point, shape (3,), lies in a convex surface."""
    corners = hulled.points[hulled.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return bool((np.einsum("ij,ij->i", normals, point - corners[:, 0]) <= 0).all())


def crosses(surface: Surface, low: Floats, high: Floats) -> bool:
    """Whether any triangle reaches into a box.

    Args:
        surface: The triangles.
        low: Lower corner, shape (3,), [m].
        high: Upper corner, shape (3,), [m].
    """
    points, faces = surface.points, surface.faces
    for corner, inward in ((low, np.eye(3)), (high, -np.eye(3))):
        for normal in inward:
            points, faces, _ = trimesh.intersections.slice_faces_plane(points, faces, normal, corner)
            if len(faces) == 0:
                return False
    return True


def _joined(surfaces: list[Surface]) -> Surface:
    starts = np.cumsum([0, *(len(surface.points) for surface in surfaces[:-1])])
    faces = [surface.faces + start for surface, start in zip(surfaces, starts, strict=True)]
    points = np.concatenate([surface.points for surface in surfaces])
    first = surfaces[0]
    return Surface(points, np.concatenate(faces), first.color, first.seen, first.touches)


def _directions() -> Floats:
    """As many directions as a hull may have corners, spread evenly.

    Source: Swinbank and Purser 2006, Fibonacci grids.
    """
    number = np.arange(HULL_POINTS) + 0.5
    z = 1.0 - 2.0 * number / HULL_POINTS
    turn, flat = np.pi * (1 + 5**0.5) * number, np.sqrt(1.0 - z**2)
    return np.column_stack([flat * np.cos(turn), flat * np.sin(turn), z])
