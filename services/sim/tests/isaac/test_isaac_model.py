"""One description, two engines: the Newton model that Isaac Lab's USD gives equals the MuJoCo model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mujoco
import newton
import numpy as np
import pytest
from newton.solvers import SolverMuJoCo
from newton.usd import SchemaResolverMjc, SchemaResolverNewton, SchemaResolverPhysx
from numpy.typing import NDArray
from pxr import Gf, Usd, UsdGeom, UsdSemantics
from sim2or.contracts.kinematics import rotation
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or_sim.backends.isaaclab.usd import Assets, write_assets
from sim2or_sim.backends.mujoco import scene
from sim2or_sim.rooms import load_room
from sim2or_sim.rooms.room import Room

ROBOT, TASK = load_robot("so101"), load_task("handover")
CLOSE = {"rtol": 1e-6, "atol": 1e-9}  # USD and Newton keep single precision: 6e-8 of a number

pytestmark = pytest.mark.isaac


@pytest.fixture(scope="module", params=["", "theatre"])
def room(request: pytest.FixtureRequest) -> Room | None:
    """The built-in room, and the example of one's own."""
    return load_room(request.param, ROBOT, TASK)


@pytest.fixture(scope="module")
def assets(room: Room | None, tmp_path_factory: pytest.TempPathFactory) -> Assets:
    return write_assets(ROBOT, TASK, tmp_path_factory.mktemp("usd"), room)


@pytest.fixture(scope="module", params=list(TASK.instruments))
def pair(
    request: pytest.FixtureRequest, assets: Assets, room: Room | None
) -> tuple[mujoco.MjModel, mujoco.MjModel, Any]:
    """MuJoCo's model, the model that Newton gives its solver, and the Newton model."""
    loose = [part.file for part in assets.loose.values()]
    files = [assets.robot, assets.room, assets.instruments[request.param], *loose]
    model = _newton(files)
    solver = SolverMuJoCo(model, cone="elliptic", impratio=10.0, integrator="implicitfast")
    return scene.build_scene(ROBOT, TASK, request.param, room), solver.mj_model, model


def _newton(files: list[Path]) -> newton.Model:
    builder = newton.ModelBuilder()
    SolverMuJoCo.register_custom_attributes(builder)
    resolvers = [SchemaResolverNewton(), SchemaResolverPhysx(), SchemaResolverMjc()]
    for file in files:
        builder.add_usd(str(file), schema_resolvers=resolvers, hide_collision_shapes=True)
    return builder.finalize(device="cpu")


def _number(model: mujoco.MjModel, kind: str, name: str) -> int:
    """The one thing of that kind whose name ends so."""
    count = {"body": model.nbody, "joint": model.njnt, "geom": model.ngeom}[kind]
    names = [getattr(model, kind)(i).name for i in range(count)]
    found = [i for i, full in enumerate(names) if full.endswith(name)]
    assert len(found) == 1, (name, names)
    return found[0]


def _bodies(theirs: mujoco.MjModel) -> list[tuple[int, str]]:
    bodies = [theirs.body(i).name for i in range(theirs.nbody)]
    loose = [name[name.index("part_") :] for name in bodies if "part_" in name]
    named = [*(body.name for body in ROBOT.bodies), "instrument", *loose]
    return [(_number(theirs, "body", f"_{name}"), name) for name in named]


def test_masses_and_inertias(pair: tuple[mujoco.MjModel, mujoco.MjModel, Any]) -> None:
    """Every link and the instrument have equal mass, centre of mass and inertia tensor."""
    ours, theirs, _ = pair
    for number, name in _bodies(theirs):
        mine = ours.body(name).id
        np.testing.assert_allclose(theirs.body_mass[number], ours.body_mass[mine], **CLOSE)
        np.testing.assert_allclose(theirs.body_ipos[number], ours.body_ipos[mine], rtol=1e-6, atol=1e-8)
        expected = _tensor(ours, mine)
        largest = np.abs(expected).max()
        np.testing.assert_allclose(_tensor(theirs, number), expected, rtol=0, atol=1e-6 * largest)


def _tensor(model: mujoco.MjModel, body: int) -> NDArray[np.float64]:
    turn = np.empty(9)
    mujoco.mju_quat2Mat(turn, model.body_iquat[body])
    axes = turn.reshape(3, 3)
    return axes @ np.diag(model.body_inertia[body]) @ axes.T


def test_joints_and_servos(pair: tuple[mujoco.MjModel, mujoco.MjModel, Any]) -> None:
    """Each joint has equal range, friction, damping, armature, gains and torque limit."""
    ours, theirs, _ = pair
    for joint in ROBOT.joints:
        number, mine = _number(theirs, "joint", f"_{joint.name}"), ours.joint(joint.name)
        dof, actuator = theirs.jnt_dofadr[number], ours.actuator(joint.name)
        np.testing.assert_allclose(theirs.jnt_range[number], mine.range, **CLOSE)
        np.testing.assert_allclose(theirs.jnt_actfrcrange[number], actuator.forcerange, **CLOSE)
        for name in ("dof_frictionloss", "dof_damping", "dof_armature"):
            value = getattr(ours, name)[ours.joint(joint.name).dofadr[0]]
            np.testing.assert_allclose(getattr(theirs, name)[dof], value, **CLOSE, err_msg=name)
        driven = np.flatnonzero(theirs.actuator_trnid[:, 0] == number)
        stiffness = -theirs.actuator_biasprm[driven, 1].sum()
        damping = -theirs.actuator_biasprm[driven, 2].sum()
        np.testing.assert_allclose([stiffness, damping], -actuator.biasprm[1:3], **CLOSE)


def test_links_stand_where_they_stand(pair: tuple[mujoco.MjModel, mujoco.MjModel, Any]) -> None:
    """At five drawn joint positions every link of both models has the same pose, to a micrometre."""
    ours, theirs, _ = pair
    one, other = mujoco.MjData(ours), mujoco.MjData(theirs)
    for _, row in zip(range(5), _positions(), strict=False):
        for joint, value in zip(ROBOT.joints, row, strict=True):
            one.qpos[ours.joint(joint.name).qposadr[0]] = value
            other.qpos[theirs.jnt_qposadr[_number(theirs, "joint", f"_{joint.name}")]] = value
        mujoco.mj_kinematics(ours, one)
        mujoco.mj_kinematics(theirs, other)
        for number, name in _bodies(theirs)[: len(ROBOT.bodies)]:
            mine = ours.body(name).id
            np.testing.assert_allclose(other.xpos[number], one.xpos[mine], atol=1e-6)
            np.testing.assert_allclose(other.xmat[number], one.xmat[mine], atol=1e-5)


def _positions() -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(ROBOT.lower_rad, ROBOT.upper_rad, size=(5, len(ROBOT.joints)))


def test_contacts(pair: tuple[mujoco.MjModel, mujoco.MjModel, Any]) -> None:
    """What touches has equal size, friction and contact parameters, and touches the same things."""
    ours, theirs, _ = pair
    mine = [i for i in range(ours.ngeom) if ours.geom_contype[i] or ours.geom_conaffinity[i]]
    hers = [i for i in range(theirs.ngeom) if theirs.geom_contype[i] or theirs.geom_conaffinity[i]]
    assert len(mine) == len(hers)
    match = {}
    for number in mine:
        name = ours.geom(number).name or f"geom_{number}"
        found = [i for i in hers if f"/{name}_touch_" in theirs.geom(i).name]
        assert len(found) == 1, name
        match[number] = found[0]
        for key in ("geom_friction", "geom_solref", "geom_solimp", "geom_condim", "geom_margin", "geom_gap"):
            np.testing.assert_allclose(
                getattr(theirs, key)[found[0]], getattr(ours, key)[number], **CLOSE, err_msg=f"{name} {key}"
            )
        if ours.geom_type[number] == mujoco.mjtGeom.mjGEOM_MESH:
            np.testing.assert_allclose(_corners(theirs, found[0]), _corners(ours, number), atol=2e-6)
            continue
        size = ours.geom_size[number][ours.geom_size[number] > 0]
        np.testing.assert_allclose(theirs.geom_size[found[0]][: len(size)], size, **CLOSE, err_msg=name)
    for one in mine:
        for two in mine:
            if ours.geom_bodyid[one] != ours.geom_bodyid[two]:
                assert _meet(ours, one, two) == _meet(theirs, match[one], match[two])


def _corners(model: mujoco.MjModel, number: int) -> NDArray[np.float64]:
    """Corners of a geom's convex hull in its body, sorted, shape (n, 3) [m]."""
    mesh, turn = model.geom_dataid[number], np.empty(9)
    mujoco.mju_quat2Mat(turn, model.geom_quat[number])
    start, graph = model.mesh_vertadr[mesh], model.mesh_graph[model.mesh_graphadr[mesh] :]
    corners = model.mesh_vert[start + graph[2 + graph[0] : 2 + 2 * graph[0]]]
    placed = corners @ turn.reshape(3, 3).T + model.geom_pos[number]
    order = np.lexsort(np.round(placed, 4).T)
    return np.asarray(placed[order], dtype=np.float64)


def _meet(model: mujoco.MjModel, one: int, two: int) -> bool:
    forth = int(model.geom_contype[one]) & int(model.geom_conaffinity[two])
    back = int(model.geom_contype[two]) & int(model.geom_conaffinity[one])
    return bool(forth or back)


def test_options(pair: tuple[mujoco.MjModel, mujoco.MjModel, Any]) -> None:
    """Gravity, friction cone, impedance ratio and integrator are the same."""
    ours, theirs, _ = pair
    np.testing.assert_allclose(theirs.opt.gravity, ours.opt.gravity, **CLOSE)
    assert (theirs.opt.cone, theirs.opt.impratio) == (ours.opt.cone, ours.opt.impratio)
    assert theirs.opt.integrator == ours.opt.integrator


def test_cameras(assets: Assets) -> None:
    """Each camera of the USD stands in its link where MuJoCo's does, with the same field of view."""
    ours = scene.build_scene(ROBOT, TASK, "scalpel")
    stage = Usd.Stage.Open(str(assets.robot))
    for name, place in {**TASK.cameras, **TASK.views}.items():
        camera = UsdGeom.Camera(stage.GetPrimAtPath(f"/robot/{place.body}/{name}"))
        pose = np.array(camera.GetLocalTransformation()).T  # USD's vectors are rows
        turn = np.empty(9)
        mujoco.mju_quat2Mat(turn, ours.camera(name).quat)
        np.testing.assert_allclose(pose[:3, 3], ours.camera(name).pos, **CLOSE)
        np.testing.assert_allclose(pose[:3, :3], turn.reshape(3, 3), atol=1e-6)
        half = camera.GetVerticalApertureAttr().Get() / 2 / camera.GetFocalLengthAttr().Get()
        np.testing.assert_allclose(2 * np.arctan(half), np.deg2rad(ours.camera(name).fovy[0]), **CLOSE)


def test_what_is_seen_is_what_is_described(assets: Assets, room: Room | None) -> None:
    """Every visible geom of the arm is one visible prim of the same colour at the same place in its link."""
    ours = scene.build_scene(ROBOT, TASK, "scalpel", room)
    stage = Usd.Stage.Open(str(assets.robot))
    bodies = {ours.body(body.name).id: body.name for body in ROBOT.bodies}
    seen = [i for i in range(ours.ngeom) if ours.geom_bodyid[i] in bodies]
    assert seen
    for number in seen:
        name = ours.geom(number).name or f"geom_{number}"
        prim = UsdGeom.Gprim(stage.GetPrimAtPath(f"/robot/{bodies[ours.geom_bodyid[number]]}/{name}"))
        at = Gf.Transform(prim.GetLocalTransformation()).GetTranslation()
        np.testing.assert_allclose(at, ours.geom_pos[number], atol=1e-7)
        color = np.array(prim.GetDisplayColorAttr().Get()[0])
        back = np.where(color <= 0.0031308, 12.92 * color, 1.055 * color ** (1 / 2.4) - 0.055)
        np.testing.assert_allclose(back, ours.geom_rgba[number, :3], atol=1e-5)


def test_parts_of_a_room_are_seen_and_labelled(assets: Assets, room: Room | None) -> None:
    """Each surface of a part is a mesh of as many triangles, where it stands, under the part's label."""
    ours = scene.build_scene(ROBOT, TASK, "scalpel", room)
    for part in room.parts if room else ():
        loose = assets.loose.get(part.body)
        stage = Usd.Stage.Open(str(loose.file if loose else assets.room))
        root = f"/{part.body if loose else 'room'}"
        for number, surface in enumerate(part.seen):
            prim = stage.GetPrimAtPath(f"{root}/{part.body}_{number}")
            mesh, geom = UsdGeom.Mesh(prim), ours.geom(f"{part.body}_{number}")
            assert len(mesh.GetFaceVertexCountsAttr().Get()) == len(surface.faces)
            placed = np.array(mesh.GetPointsAttr().Get()) @ np.array(mesh.GetLocalTransformation())[:3, :3]
            placed += np.array(mesh.GetLocalTransformation())[3, :3]
            at_m, turn = (
                (np.zeros(3), np.eye(3)) if loose else (part.part.at_m, rotation(part.part.turn_wxyz))
            )
            expected = surface.points @ np.transpose(turn) + at_m
            np.testing.assert_allclose(placed.min(axis=0), expected.min(axis=0), atol=2e-6)
            np.testing.assert_allclose(placed.max(axis=0), expected.max(axis=0), atol=2e-6)
            assert bool(geom.contype[0]) is False
            labelled = stage.GetPrimAtPath(root) if loose else prim
            assert list(UsdSemantics.LabelsAPI(labelled, "class").GetLabelsAttr().Get()) == [part.part.label]
