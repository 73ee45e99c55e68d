"""The USD tells PhysX what MuJoCo's model says; without PhysX, from the files alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pxr import Usd, UsdPhysics
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or_sim.backends.isaaclab.usd import Assets, write_assets
from sim2or_sim.backends.mujoco.scene import TABLE_GEOMS_PREFIX, TRAY_GEOMS_PREFIX

ROBOT, TASK = load_robot("so101"), load_task("handover")

pytestmark = pytest.mark.isaac


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    return write_assets(ROBOT, TASK, tmp_path_factory.mktemp("usd"))


def _stage(file: Path) -> Usd.Stage:
    return Usd.Stage.Open(str(file))


def test_joints_carry_armature_and_friction(assets: Assets) -> None:
    """Each hinge has the profile's armature, dry and viscous friction (per degree) in PhysX's words."""
    stage, servo = _stage(assets.robot), ROBOT.servo
    expected = {
        "armature": servo.armature_kgm2,
        "staticFrictionEffort": servo.joint_friction_nm,
        "dynamicFrictionEffort": servo.joint_friction_nm,
        "viscousFrictionCoefficient": np.deg2rad(servo.joint_damping_nmsprad),
    }
    for joint in ROBOT.joints:
        prim = stage.GetPrimAtPath(f"/robot/joints/{joint.name}")
        assert "PhysxJointAxisAPI:angular" in prim.GetPrimTypeInfo().GetAppliedAPISchemas()
        for name, value in expected.items():
            found = prim.GetAttribute(f"physxJointAxis:angular:{name}").Get()
            np.testing.assert_allclose(found, value, rtol=1e-6, err_msg=f"{joint.name} {name}")


def test_links_of_the_arm_do_not_touch_each_other_and_nothing_sleeps(assets: Assets) -> None:
    """Self-collision is off and the threshold below which PhysX would stop computing is zero."""
    stage = _stage(assets.robot)
    root = stage.GetPrimAtPath("/robot")
    assert root.GetAttribute("physxArticulation:enabledSelfCollisions").Get() is False
    assert root.GetAttribute("physxArticulation:sleepThreshold").Get() == 0.0
    for name, file in assets.instruments.items():
        stage = _stage(file)
        body = stage.GetDefaultPrim()
        assert body.GetAttribute("physxRigidBody:sleepThreshold").Get() == 0.0, name
        assert body.GetAttribute("physxRigidBody:angularDamping").Get() == 0.0, name


def test_frictions_combine_as_in_mujoco_and_the_table_is_known(assets: Assets) -> None:
    """The larger friction of a pair counts; in the room only table and tray bear no trace of restitution."""
    room = _stage(assets.room)
    colliders = [prim for prim in room.Traverse() if prim.HasAPI(UsdPhysics.CollisionAPI)]
    assert colliders
    for prim in colliders:
        material = prim.GetChild("friction")
        assert material.GetAttribute("physxMaterial:frictionCombineMode").Get() == "max"
        varied = UsdPhysics.MaterialAPI(material).GetRestitutionAttr().Get() == 0.0
        assert varied == prim.GetName().startswith((TABLE_GEOMS_PREFIX, TRAY_GEOMS_PREFIX)), prim.GetName()


def test_the_pads_are_where_the_assets_say(assets: Assets) -> None:
    """The paths by which contacts of the pads are asked for are colliders of the arm."""
    stage = _stage(assets.robot)
    for pad in assets.pads:
        assert stage.GetPrimAtPath(f"/robot/{pad}").HasAPI(UsdPhysics.CollisionAPI), pad
