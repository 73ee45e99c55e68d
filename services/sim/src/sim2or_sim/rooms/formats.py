"""Readers: the surfaces in the bytes of OBJ, GLB, USD and MJCF files; nothing is read that is not given."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import mujoco
import numpy as np
import trimesh
from numpy.typing import NDArray
from sim2or.contracts.room import RoomPart
from sim2or.errors import ConfigError, choices

from sim2or_sim.backends.mujoco import mesh as compiled
from sim2or_sim.rooms.surface import Color, Floats, Surface

Files = Mapping[str, bytes]
Indices = NDArray[np.int64]

_Y_UP = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
_SEEN_GROUPS = 3  # MuJoCo's viewer shows groups 0 to 2
_GREY: Color = (0.7, 0.7, 0.7)
_XML = ("include", "model")  # elements whose files may name further files; MuJoCo takes INCLUDE as well
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, NotImplementedError, struct.error)
"""What trimesh raises, depending on how a file is broken."""


def read(part: RoomPart, files: Files, what: str) -> list[Surface]:
    """The surfaces of a part in its own frame, z up, metres, before its scale.

    Args:
        part: What the manifest says.
        files: The files it may read, by name.
        what: The part, for messages.

    Raises:
        ConfigError: The file is none of its format, holds no triangles, moves by itself, or asks for a file
            that the manifest does not name.
    """
    surfaces, up = _READERS[part.format](part.file, files, what)
    surfaces = [surface for surface in surfaces if len(surface.faces)]
    if not surfaces:
        raise ConfigError(f"{what}: no triangles in it; export the part as a mesh")
    if any(not np.isfinite(surface.points).all() for surface in surfaces):
        raise ConfigError(f"{what}: a corner is not a finite number; export it again")
    return [surface.moved(_Y_UP) for surface in surfaces] if (part.up or up) == "y" else surfaces


def _read_obj(name: str, files: Files, what: str) -> tuple[list[Surface], str]:
    return _read_scene(name, files, what, linear=False), "z"


def _read_glb(name: str, files: Files, what: str) -> tuple[list[Surface], str]:
    return _read_scene(name, files, what, linear=True), "y"


def _read_scene(name: str, files: Files, what: str, *, linear: bool) -> list[Surface]:
    """Through trimesh; glTF's colours are linear intensities, OBJ's are as seen."""
    kind, beside = Path(name).suffix[1:].lower(), _relative(name, files)
    try:
        scene = trimesh.load_scene(
            trimesh.util.wrap_as_stream(files[name]), file_type=kind, resolver=beside, process=False
        )
    except _BROKEN as error:
        raise ConfigError(f"{what}: no {kind.upper()} file ({type(error).__name__}: {error})") from error
    surfaces = []
    for node in scene.graph.nodes_geometry:
        pose, key = scene.graph[node]
        shape = scene.geometry[key]
        if isinstance(shape, trimesh.Trimesh):
            color = _visual_color(shape, linear=linear)
            found = Surface(np.array(shape.vertices), np.array(shape.faces), color)
            surfaces.append(_placed(found, np.asarray(pose, dtype=np.float64)))
    return surfaces


def _visual_color(shape: trimesh.Trimesh, *, linear: bool) -> Color:
    """The material's colour, a texture by its mean; else the colour that most corners have."""
    visual: Any = shape.visual
    material = getattr(visual, "material", visual)
    white = linear and getattr(material, "baseColorFactor", 0) is None  # as glTF has it
    color = np.ones(3) if white else np.asarray(material.main_color, dtype=np.float64)[:3] / 255.0
    seen = np.array(as_seen((color[0], color[1], color[2]))) if linear else color
    image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
    if image is not None:
        seen = seen * np.asarray(image.convert("RGB"), dtype=np.float64).reshape(-1, 3).mean(axis=0) / 255.0
    return float(seen[0]), float(seen[1]), float(seen[2])


def _read_usd(name: str, files: Files, what: str) -> tuple[list[Surface], str]:
    """Through pxr, in a directory that holds nothing but the part's files."""
    from pxr import Tf, Usd, UsdGeom  # half a second

    with tempfile.TemporaryDirectory(prefix="sim2or-usd-") as directory:
        root = Path(directory).resolve()
        for file, content in files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(content)
        try:
            stage = Usd.Stage.Open(str(root / name))
        except Tf.ErrorException as error:
            raise ConfigError(f"{what}: no USD file ({str(error).strip().splitlines()[-1]})") from error
        _check_layers(stage, root, files, what)
        times = Usd.TimeCode.Default()
        meters, cache = UsdGeom.GetStageMetersPerUnit(stage), UsdGeom.XformCache(times)
        surfaces = []
        for prim in stage.Traverse(Usd.TraverseInstanceProxies()):
            if not prim.IsA(UsdGeom.Gprim) or UsdGeom.Imageable(prim).ComputeVisibility() == "invisible":
                continue
            if not prim.IsA(UsdGeom.Mesh):
                raise ConfigError(f"{what}: {prim.GetPath()} is a {prim.GetTypeName()}; convert it to a Mesh")
            pose = np.array(cache.GetLocalToWorldTransform(prim)).T  # USD's vectors are rows
            surfaces.append(_usd_mesh(UsdGeom.Mesh(prim), what, pose, meters))
        return surfaces, "y" if UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.y else "z"


def _check_layers(stage: Any, root: Path, files: Files, what: str) -> None:
    """Nothing missing, and nothing from elsewhere."""
    own = {str(root / file) for file in files}
    for layer in stage.GetUsedLayers():
        wanted = {str(layer.ComputeAbsolutePath(path)) for path in layer.GetCompositionAssetDependencies()}
        foreign = sorted(path.removeprefix(f"{root}/") for path in wanted - own)
        if foreign:
            raise ConfigError(f"{what}: reads {', '.join(foreign)}; name it under `beside`, with its sha256")


def _usd_mesh(mesh: Any, what: str, pose: Floats, meters: float) -> Surface:
    points = np.array(mesh.GetPointsAttr().Get() or np.empty((0, 3)), dtype=np.float64)
    counts = np.array(mesh.GetFaceVertexCountsAttr().Get() or [], dtype=np.int64)
    indices = np.array(mesh.GetFaceVertexIndicesAttr().Get() or [], dtype=np.int64)
    if counts.sum() != len(indices) or (
        len(indices) and not 0 <= indices.min() <= indices.max() < len(points)
    ):
        raise ConfigError(f"{what}: {mesh.GetPath()} names corners that it does not have; export it again")
    faces = fans(counts, indices)
    if mesh.GetOrientationAttr().Get() == "leftHanded":
        faces = faces[:, ::-1]
    surface = Surface(points, faces, as_seen(_usd_color(mesh)))
    placed = _placed(surface, pose)
    return Surface(placed.points * meters, placed.faces, placed.color)


def _usd_color(mesh: Any) -> Color:
    """The bound preview surface's colour, else the prim's display colour."""
    from pxr import UsdShade

    material, _ = UsdShade.MaterialBindingAPI(mesh.GetPrim()).ComputeBoundMaterial()
    shader = material.ComputeSurfaceSource()[0] if material else None
    given = shader.GetInput("diffuseColor") if shader else None
    color = given.Get() if given else None
    if color is None:
        shown = mesh.GetDisplayColorAttr().Get()
        color = shown[0] if shown else _GREY
    return float(color[0]), float(color[1]), float(color[2])


def fans(counts: Indices, indices: Indices) -> Indices:
    """Polygons as triangles around their first corner.

    Args:
        counts: Shape (n,), corners of each polygon.
        indices: Their points, one polygon after the other.
    """
    starts = np.cumsum([0, *counts[:-1]])
    triangles = [
        (indices[start], indices[start + k], indices[start + k + 1])
        for start, count in zip(starts, counts, strict=True)
        for k in range(1, count - 1)
    ]
    return np.array(triangles, dtype=np.int64).reshape(-1, 3)


def _read_mjcf(name: str, files: Files, what: str) -> tuple[list[Surface], str]:
    """As MuJoCo compiles it: what its viewer shows is seen, what can collide touches."""
    beside = {file: content for file, content in _relative(name, files).items() if file != Path(name).name}
    try:
        _check_reads(files[name], beside, what)
        spec = mujoco.MjSpec.from_string(files[name].decode(), include=beside)
        spec.assets = {file: content for file, content in beside.items()}
        model = spec.compile()
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what}: no MJCF file ({' '.join(str(error).split())})") from error
    if model.nv:
        joints = ", ".join(model.joint(i).name or f"joint {i}" for i in range(model.njnt))
        raise ConfigError(f"{what}: a part is rigid, but this one has {joints}; remove its joints")
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    surfaces = []
    for number in range(model.ngeom):
        points, faces = compiled.geom(model, number, what)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = data.geom_xmat[number].reshape(3, 3), data.geom_xpos[number]
        red, green, blue = map(float, compiled.color(model, number))
        seen = bool(model.geom_group[number] < _SEEN_GROUPS and model.geom_rgba[number, 3] > 0)
        touches = bool(model.geom_contype[number] or model.geom_conaffinity[number])
        surfaces.append(Surface(points, faces, (red, green, blue), seen, touches).moved(pose))
    return surfaces, "z"


def _check_reads(part: bytes, beside: Files, what: str) -> None:
    """Before MuJoCo sees the part: it takes from the file system what it is not given.

    MuJoCo finds a given file by its last name alone, so a path that leads to one never leads elsewhere.
    """
    trees = _trees(part, beside, what)
    nodes = [node for tree in trees.values() for node in tree.iter("compiler")]
    folders = {node.get(key, "") for node in nodes for key in ("meshdir", "texturedir", "assetdir")}
    for origin, tree in trees.items():
        places = folders | {"", PurePosixPath(origin).parent.as_posix()}
        for element, key, value in _asked(tree):
            if not _given(value, places, beside):
                where = f"{what}: <{element} {key}={value!r}>" + (f" in {origin}" if origin else "")
                raise ConfigError(
                    f"{where} reads a file that is not given; name it under `beside`, with its sha256, and "
                    f"relative to the part's own file: {choices(value, beside)}"
                )


def _trees(part: bytes, beside: Files, what: str) -> dict[str, ElementTree.Element]:
    """The part, by the name "", and each given file that it takes in as XML."""
    trees = {"": _tree(part, what)}
    waiting = [trees[""]]
    while waiting:
        tree = waiting.pop()
        asked = {PurePosixPath(value).name for element, _, value in _asked(tree) if element.lower() in _XML}
        for name in beside:
            if PurePosixPath(name).name in asked and name not in trees:
                trees[name] = _tree(beside[name], f"{what}: {name}")
                waiting.append(trees[name])
    return trees


def _tree(content: bytes, what: str) -> ElementTree.Element:
    text = content.decode()
    if "<!DOCTYPE" in text:
        raise ConfigError(f"{what}: has a DOCTYPE, whose entities may read files; remove it")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ConfigError(f"{what}: no MJCF file ({error})") from error


def _asked(tree: ElementTree.Element) -> Iterator[tuple[str, str, str]]:
    """Element, attribute and value of each file that it names: ``file``, ``fileright``, ``filename`` …."""
    for node in tree.iter():
        for key, value in node.items():
            if key.startswith("file"):
                yield node.tag.rpartition("}")[2], key, value


def _given(value: str, places: set[str], beside: Files) -> bool:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        return False
    return any((PurePosixPath(place) / path).as_posix() in beside for place in places)


def _relative(name: str, files: Files) -> dict[str, bytes]:
    """The files by their names as seen from the part's own file."""
    folder = Path(name).parent
    return {
        Path(file).relative_to(folder).as_posix(): content
        for file, content in files.items()
        if Path(file).is_relative_to(folder)
    }


def _placed(surface: Surface, pose: Floats) -> Surface:
    """At a pose that may scale and mirror; a mirrored surface is turned right side out."""
    mirrored = np.linalg.det(pose[:3, :3]) < 0
    moved = surface.moved(pose)
    return Surface(moved.points, moved.faces[:, ::-1] if mirrored else moved.faces, moved.color)


def as_seen(color: Color) -> Color:
    """A colour as seen (sRGB) of linear intensities. Source: IEC 61966-2-1."""
    light = np.clip(np.asarray(color, dtype=np.float64), 0.0, 1.0)
    seen = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    red, green, blue = (float(round(value, 6)) for value in seen)
    return red, green, blue


_READERS: dict[str, Callable[[str, Files, str], tuple[list[Surface], str]]] = {
    "OBJ": _read_obj,
    "GLB": _read_glb,
    "USD": _read_usd,
    "MJCF": _read_mjcf,
}
