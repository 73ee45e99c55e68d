"""Writes the USD of an operating room from the compiled MuJoCo models: one description, two engines.

Lengths are metres, limits of joints degrees, as USD has them. What USD itself cannot say about contact and
joint friction stands in attributes of MuJoCo's USD schema (``mjc:…``): Newton reads them, PhysX does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray
from pxr import Gf, Sdf, Usd, UsdGeom, UsdPhysics, UsdShade
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from sim2or.errors import ConfigError

from sim2or_sim.backends.mujoco import scene
from sim2or_sim.backends.mujoco.room import HIDDEN

_APERTURE = 20.0  # vertical, in tenths of a stage unit; only its ratio to the focal length matters
_SLICES, _STACKS = 20, 10
_BOX, _CYLINDER, _CAPSULE, _ELLIPSOID = (
    int(getattr(mujoco.mjtGeom, f"mjGEOM_{name}")) for name in ("BOX", "CYLINDER", "CAPSULE", "ELLIPSOID")
)

Solid = tuple[NDArray[np.float64], list[list[int]]]
"""Points, shape (n, 3), and faces as indices of points."""


@dataclass(frozen=True)
class Assets:
    """The USD files of a robot and a task.

    Attributes:
        robot: The arm with its cameras; links are children of the default prim, joints of its ``joints``.
        room: Table, tray, floor, walls and lamps: what never moves.
        hands: The surgeon's hand, open and closed, by body name.
        instruments: By name.
    """

    robot: Path
    room: Path
    hands: dict[str, Path]
    instruments: dict[str, Path]


def write_assets(robot: RobotProfile, task: TaskProfile, directory: Path) -> Assets:
    """Writes one file for each thing that moves by itself, and one for what stands still.

    Args:
        robot: The arm.
        task: The task.
        directory: Where the files go; it exists.
    """
    models = {name: scene.build_scene(robot, task, name) for name in task.instruments}
    model = next(iter(models.values()))
    aspect = task.images.width_px / task.images.height_px
    return Assets(
        robot=_write_robot(model, robot, aspect, directory / "robot.usda"),
        room=_write_room(model, directory / "room.usda"),
        hands={name: _write_body(model, name, directory / f"{name}.usda") for name in scene.PALM_BODIES},
        instruments={
            name: _write_body(built, scene.INSTRUMENT_BODY, directory / f"{name}.usda")
            for name, built in models.items()
        },
    )


def _write_robot(model: mujoco.MjModel, robot: RobotProfile, aspect: float, path: Path) -> Path:
    stage, root = _open(path, "robot")
    UsdPhysics.ArticulationRootAPI.Apply(root.GetPrim())
    _set(root.GetPrim(), "newton:selfCollisionEnabled", Sdf.ValueTypeNames.Bool, False)
    _set(root.GetPrim(), "physxArticulation:enabledSelfCollisions", Sdf.ValueTypeNames.Bool, False)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    links = {body.name: root.GetPath().AppendChild(body.name) for body in robot.bodies}
    for body in robot.bodies:
        number = model.body(body.name).id
        link = UsdGeom.Xform.Define(stage, links[body.name])
        _place(link, data.xpos[number], data.xquat[number])
        _add_body(stage, link, model, number)
    for number in range(model.ncam):
        _add_camera(stage, links[model.body(model.cam_bodyid[number]).name], model, number, aspect)
    joints = UsdGeom.Scope.Define(stage, root.GetPath().AppendChild("joints"))
    for body in robot.bodies:
        number = model.body(body.name).id
        target = joints.GetPath().AppendChild(body.joint or f"{body.name}_fixed")
        if body.joint:
            _add_hinge(stage, target, model, number, links[body.parent], links[body.name])
        else:
            fixed = UsdPhysics.FixedJoint.Define(stage, target)
            _connect(fixed, model, number, links.get(body.parent), links[body.name])
    stage.Save()
    return path


def _write_room(model: mujoco.MjModel, path: Path) -> Path:
    stage, root = _open(path, "room")
    _add_geoms(stage, root, model, 0)
    stage.Save()
    return path


def _write_body(model: mujoco.MjModel, name: str, path: Path) -> Path:
    """A body of its own; one that MuJoCo moves as a mocap body is kinematic."""
    stage, root = _open(path, name)
    number = model.body(name).id
    body = _add_body(stage, root, model, number)
    body.CreateKinematicEnabledAttr(bool(model.body_mocapid[number] >= 0))
    stage.Save()
    return path


def _open(path: Path, name: str) -> tuple[Usd.Stage, UsdGeom.Xform]:
    path.unlink(missing_ok=True)
    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    UsdPhysics.SetStageKilogramsPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, f"/{name}")
    stage.SetDefaultPrim(root.GetPrim())
    return stage, root


def _add_body(
    stage: Usd.Stage, link: UsdGeom.Xform, model: mujoco.MjModel, number: int
) -> UsdPhysics.RigidBodyAPI:
    """Mass, inertia and geoms of a body; a body without mass gets a token one, as it never moves freely."""
    body = UsdPhysics.RigidBodyAPI.Apply(link.GetPrim())
    mass = UsdPhysics.MassAPI.Apply(link.GetPrim())
    inertia = model.body_inertia[number]
    mass.CreateMassAttr(float(model.body_mass[number]) or 1.0)
    mass.CreateCenterOfMassAttr(_vector(model.body_ipos[number]))
    mass.CreateDiagonalInertiaAttr(_vector(inertia if inertia.any() else np.full(3, 1e-3)))
    mass.CreatePrincipalAxesAttr(Gf.Quatf(*map(float, model.body_iquat[number])))
    _add_geoms(stage, link, model, number)
    return body


def _add_geoms(stage: Usd.Stage, parent: UsdGeom.Xform, model: mujoco.MjModel, body: int) -> None:
    """What is seen and what touches are prims of their own, so that neither has to suit the other.

    On a link that carries a camera what is seen is a mesh: the renderer leaves out the backs of meshes alone,
    and a camera's offset may push it into its own housing.
    """
    carries_camera = body > 0 and body in model.cam_bodyid
    for number in np.flatnonzero(model.geom_bodyid == body):
        geom = model.geom(number)
        path = parent.GetPath().AppendChild(geom.name or f"geom_{number}")
        if geom.group[0] != HIDDEN or (body and model.body_mocapid[body] >= 0):
            add = _add_mesh if carries_camera else _add_shape
            shape = add(stage, path, model.geom_type[number], model.geom_size[number])
            _place(shape, model.geom_pos[number], model.geom_quat[number])
            shape.CreateDisplayColorAttr([_vector(linear(_color(model, int(number))))])
        if geom.contype[0] or geom.conaffinity[0]:
            _add_collider(stage, path.ReplaceName(f"{path.name}_touch"), model, number)


def _color(model: mujoco.MjModel, number: int) -> NDArray[np.float64]:
    """The colour of a geom; a texture is given by its mean."""
    color = np.array(model.geom_rgba[number, :3], dtype=np.float64)
    material = model.geom_matid[number]
    texture = model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB] if material >= 0 else -1
    if texture >= 0:
        start, channels = model.tex_adr[texture], model.tex_nchannel[texture]
        count = model.tex_height[texture] * model.tex_width[texture] * channels
        color *= model.tex_data[start : start + count].reshape(-1, channels)[:, :3].mean(axis=0) / 255.0
    return color


def _add_collider(stage: Usd.Stage, path: Sdf.Path, model: mujoco.MjModel, number: int) -> None:
    shape = _add_shape(stage, path, model.geom_type[number], model.geom_size[number])
    _place(shape, model.geom_pos[number], model.geom_quat[number])
    shape.CreatePurposeAttr(UsdGeom.Tokens.guide)
    shape.CreateVisibilityAttr(UsdGeom.Tokens.invisible)
    prim = shape.GetPrim()
    UsdPhysics.CollisionAPI.Apply(prim)
    _bind_friction(stage, prim, model.geom_friction[number])
    kinds = Sdf.ValueTypeNames
    for name, kind, value in (
        ("contype", kinds.Int, int(model.geom_contype[number])),
        ("conaffinity", kinds.Int, int(model.geom_conaffinity[number])),
        ("condim", kinds.Int, int(model.geom_condim[number])),
        ("solref", kinds.DoubleArray, model.geom_solref[number].tolist()),
        ("solimp", kinds.DoubleArray, model.geom_solimp[number].tolist()),
        ("margin", kinds.Double, float(model.geom_margin[number])),
        ("gap", kinds.Double, float(model.geom_gap[number])),
    ):
        _set(prim, f"mjc:{name}", kind, value)


def _add_shape(stage: Usd.Stage, path: Sdf.Path, kind: int, size: NDArray[np.float64]) -> UsdGeom.Gprim:
    """A primitive of MuJoCo's half sizes; what USD has none for becomes a mesh."""
    if kind == _BOX:
        cube = UsdGeom.Cube.Define(stage, path)
        cube.CreateSizeAttr(2.0)
        cube.AddScaleOp().Set(_vector(size))
        return cube
    if kind in (_CYLINDER, _CAPSULE):
        made = (UsdGeom.Cylinder if kind == _CYLINDER else UsdGeom.Capsule).Define(stage, path)
        made.CreateAxisAttr(UsdGeom.Tokens.z)
        made.CreateRadiusAttr(float(size[0]))
        made.CreateHeightAttr(2.0 * float(size[1]))
        return made
    return _add_mesh(stage, path, kind, size)


def _add_mesh(stage: Usd.Stage, path: Sdf.Path, kind: int, size: NDArray[np.float64]) -> UsdGeom.Gprim:
    """A closed mesh of the same half sizes; capsules, round at both ends, stay primitives."""
    if kind == _CAPSULE:
        return _add_shape(stage, path, kind, size)
    if kind not in _UNIT:
        raise ConfigError(
            f"geom {path.name}: type {kind} has no USD shape; valid: box, cylinder, capsule, ellipsoid"
        )
    points, faces = _UNIT[kind]()
    half = np.array([size[0], size[0], size[1]]) if kind == _CYLINDER else size
    mesh = UsdGeom.Mesh.Define(stage, path)
    mesh.CreatePointsAttr([_vector(point * half) for point in points])
    mesh.CreateFaceVertexCountsAttr([len(face) for face in faces])
    mesh.CreateFaceVertexIndicesAttr([index for face in faces for index in face])
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    return mesh


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


def _sphere() -> Solid:
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


_UNIT: dict[int, Callable[[], Solid]] = {_BOX: _cube, _CYLINDER: _tube, _ELLIPSOID: _sphere}
"""Meshes of half size one, faces counter-clockwise seen from outside."""


def _bind_friction(stage: Usd.Stage, prim: Usd.Prim, friction: Sequence[float]) -> None:
    """One physics material for each prim, so that frictions can be varied one by one."""
    material = UsdShade.Material.Define(stage, prim.GetPath().AppendChild("friction"))
    physics = UsdPhysics.MaterialAPI.Apply(material.GetPrim())
    slide, spin_m, roll_m = map(float, friction)
    physics.CreateStaticFrictionAttr(slide)
    physics.CreateDynamicFrictionAttr(slide)
    physics.CreateRestitutionAttr(0.0)
    _set(material.GetPrim(), "mjc:torsionalfriction", Sdf.ValueTypeNames.Double, spin_m)
    _set(material.GetPrim(), "mjc:rollingfriction", Sdf.ValueTypeNames.Double, roll_m)
    binding = UsdShade.MaterialBindingAPI.Apply(prim)
    binding.Bind(material, UsdShade.Tokens.weakerThanDescendants, "physics")


def _add_hinge(
    stage: Usd.Stage, path: Sdf.Path, model: mujoco.MjModel, body: int, parent: Sdf.Path, child: Sdf.Path
) -> None:
    """A hinge about the child's z axis with its servo."""
    joint = model.joint(path.name)
    hinge = UsdPhysics.RevoluteJoint.Define(stage, path)
    _connect(hinge, model, body, parent, child)
    hinge.CreateAxisAttr(UsdGeom.Tokens.z)
    low_deg, high_deg = np.rad2deg(joint.range)
    hinge.CreateLowerLimitAttr(float(low_deg))
    hinge.CreateUpperLimitAttr(float(high_deg))
    prim, actuator = hinge.GetPrim(), model.actuator(path.name)
    drive = UsdPhysics.DriveAPI.Apply(prim, UsdPhysics.Tokens.angular)
    drive.CreateTypeAttr(UsdPhysics.Tokens.force)
    drive.CreateStiffnessAttr(float(np.deg2rad(actuator.gainprm[0])))  # per degree
    drive.CreateDampingAttr(float(np.deg2rad(-actuator.biasprm[2])))
    drive.CreateMaxForceAttr(float(actuator.forcerange[1]))
    for name, value in (
        ("mjc:armature", joint.armature[0]),
        ("mjc:damping", joint.damping[0]),
        ("mjc:frictionloss", joint.frictionloss[0]),
        ("physxJoint:armature", joint.armature[0]),
    ):
        _set(prim, name, Sdf.ValueTypeNames.Double, float(value))


def _connect(
    joint: UsdPhysics.Joint, model: mujoco.MjModel, body: int, parent: Sdf.Path | None, child: Sdf.Path
) -> None:
    """Joins child to parent, or to the world, where the child stands in it at joint zero."""
    if parent is not None:
        joint.CreateBody0Rel().SetTargets([parent])
    joint.CreateBody1Rel().SetTargets([child])
    joint.CreateLocalPos0Attr(_vector(model.body_pos[body]))
    joint.CreateLocalRot0Attr(Gf.Quatf(*map(float, model.body_quat[body])))
    joint.CreateLocalPos1Attr(Gf.Vec3f(0.0))
    joint.CreateLocalRot1Attr(Gf.Quatf(1.0))


def _add_camera(stage: Usd.Stage, link: Sdf.Path, model: mujoco.MjModel, number: int, aspect: float) -> None:
    """A pinhole; USD's camera looks along its −z with y up, as MuJoCo's does."""
    camera = UsdGeom.Camera.Define(stage, link.AppendChild(model.camera(number).name))
    _place(camera, model.cam_pos[number], model.cam_quat[number])
    half_fov = np.deg2rad(model.cam_fovy[number]) / 2
    camera.CreateFocalLengthAttr(float(_APERTURE / 2 / np.tan(half_fov)))
    camera.CreateVerticalApertureAttr(_APERTURE)
    camera.CreateHorizontalApertureAttr(_APERTURE * aspect)
    visual = model.vis.map
    camera.CreateClippingRangeAttr(Gf.Vec2f(float(visual.znear), float(visual.zfar)))


def _place(prim: UsdGeom.Xformable, at_m: Iterable[float], turn_wxyz: Iterable[float]) -> None:
    """Position and orientation before any scale the prim already has."""
    scales = prim.GetOrderedXformOps()
    place = prim.AddTranslateOp(UsdGeom.XformOp.PrecisionDouble)
    place.Set(Gf.Vec3d(*map(float, at_m)))
    turn = prim.AddOrientOp(UsdGeom.XformOp.PrecisionDouble)
    turn.Set(Gf.Quatd(*map(float, turn_wxyz)))
    prim.SetXformOpOrder([place, turn, *scales])


def _set(prim: Usd.Prim, name: str, kind: Sdf.ValueTypeName, value: object) -> None:
    prim.CreateAttribute(name, kind, custom=True).Set(value)


def _vector(values: Iterable[float]) -> Gf.Vec3f:
    return Gf.Vec3f(*map(float, values))


def linear(color: NDArray[np.floating]) -> NDArray[np.float64]:
    """Linear intensities of a colour as it is seen (sRGB). Source: IEC 61966-2-1."""
    seen = np.asarray(color, dtype=np.float64)
    return np.where(seen <= 0.04045, seen / 12.92, ((seen + 0.055) / 1.055) ** 2.4)
