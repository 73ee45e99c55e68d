"""Builds the MuJoCo model of an operating room from a robot and a task profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mujoco
import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.geometry import Friction, Part
from sim2or.contracts.robot import Body, Pad, RobotProfile
from sim2or.contracts.room import Fitting
from sim2or.contracts.task import Camera, TaskProfile

from sim2or_sim.backends.mujoco import room as looks
from sim2or_sim.backends.mujoco.contact import GROUND, INSTRUMENT, PAD, touch

if TYPE_CHECKING:
    from sim2or_sim.rooms.room import Room

INSTRUMENT_BODY = "instrument"
PALM_BODIES = ("hand_open", "hand_closed")
WELD = "hand_weld"
GRASP_SITE = "grasp"
PAD_GEOMS = ("pad_fixed", "pad_moving")
TABLE_GEOMS_PREFIX, TRAY_GEOMS_PREFIX = "drape", "tray"
_SHAPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
    "ellipsoid": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
}
_HIDDEN_M = (0.0, 0.0, -5.0)


def build_robot(robot: RobotProfile) -> mujoco.MjModel:
    """The arm alone, for inverse kinematics."""
    spec = _empty(500.0)
    _add_robot(spec, robot)
    return spec.compile()


def build_scene(
    robot: RobotProfile, task: TaskProfile, instrument: str, room: Room | None = None
) -> mujoco.MjModel:
    """The whole operating room with one instrument; by default the built-in room."""
    return scene_spec(robot, task, instrument, room).compile()


def scene_spec(
    robot: RobotProfile, task: TaskProfile, instrument: str, room: Room | None = None
) -> mujoco.MjSpec:
    """The same before it is compiled, for who takes away or adds something."""
    keep = frozenset(Fitting) if room is None else room.keep
    spec = _empty(task.physics_hz)
    bodies = _add_robot(spec, robot)
    _add_servos(spec, robot)
    _add_pads(bodies, robot)
    for name, camera in task.cameras.items():
        _add_camera(bodies[camera.body], name, camera)
    for name, camera in task.views.items():
        _add_camera(bodies[camera.body], name, camera)
    looks.add_room(spec, keep)
    _add_table(spec, task, keep)
    _add_tray(spec, task)
    _add_instrument(spec, task, instrument)
    _add_hand(spec)
    if room is not None:
        from sim2or_sim.backends.mujoco.furniture import add_furniture  # trimesh and scipy: only when needed

        add_furniture(spec, room)
    return spec


def _empty(physics_hz: float) -> mujoco.MjSpec:
    """Options that grasped well. Source: reference figures of the prototype (elliptic cone, impratio 10)."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = 1.0 / physics_hz
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    visual = spec.visual
    visual.global_.offwidth, visual.global_.offheight = 1280, 960
    visual.headlight.ambient, visual.headlight.diffuse = [0.34] * 3, [0.36] * 3
    visual.headlight.specular = [0.1] * 3
    visual.quality.numslices, visual.quality.numstacks = 14, 7
    visual.map.znear, visual.map.zfar = 0.005, 30.0
    spec.stat.extent, spec.stat.center = 1.0, [0.2, 0.0, 0.1]
    looks.add_materials(spec)
    return spec


def _add_robot(spec: mujoco.MjSpec, robot: RobotProfile) -> dict[str, mujoco.MjsBody]:
    joints = {joint.name: joint for joint in robot.joints}
    bodies: dict[str, mujoco.MjsBody] = {"": spec.worldbody}
    for body in robot.bodies:
        made = bodies[body.parent].add_body(name=body.name, pos=body.position_m, quat=body.quaternion_wxyz)
        _set_inertia(made, body)
        for part in body.parts:
            add_part(made, part)
        if body.joint:
            joint = joints[body.joint]
            made.add_joint(
                name=joint.name,
                type=mujoco.mjtJoint.mjJNT_HINGE,
                axis=[0, 0, 1],
                limited=True,
                range=[joint.lower_rad, joint.upper_rad],
                damping=_polynomial(robot.servo.joint_damping_nmsprad),
                frictionloss=robot.servo.joint_friction_nm,
                armature=robot.servo.armature_kgm2,
            )
        bodies[body.name] = made
    bodies[robot.tool.body].add_site(name=GRASP_SITE, pos=robot.tool.grasp_m, size=[0.002] * 3, group=5)
    return bodies


def _polynomial(damping: float) -> list[float]:
    """Joint damping as this MuJoCo takes it: linear term first."""
    return [damping, 0.0, 0.0]


def _set_inertia(made: mujoco.MjsBody, body: Body) -> None:
    made.mass = body.mass_kg
    made.ipos = body.center_of_mass_m
    made.fullinertia = body.inertia_kgm2
    made.explicitinertial = True


def _add_servos(spec: mujoco.MjSpec, robot: RobotProfile) -> None:
    servo = robot.servo
    moving = next(body for body in robot.bodies if body.name == robot.tool.pads[1].body)
    for joint in robot.joints:
        torque_nm = robot.tool.torque_max_nm if joint.name == moving.joint else servo.torque_max_nm
        actuator = spec.add_actuator(name=joint.name, target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.gaintype, actuator.biastype = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
        actuator.gainprm[0] = servo.stiffness_nmprad
        actuator.biasprm[1], actuator.biasprm[2] = -servo.stiffness_nmprad, -servo.damping_nmsprad
        actuator.forcelimited, actuator.ctrllimited = True, True
        actuator.forcerange = [-torque_nm, torque_nm]
        actuator.ctrlrange = [joint.lower_rad, joint.upper_rad]


def _add_pads(bodies: dict[str, mujoco.MjsBody], robot: RobotProfile) -> None:
    for name, pad in zip(PAD_GEOMS, robot.tool.pads, strict=True):
        _add_pad(bodies[pad.body], name, pad, robot.tool.pad_friction)


def _add_pad(body: mujoco.MjsBody, name: str, pad: Pad, friction: Friction) -> None:
    geom = body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=pad.at_m,
        size=pad.half_m,
        quat=euler_quat(pad.euler_rad),
        rgba=[0.15, 0.15, 0.16, 1.0],
    )
    touch(geom, PAD, INSTRUMENT | GROUND, friction)


def add_part(body: mujoco.MjsBody, part: Part, name: str = "") -> mujoco.MjsGeom:
    """Adds a primitive that is only seen."""
    size = [*part.half_m, 0.0, 0.0][:3]
    geom = body.add_geom(
        type=_SHAPES[part.shape],
        pos=part.at_m,
        size=size,
        quat=euler_quat(part.euler_rad),
        rgba=[*part.color, 1.0],
        contype=0,
        conaffinity=0,
        mass=0.0,
    )
    geom.material = looks.material(part.gloss)
    geom.group = 0 if part.visible else looks.HIDDEN
    if name:
        geom.name = name
    return geom


def _add_camera(body: mujoco.MjsBody, name: str, camera: Camera) -> None:
    body.add_camera(
        name=name,
        pos=camera.at_m,
        quat=axes_quat(camera.x_axis, camera.y_axis),
        fovy=float(np.rad2deg(camera.fovy_rad)),
    )


def _add_table(spec: mujoco.MjSpec, task: TaskProfile, keep: frozenset[Fitting]) -> None:
    table = task.table
    (x, y, top), (half_x, half_y) = table.center_m, table.half_m
    geom = spec.worldbody.add_geom(
        name=f"{TABLE_GEOMS_PREFIX}_top",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[x, y, top - 0.02],
        size=[half_x, half_y, 0.02],
        rgba=[*table.color, 1.0],
    )
    touch(geom, GROUND, PAD | INSTRUMENT, task.tray.friction)
    if Fitting.DRAPE in keep:
        looks.add_drape(spec, table)


def _add_tray(spec: mujoco.MjSpec, task: TaskProfile) -> None:
    tray = task.tray
    x, y, top = tray.center_m
    half_x, half_y = tray.half_m
    rim, rim_z = tray.rim_half_m, top + tray.rim_height_m / 2
    plates = [([x, y, top / 2], [half_x, half_y, top / 2])]
    for sign in (-1, 1):
        half_rim = tray.rim_height_m / 2 + top / 2
        plates.append(([x + sign * (half_x + rim), y, rim_z - top / 2], [rim, half_y + 2 * rim, half_rim]))
        plates.append(([x, y + sign * (half_y + rim), rim_z - top / 2], [half_x, rim, half_rim]))
    for i, (at, half) in enumerate(plates):
        geom = spec.worldbody.add_geom(
            name=f"{TRAY_GEOMS_PREFIX}_{i}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=at,
            size=half,
            rgba=[*tray.color, 1.0],
            material=looks.material(0.8),
        )
        touch(geom, GROUND, PAD | INSTRUMENT, tray.friction)


def _add_instrument(spec: mujoco.MjSpec, task: TaskProfile, name: str) -> None:
    """The instrument: looks and contacts from its parts; mass spread over the contact parts by volume."""
    instrument = task.instruments[name]
    body = spec.worldbody.add_body(name=INSTRUMENT_BODY, pos=[0, 0, 1])
    body.add_freejoint(name=INSTRUMENT_BODY)
    solid = [part for part in instrument.parts if part.contact]
    volumes = [float(np.prod([*part.half_m, *([part.half_m[0]] * (3 - len(part.half_m)))])) for part in solid]
    for part in instrument.parts:
        geom = add_part(body, part)
        if part.contact:
            touch(geom, INSTRUMENT, PAD | GROUND, instrument.friction)
            geom.mass = instrument.mass_kg * volumes[solid.index(part)] / sum(volumes)


def _add_hand(spec: mujoco.MjSpec) -> None:
    """Two looks of one hand, open and closed; the one in use follows the palm, the other is out of sight."""
    for name in PALM_BODIES:
        body = spec.worldbody.add_body(name=name, mocap=True, pos=_HIDDEN_M)
        for part in looks.hand_parts(closed=name.endswith("closed")):
            add_part(body, part)
    weld = spec.add_equality(name=WELD, type=mujoco.mjtEq.mjEQ_WELD, objtype=mujoco.mjtObj.mjOBJ_BODY)
    weld.name1, weld.name2, weld.active = PALM_BODIES[1], INSTRUMENT_BODY, False


def axes_quat(x_axis: Sequence[float], y_axis: Sequence[float]) -> NDArray[np.float64]:
    """Quaternion wxyz of a frame from its x axis and a y axis that need not be exactly perpendicular."""
    x = np.asarray(x_axis, dtype=float)
    x = x / np.linalg.norm(x)
    y = np.asarray(y_axis, dtype=float)
    y = y - x * (x @ y)
    y = y / np.linalg.norm(y)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([x, y, np.cross(x, y)]).ravel())
    return quat


def euler_quat(euler_rad: Sequence[float]) -> NDArray[np.float64]:
    """Quaternion wxyz of turns about x, then the new y, then the new z [rad]."""
    quat = np.empty(4)
    mujoco.mju_euler2Quat(quat, np.asarray(euler_rad, dtype=float), "xyz")
    return quat
