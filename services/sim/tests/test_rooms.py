"""Own operating rooms: read from every format, checked, and put into MuJoCo's model."""

from __future__ import annotations

import hashlib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
import yaml
from pxr import Gf, Usd, UsdGeom
from sim2or.contracts.robot import load_robot
from sim2or.contracts.room import read_room
from sim2or.contracts.task import load_task
from sim2or.errors import ConfigError
from sim2or_sim.backends.mujoco import scene
from sim2or_sim.rooms import load_room
from sim2or_sim.rooms.room import Room
from sim2or_sim.rooms.surface import HULL_POINTS, bounds, hull
from sim2or_sim.rooms.survey import survey

ROBOT, TASK = load_robot("so101"), load_task("handover")
REPOSITORY = Path(__file__).parents[3]
AT_M = [-1.0, 0.5, -0.85]
SIZE_M, COLOR = (0.4, 0.2, 0.6), (0.8, 0.4, 0.2)


def _block() -> trimesh.Trimesh:
    """A block that stands on its origin, z up [m]."""
    made = trimesh.creation.box(extents=SIZE_M)
    made.apply_translation([0, 0, SIZE_M[2] / 2])
    return made


def _linear(color: tuple[float, float, float]) -> list[float]:
    return [((c + 0.055) / 1.055) ** 2.4 for c in color]


def _obj(scale: float = 1.0) -> dict[str, bytes]:
    block = _block()
    lines = ["mtllib part.mtl", "usemtl paint"]
    lines += [f"v {x} {y} {z}" for x, y, z in block.vertices * scale]
    lines += [f"f {a} {b} {c}" for a, b, c in block.faces + 1]
    paint = f"newmtl paint\nKd {COLOR[0]} {COLOR[1]} {COLOR[2]}\n"
    return {"part.obj": "\n".join(lines).encode(), "part.mtl": paint.encode()}


def _glb() -> dict[str, bytes]:
    block = _block()
    block.vertices = block.vertices[:, [0, 2, 1]] * [1, 1, -1]
    paint = trimesh.visual.material.PBRMaterial(baseColorFactor=[*_linear(COLOR), 1.0])
    block.visual = trimesh.visual.TextureVisuals(material=paint)
    return {"part.glb": trimesh.Scene(block).export(file_type="glb")}


def _usd() -> dict[str, bytes]:
    """In centimetres and y up, as many tools write it."""
    block, stage = _block(), Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 0.01)
    mesh = UsdGeom.Mesh.Define(stage, "/part")
    mesh.CreatePointsAttr([Gf.Vec3f(*map(float, p)) for p in block.vertices[:, [0, 2, 1]] * [100, 100, -100]])
    mesh.CreateFaceVertexCountsAttr([3] * len(block.faces))
    mesh.CreateFaceVertexIndicesAttr(block.faces.ravel().tolist())
    mesh.CreateDisplayColorAttr([Gf.Vec3f(*_linear(COLOR))])
    return {"part.usda": stage.ExportToString().encode()}


def _mjcf(extra: str = "", assets: str = "") -> dict[str, bytes]:
    x, y, z = (size / 2 for size in SIZE_M)
    paint = " ".join(map(str, COLOR))
    geom = f'<geom type="box" size="{x} {y} {z}" pos="0 0 {z}" rgba="{paint} 1"/>'
    body = f"<body>{geom}{extra}</body>"
    return {"part.xml": f"<mujoco>{assets}<worldbody>{body}</worldbody></mujoco>".encode()}


def _room(directory: Path, files: dict[str, bytes], **change: Any) -> str:
    """Writes a manifest with one part; the first file is the part's own."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    (first, digest), *rest = digests.items()
    part = {"name": "block", "file": first, "sha256": digest, "beside": dict(rest), "label": "cabinet"}
    part |= {"license": "CC0-1.0", "at_m": AT_M} | change
    content = {"kind": "room", "name": "mine", "title": "Mine", "parts": [part]}
    (directory / "room.yaml").write_text(yaml.safe_dump(content))
    return str(directory / "room.yaml")


def _load(directory: Path, files: dict[str, bytes], **change: Any) -> Room:
    room = Room(read_room(_room(directory, files, **change)))
    room.check(ROBOT, TASK)
    return room


@pytest.mark.parametrize("files", [_obj, _glb, _usd, _mjcf])
def test_every_format_says_the_same(tmp_path: Path, files: Callable[[], dict[str, bytes]]) -> None:
    """The same block in OBJ, GLB, USD and MJCF is one part of the same size, place, colour and hull."""
    part = _load(tmp_path, files(), collision="hull").parts[0]
    low, high = bounds(part.seen)
    np.testing.assert_allclose(low, [-SIZE_M[0] / 2, -SIZE_M[1] / 2, 0.0], atol=1e-6)
    np.testing.assert_allclose(high, [SIZE_M[0] / 2, SIZE_M[1] / 2, SIZE_M[2]], atol=1e-6)
    assert len(part.seen) == 1
    np.testing.assert_allclose(part.seen[0].color, COLOR, atol=0.01)  # a glTF's colour is kept in 256 steps
    assert part.triangles == 12
    inside = part.seen[0].points.mean(axis=0)
    corners = part.seen[0].points[part.seen[0].faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.einsum("ij,ij->i", normals, corners[:, 0] - inside) > 0).all()
    assert len(part.hulls[0].points) == 8


@pytest.mark.parametrize(
    ("files", "change", "message"),
    [
        ({"part.obj": b"not a mesh"}, {}, r"part 'block': part\.obj: no"),
        ({"part.glb": b"glTF but not really"}, {}, r"part 'block': part\.glb: no GLB file"),
        ({"part.usda": b"#usda 1.0\n("}, {}, r"part 'block': part\.usda: no USD file"),
        ({"part.usda": b"#usda 1.0\n"}, {}, r"part 'block': part\.usda: no triangles"),
        ({"part.xml": b"<mujoco><geom/></mujoco>"}, {}, r"part 'block': part\.xml: no MJCF file"),
        (_mjcf('<joint name="swivel"/>'), {}, r"a part is rigid, but this one has swivel; remove its joints"),
        (_mjcf('<geom type="plane" size="1 1 1"/>'), {}, r"a plane has no surface to show"),
        (_obj(1000), {}, r"400 x 200 x 600 m at scale 1; .*try scale 0\.001 if it is in millimetres"),
        (_obj(0.001), {}, r"0\.0006 m at scale 1; a part's longest side is 0\.005…15 m"),
        (_obj(), {"at_m": [900.0, 0.0, 0.0]}, r"it reaches 900\.2 m from the robot; at most 20 m"),
        (_obj(), {"at_m": [0.2, 0.0, 0.0]}, r"part 'block' reaches into the arm's base .*at_m is \[0\.2"),
        (_obj(), {"at_m": [0.5, 0.0, 0.1]}, r"reaches into the tool's workspace \(x 0\.06…0\.36"),
        (
            _obj(),
            {"at_m": [0.2, 0.0, -0.2], "scale": 10, "collision": "hull"},
            r"reaches into the arm's base",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, files: dict[str, bytes], change: dict[str, Any], message: str
) -> None:
    """A broken file, a moving or absurdly large part, or one in the arm's way is refused with what to do."""
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, files, **change)


@pytest.mark.parametrize(
    ("files", "foreign"),
    [
        ({"part.usda": b"#usda 1.0\n(subLayers = [@other.usda@])\n"}, "other.usda"),
        (_mjcf(assets='<asset><mesh name="m" file="other.obj"/></asset>'), "other.obj"),
        ({"part.xml": b'<mujoco><include file="other.xml"/></mujoco>'}, "other.xml"),
    ],
)
def test_a_part_reads_only_what_the_manifest_names(
    tmp_path: Path, files: dict[str, bytes], foreign: str
) -> None:
    """A reference to a file beside it that the manifest does not name is refused, though the file exists."""
    (tmp_path / "other.obj").write_bytes(_obj()["part.obj"])
    (tmp_path / "other.usda").write_bytes(_usd()["part.usda"])
    (tmp_path / "other.xml").write_bytes(_mjcf()["part.xml"])
    with pytest.raises(ConfigError, match=foreign):
        _load(tmp_path, files)


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        ('<include file="{0}/other.xml"/>', r"<include file='{0}/other\.xml'> .*valid: given\.xml"),
        ('<include file="other.xml"/>', r"<include file='other\.xml'> .*valid: given\.xml"),
        ('<include file="../given.xml"/>', r"<include file='\.\./given\.xml'>"),
        ('<asset><texture type="cube" fileright="other.png"/></asset>', r"<texture fileright='other\.png'>"),
        ('<asset><model name="m" file="other.xml"/></asset>', r"<model file='other\.xml'>"),
        ('<deformable><skin file="other.skn"/></deformable>', r"<skin file='other\.skn'>"),
        ('<worldbody><flexcomp file="other.obj"/></worldbody>', r"<flexcomp file='other\.obj'>"),
        ('<include file="given.xml"/>', r"<mesh file='m/other\.obj'> in given\.xml"),
        ('<INCLUDE file="given.xml"/>', r"<mesh file='m/other\.obj'> in given\.xml"),
    ],
)
def test_nothing_is_read_from_where_the_worker_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, told: str
) -> None:
    """An MJCF file reads by no element, path or included file what the manifest does not name."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "other.xml").write_bytes(_mjcf()["part.xml"])
    monkeypatch.chdir(place)
    part = f"<mujoco>{inside.format(place)}</mujoco>".encode()
    given = b'<mujoco><asset><mesh file="m/other.obj"/></asset></mujoco>'
    with pytest.raises(ConfigError, match=r"room 'mine': part 'block': part\.xml: " + told.format(place)):
        _load(tmp_path, {"part.xml": part, "given.xml": given})


def test_an_mjcf_part_reads_what_it_is_given(tmp_path: Path) -> None:
    """A mesh of an included file, in the folder that the compiler names, is read where it is named."""
    (tmp_path / "m").mkdir()
    mesh = b'<mujoco><asset><mesh name="block" file="part.obj"/></asset></mujoco>'
    parts = '<compiler meshdir="m/"/><include file="./mesh.xml"/><worldbody><geom type="mesh" mesh="block"/>'
    files = {"part.xml": f"<mujoco>{parts}</worldbody></mujoco>".encode(), "mesh.xml": mesh}
    (part,) = _load(tmp_path, files | {"m/part.obj": _obj()["part.obj"]}).parts
    assert sorted(part.size_m) == pytest.approx(sorted(SIZE_M), abs=1e-6)


def test_an_mjcf_part_has_no_doctype(tmp_path: Path) -> None:
    """A DOCTYPE, by which an entity could hide a name, is refused."""
    text = '<!DOCTYPE mujoco [<!ENTITY x "other.xml">]><mujoco><include file="&x;"/></mujoco>'
    with pytest.raises(ConfigError, match=r"has a DOCTYPE, .*; remove it"):
        _load(tmp_path, {"part.xml": text.encode()})


def test_colours_beside_an_obj_are_read_only_when_named(tmp_path: Path) -> None:
    """An MTL that the manifest does not name leaves the part grey; the part's own colour beats the file's."""
    files = _obj()
    grey = _load(tmp_path, {"part.obj": files["part.obj"]}).parts[0].seen[0].color
    assert abs(grey[0] - grey[2]) < 0.05
    assert _load(tmp_path, files, color=[0.1, 0.9, 0.1]).parts[0].seen[0].color == (0.1, 0.9, 0.1)


def test_too_many_triangles_are_refused(tmp_path: Path) -> None:
    """A scanned mesh is refused with how many triangles it has and how many there may be."""
    ball = trimesh.creation.icosphere(subdivisions=6)
    with pytest.raises(ConfigError, match=r"81,920 triangles; at most 50,000: decimate it"):
        _load(tmp_path, {"part.glb": trimesh.Scene(ball).export(file_type="glb")})


def test_a_flat_part_has_no_hull(tmp_path: Path) -> None:
    """A sheet may be seen, or touched as a box, but not as a hull; the error says so."""
    sheet = {"part.obj": b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3\nf 1 3 4\n"}
    with pytest.raises(ConfigError, match="it is flat, so it has no hull; use collision: box or none"):
        _load(tmp_path, sheet, collision="hull")
    part = _load(tmp_path, sheet, collision="box").parts[0]
    assert part.box is not None
    np.testing.assert_allclose(part.box, [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0005]])
    scene.build_scene(ROBOT, TASK, "scalpel", _load(tmp_path, sheet, collision="box"))


def test_a_hull_keeps_its_outermost_corners() -> None:
    """A ball of many corners becomes a hull of at most 64 that is nowhere a tenth smaller."""
    ball = trimesh.creation.icosphere(subdivisions=4).vertices
    found = hull(np.asarray(ball), "ball")
    assert 32 < len(found.points) <= HULL_POINTS
    corners = found.points[found.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1)[:, None]
    assert np.einsum("ij,ij->i", normals, corners[:, 0]).min() > 0.85


def test_collision_shapes(tmp_path: Path) -> None:
    """Two blocks apart touch as one box, as one hull, or as a hull for each piece."""
    two = trimesh.util.concatenate([_block(), _block().apply_translation([1.0, 0, 0])])
    files = {"part.obj": trimesh.exchange.obj.export_obj(two, header="", include_normals=False).encode()}
    shapes = {
        kind: _load(tmp_path, files, collision=kind).parts[0] for kind in ("none", "box", "hull", "pieces")
    }
    assert [len(shapes[kind].solids()) for kind in shapes] == [0, 1, 1, 2]
    np.testing.assert_allclose(bounds(shapes["pieces"].hulls[:1])[1], [0.2, 0.1, 0.6], atol=1e-6)


def test_the_world_stands_where_the_manifest_says(tmp_path: Path) -> None:
    """In MuJoCo's model a turned part is where its pose puts it, in its colour, and it touches."""
    half = 0.5**0.5
    room = _load(tmp_path, _obj(), turn_wxyz=[half, 0, 0, half], collision="hull", friction={"slide": 0.3})
    import mujoco  # after sim2or_sim, which chooses its GL library

    model = scene.build_scene(ROBOT, TASK, "scalpel", room)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    for name, touches in (("part_block_0", False), ("part_block_1", True)):
        geom = model.geom(name)
        start, count = model.mesh_vertadr[geom.dataid[0]], model.mesh_vertnum[geom.dataid[0]]
        points = (
            model.mesh_vert[start : start + count] @ data.geom(name).xmat.reshape(3, 3).T
            + data.geom(name).xpos
        )
        np.testing.assert_allclose(points.min(axis=0), np.subtract(AT_M, [0.1, 0.2, 0.0]), atol=1e-6)
        np.testing.assert_allclose(points.max(axis=0), np.add(AT_M, [0.1, 0.2, 0.6]), atol=1e-6)
        assert bool(geom.contype[0]) == touches
    np.testing.assert_allclose(model.geom("part_block_0").rgba[:3], COLOR, atol=1e-6)
    assert model.geom("part_block_1").friction[0] == pytest.approx(0.3)


def test_a_survey_finds_what_falls(tmp_path: Path) -> None:
    """A loose part in the air is told of with how far it fell; one on the floor is fine."""
    loose = {"motion": "free", "mass_kg": 2.0, "collision": "box"}
    name = _room(tmp_path, _obj(), **loose)
    good = survey(name, ROBOT, TASK)
    assert good.problems == ()
    assert good.reference == f"{name}@{read_room(name).manifest.digest()}"
    high = survey(_room(tmp_path, _obj(), **loose | {"at_m": [-1.0, 0.5, 0.0]}), ROBOT, TASK)
    assert len(high.problems) == 1
    assert "part 'block' is loose and moves 0.8" in high.problems[0]


def test_the_theatre_is_usable_and_made_by_its_script(tmp_path: Path) -> None:
    """The example has a part in each format, no problem, and its meshes are the script's, to the byte."""
    found = survey("theatre", ROBOT, TASK)
    assert found.problems == ()
    assert {row[2] for row in found.rows} == {"OBJ", "GLB", "USD", "MJCF"}
    runpy.run_path(str(REPOSITORY / "scripts/make_theatre.py"))["write"](tmp_path)
    files = {
        name: content for files in read_room("theatre").files.values() for name, content in files.items()
    }
    for path in tmp_path.iterdir():
        assert path.read_bytes() == files[path.name], path.name


def test_without_a_room_nothing_changes() -> None:
    """The built-in room's model has no part, and its floor touches nothing."""
    model = scene.build_scene(ROBOT, TASK, "scalpel", load_room("", ROBOT, TASK))
    assert not any(model.geom(i).name.startswith("part_") for i in range(model.ngeom))
    assert (model.geom("floor").contype[0], model.geom("floor").conaffinity[0]) == (0, 0)
