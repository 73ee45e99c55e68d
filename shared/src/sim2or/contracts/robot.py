"""Robot profiles: one description of an arm for every engine, driver and safety kernel."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim2or.contracts.geometry import Friction, Part, Positive, Quaternion, Vector
from sim2or.contracts.profile import Profile, load_profile
from sim2or.messages.message import Spec


class Channel(Spec):
    """How LeRobot names and measures a joint.

    Attributes:
        key: The feature's name, for example ``"shoulder_pan.pos"``.
        unit: ``degrees`` about mid-range, or ``percent``: 0 at the lower end of the range, 100 at the upper.
    """

    key: str
    unit: Literal["degrees", "percent"]


class Joint(Spec):
    """A revolute joint.

    Attributes:
        name: Its name; the profile's order of joints is the order of every joint array.
        lower_rad: Lower end of its range [rad].
        upper_rad: Upper end of its range [rad].
        velocity_max_radps: The fastest command that the safety kernel lets through [rad/s].
        acceleration_max_radps2: The hardest change of a command's speed [rad/s²].
        step_max_rad: The largest change of a command in one control period [rad].
        tracking_max_rad: The largest distance of a command from the measured position [rad].
        lerobot: Its channel in LeRobot's terms.
    """

    name: str
    lower_rad: float
    upper_rad: float
    velocity_max_radps: Positive
    acceleration_max_radps2: Positive
    step_max_rad: Positive
    tracking_max_rad: Positive
    lerobot: Channel

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.lower_rad < self.upper_rad:
            raise ValueError(
                f"joint {self.name}: lower_rad {self.lower_rad} must be below upper_rad {self.upper_rad}"
            )
        return self

    @property
    def middle_rad(self) -> float:
        """Middle of the range [rad]."""
        return (self.lower_rad + self.upper_rad) / 2


class Body(Spec):
    """A rigid link.

    Attributes:
        name: Its name.
        parent: The body it hangs on; "" for the base.
        position_m: Origin in the parent's frame [m].
        quaternion_wxyz: Orientation in the parent's frame at joint zero.
        joint: The joint that turns it about its local z axis; "" when fixed.
        mass_kg: Mass [kg].
        center_of_mass_m: Centre of mass in the body's frame [m].
        inertia_kgm2: xx, yy, zz, xy, xz, yz about the centre of mass [kg·m²].
        parts: What it looks like.
    """

    name: str
    parent: str
    position_m: Vector
    quaternion_wxyz: Quaternion
    joint: str = ""
    mass_kg: Positive
    center_of_mass_m: Vector
    inertia_kgm2: tuple[float, float, float, float, float, float]
    parts: tuple[Part, ...] = ()


class Servo(Spec):
    """The position servo model, the same in every engine.

    Attributes:
        stiffness_nmprad: Position gain [N·m/rad].
        damping_nmsprad: Velocity gain [N·m·s/rad].
        torque_max_nm: Torque limit [N·m].
        joint_damping_nmsprad: Passive damping of the joint [N·m·s/rad].
        joint_friction_nm: Friction loss [N·m].
        armature_kgm2: Reflected rotor inertia [kg·m²].
    """

    stiffness_nmprad: Positive
    damping_nmsprad: Positive
    torque_max_nm: Positive
    joint_damping_nmsprad: Positive
    joint_friction_nm: Positive
    armature_kgm2: Positive


class Pad(Spec):
    """A rubber pad that grasps: a box.

    Attributes:
        body: The body it is fixed to.
        at_m: Centre in that body [m].
        half_m: Half sizes [m].
        euler_rad: Turn [rad].
    """

    body: str
    at_m: Vector
    half_m: tuple[Positive, Positive, Positive]
    euler_rad: Vector = (0.0, 0.0, 0.0)


class Tool(Spec):
    """The end of the arm.

    Attributes:
        body: The body that carries it.
        frame_m: The published tool frame's origin in that body [m].
        frame_wxyz: The published tool frame's orientation in that body.
        grasp_m: The point between the pads, in that body [m].
        pads: The two pads: fixed, moving.
        pad_friction: Friction of the pads.
        open_rad: Gripper joint when open for an instrument [rad].
        closed_rad: Gripper joint commanded to hold an instrument [rad].
        torque_max_nm: Torque limit of the gripper's servo, below the arm's so that it does not crush [N·m].
    """

    body: str
    frame_m: Vector
    frame_wxyz: Quaternion
    grasp_m: Vector
    pads: tuple[Pad, Pad]
    pad_friction: Friction
    open_rad: float
    closed_rad: float
    torque_max_nm: Positive


class RobotProfile(Profile):
    """A robot arm.

    Attributes:
        title: Its name for people.
        robot_type: LeRobot's name for it.
        calibration_id: Which calibration the zeros and ranges belong to.
        joints: The joints, in the order of every joint array.
        bodies: The links, parents first.
        servo: The servo model.
        tool: The gripper.
        home_rad: The pose an episode starts from, in joint order [rad].
    """

    kind: Literal["robot"]
    title: str
    robot_type: str
    calibration_id: str
    joints: tuple[Joint, ...] = Field(min_length=1)
    bodies: tuple[Body, ...] = Field(min_length=1)
    servo: Servo
    tool: Tool
    home_rad: tuple[float, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known: set[str] = set()
        for body in self.bodies:
            if body.parent and body.parent not in known:
                raise ValueError(f"body {body.name}: parent {body.parent!r} is not declared before it")
            known.add(body.name)
        names = [joint.name for joint in self.joints]
        turned = [body.joint for body in self.bodies if body.joint]
        if sorted(names) != sorted(turned):
            raise ValueError(f"joints {names} and the bodies' joints {turned} differ")
        if len(self.home_rad) != len(names):
            raise ValueError(f"home_rad has {len(self.home_rad)} values for {len(names)} joints")
        for joint, value in zip(self.joints, self.home_rad, strict=True):
            if not joint.lower_rad <= value <= joint.upper_rad:
                raise ValueError(
                    f"home_rad of {joint.name} is {value}, outside {joint.lower_rad}…{joint.upper_rad}"
                )
        for name in (self.tool.body, *(pad.body for pad in self.tool.pads)):
            if name not in known:
                raise ValueError(f"tool: unknown body {name!r}; valid: {', '.join(sorted(known))}")
        return self

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names in joint order."""
        return tuple(joint.name for joint in self.joints)

    @property
    def lerobot_keys(self) -> tuple[str, ...]:
        """LeRobot's channel names in joint order."""
        return tuple(joint.lerobot.key for joint in self.joints)

    @property
    def lower_rad(self) -> NDArray[np.float64]:
        """Shape (n_joints,), lower ends of the ranges [rad]."""
        return np.array([joint.lower_rad for joint in self.joints])

    @property
    def upper_rad(self) -> NDArray[np.float64]:
        """Shape (n_joints,), upper ends of the ranges [rad]."""
        return np.array([joint.upper_rad for joint in self.joints])


@lru_cache(maxsize=8)
def load_robot(name: str | Path) -> RobotProfile:
    """Loads a robot profile by name ("so101") or by the path of a YAML file.

    Raises:
        ConfigError: Unknown name, missing file, or a wrong key or value.
    """
    return load_profile(RobotProfile, "robot", name)
