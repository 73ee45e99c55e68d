"""Writes the USD of an operating room from the compiled MuJoCo models: one description, two engines.

Lengths are metres, limits of joints degrees, as USD has them. What USD itself cannot say about contact and
joint friction stands in attributes of MuJoCo's USD schema (``mjc:…``), which Newton reads; PhysX reads its
own (``physx…:…``), as far as it has the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray
from pxr import Gf, Sdf, Usd, UsdGeom, UsdPhysics, UsdSemantics, UsdShade, Vt
from sim2or.contracts.geometry import Quaternion, Vector
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile

from sim2or_sim.backends.mujoco import mesh, scene
from sim2or_sim.backends.mujoco.room import HIDDEN
from sim2or_sim.rooms.room import Furniture, Room

_APERTURE = 20.0  # vertical, in tenths of a stage unit; only its ratio to the focal length matters
FIXED = 1e-6
"""A trace of restitution by which a collider is known whose friction no scenario varies.

PhysX tells the materials of a body's colliders in an order that is not the stage's, without their names.
"""

_AWAKE = {"sleepThreshold": 0.0, "stabilizationThreshold": 0.0}
"""PhysX would let a body that hardly moves sleep; MuJoCo's never do."""


@dataclass(frozen=True)
class LoosePart:
    """A part that moves when it is pushed, and where it stands at first.

    Attributes:
        file: Its USD.
        at_m: In the robot's base frame [m].
        turn_wxyz: Unit quaternion.
    """

    file: Path
    at_m: Vector
    turn_wxyz: Quaternion


@dataclass(frozen=True)
class Assets:
    """The USD files of a robot and a task.

    Attributes:
        robot: The arm with its cameras; links are children of the default prim, joints of its ``joints``.
        room: Table, tray, floor, walls and lamps: what never moves.
        hands: The surgeon's hand, open and closed, by body name.
        instruments: By name.
        pads: Where the colliders of the fixed and the moving pad are below the robot.
        loose: Parts of an own room that move when they are pushed, by body name.
    """

    robot: Path
    room: Path
    hands: dict[str, Path]
    instruments: dict[str, Path]
    pads: tuple[str, str]
    loose: dict[str, LoosePart] = field(default_factory=dict)


def write_assets(robot: RobotProfile, task: TaskProfile, directory: Path, room: Room | None = None) -> Assets:
    """Writes one file for each thing that moves by itself, and one for what stands still.

    Args:
        robot: The arm.
        task: The task.
        directory: Where the files go; it exists.
        room: One's own operating room instead of the built-in one.
    """
    models = {name: scene.build_scene(robot, task, name, room) for name in task.instruments}
    model = next(iter(models.values()))
    aspect = task.images.width_px / task.images.height_px
    return Assets(
        robot=_write_robot(model, robot, aspect, directory / "robot.usda"),
        room=_write_room(model, directory / "room.usda", room),
        hands={name: _write_body(model, name, directory / f"{name}.usda") for name in scene.PALM_BODIES},
        instruments={
            name: _write_body(built, scene.INSTRUMENT_BODY, directory / f"{name}.usda")
            for name, built in models.items()
        },
        pads=(_pad(robot, 0), _pad(robot, 1)),
        loose={part.body: _write_loose(model, part, directory) for part in (room.loose if room else ())},
    )


def _pad(robot: RobotProfile, side: int) -> str:
    return f"{robot.tool.pads[side].body}/{scene.PAD_GEOMS[side]}_touch"


def _write_robot(model: mujoco.MjModel, robot: RobotProfile, aspect: float, path: Path) -> Path:
    stage, root = _open(path, "robot")
    UsdPhysics.ArticulationRootAPI.Apply(root.GetPrim())
    _set(root.GetPrim(), "newton:selfCollisionEnabled", Sdf.ValueTypeNames.Bool, False)
    _set_physx(root.GetPrim(), "PhysxArticulationAPI", {"enabledSelfCollisions": False, **_AWAKE})
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


def _write_room(model: mujoco.MjModel, path: Path, room: Room | None) -> Path:
    """What stands still: geoms of the world, labelled where they belong to a part of an own room."""
    stage, root = _open(path, "room")
    _add_geoms(stage, root, model, 0)
    for part in room.fixed if room else ():
        for prim in root.GetPrim().GetChildren():
            if prim.GetName().startswith(f"{part.body}_"):
                _label(prim, part.part.label)
    stage.Save()
    return path


def _write_loose(model: mujoco.MjModel, part: Furniture, directory: Path) -> LoosePart:
    file = _write_body(model, part.body, directory / f"{part.body}.usda", part.part.label)
    return LoosePart(file, part.part.at_m, part.part.turn_wxyz)


def _write_body(model: mujoco.MjModel, name: str, path: Path, label: str = "") -> Path:
    """A body of its own; one that MuJoCo moves as a mocap body is kinematic."""
    stage, root = _open(path, name)
    number = model.body(name).id
    body = _add_body(stage, root, model, number)
    body.CreateKinematicEnabledAttr(bool(model.body_mocapid[number] >= 0))
    if label:
        _label(root.GetPrim(), label)
    stage.Save()
    return path


def _label(prim: Usd.Prim, label: str) -> None:
    """What a prim is, for segmentation."""
    UsdSemantics.LabelsAPI.Apply(prim, "class").CreateLabelsAttr([label])


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
    _set_physx(link.GetPrim(), "PhysxRigidBodyAPI", {"angularDamping": 0.0, **_AWAKE})
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
            shape = add(stage, path, model, int(number))
            _place(shape, model.geom_pos[number], model.geom_quat[number])
            shape.CreateDisplayColorAttr([_vector(linear(mesh.color(model, int(number))))])
        if geom.contype[0] or geom.conaffinity[0]:
            _add_collider(stage, path.ReplaceName(f"{path.name}_touch"), model, int(number))


def _add_collider(stage: Usd.Stage, path: Sdf.Path, model: mujoco.MjModel, number: int) -> None:
    shape = _add_shape(stage, path, model, number)
    _place(shape, model.geom_pos[number], model.geom_quat[number])
    shape.CreatePurposeAttr(UsdGeom.Tokens.guide)
    shape.CreateVisibilityAttr(UsdGeom.Tokens.invisible)
    prim = shape.GetPrim()
    UsdPhysics.CollisionAPI.Apply(prim)
    if prim.IsA(UsdGeom.Mesh):
        UsdPhysics.MeshCollisionAPI.Apply(prim).CreateApproximationAttr(UsdPhysics.Tokens.convexHull)
    varied = model.geom_bodyid[number] > 0 or path.name.startswith(
        (scene.TABLE_GEOMS_PREFIX, scene.TRAY_GEOMS_PREFIX)
    )
    _bind_friction(stage, prim, model.geom_friction[number], 0.0 if varied else FIXED)
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


def _add_shape(stage: Usd.Stage, path: Sdf.Path, model: mujoco.MjModel, number: int) -> UsdGeom.Gprim:
    """A geom as USD's primitive of the same size; what USD has none for becomes a mesh."""
    kind, size = int(model.geom_type[number]), model.geom_size[number]
    if kind == mesh.BOX:
        cube = UsdGeom.Cube.Define(stage, path)
        cube.CreateSizeAttr(2.0)
        cube.AddScaleOp().Set(_vector(size))
        return cube
    if kind in (mesh.CYLINDER, mesh.CAPSULE):
        made = (UsdGeom.Cylinder if kind == mesh.CYLINDER else UsdGeom.Capsule).Define(stage, path)
        made.CreateAxisAttr(UsdGeom.Tokens.z)
        made.CreateRadiusAttr(float(size[0]))
        made.CreateHeightAttr(2.0 * float(size[1]))
        return made
    return _add_mesh(stage, path, model, number)


def _add_mesh(stage: Usd.Stage, path: Sdf.Path, model: mujoco.MjModel, number: int) -> UsdGeom.Gprim:
    """A geom as a mesh; capsules, round at both ends, stay primitives."""
    if int(model.geom_type[number]) == mesh.CAPSULE:
        return _add_shape(stage, path, model, number)
    points, faces = mesh.solid(model, number, f"geom {path.name}")
    made = UsdGeom.Mesh.Define(stage, path)
    made.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points.astype(np.float32)))
    made.CreateFaceVertexCountsAttr([len(face) for face in faces])
    made.CreateFaceVertexIndicesAttr([index for face in faces for index in face])
    made.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    return made


def _bind_friction(stage: Usd.Stage, prim: Usd.Prim, friction: Sequence[float], restitution: float) -> None:
    """One physics material for each prim, so that frictions can be varied one by one."""
    material = UsdShade.Material.Define(stage, prim.GetPath().AppendChild("friction"))
    physics = UsdPhysics.MaterialAPI.Apply(material.GetPrim())
    slide, spin_m, roll_m = map(float, friction)
    physics.CreateStaticFrictionAttr(slide)
    physics.CreateDynamicFrictionAttr(slide)
    physics.CreateRestitutionAttr(restitution)
    _set(material.GetPrim(), "mjc:torsionalfriction", Sdf.ValueTypeNames.Double, spin_m)
    _set(material.GetPrim(), "mjc:rollingfriction", Sdf.ValueTypeNames.Double, roll_m)
    _set_physx(material.GetPrim(), "PhysxMaterialAPI", {"frictionCombineMode": "max"})  # as in MuJoCo
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
    friction_nm = float(joint.frictionloss[0])
    axis = {
        "armature": float(joint.armature[0]),
        "staticFrictionEffort": friction_nm,
        "dynamicFrictionEffort": friction_nm,
        "viscousFrictionCoefficient": float(np.deg2rad(joint.damping[0])),  # per degree
    }
    _set_physx(prim, "PhysxJointAxisAPI:angular", axis)


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


def _set_physx(prim: Usd.Prim, schema: str, values: Mapping[str, bool | float | str]) -> None:
    """Applies one of PhysX's schemas, which this USD may not know, with what differs from its defaults."""
    kinds = {bool: Sdf.ValueTypeNames.Bool, float: Sdf.ValueTypeNames.Float, str: Sdf.ValueTypeNames.Token}
    prim.AddAppliedSchema(schema)
    name = schema.replace("API", "")
    space = name[0].lower() + name[1:]
    for key, value in values.items():
        _set(prim, f"{space}:{key}", kinds[type(value)], value)


def _vector(values: Iterable[float]) -> Gf.Vec3f:
    return Gf.Vec3f(*map(float, values))


def linear(color: NDArray[np.floating]) -> NDArray[np.float64]:
    """Linear intensities of a colour as it is seen (sRGB). Source: IEC 61966-2-1."""
    seen = np.asarray(color, dtype=np.float64)
    return np.where(seen <= 0.04045, seen / 12.92, ((seen + 0.055) / 1.055) ** 2.4)
