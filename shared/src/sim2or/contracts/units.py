"""Between SI radians and LeRobot's terms: degrees about mid-range, and 0–100 for the gripper."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim2or.contracts.robot import Joint, RobotProfile
from sim2or.errors import MessageError


def affine(robot: RobotProfile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The conversion as ``lerobot = scale * rad + offset``.

    Returns:
        scale: Shape (n_joints,), LeRobot units per rad.
        offset: Shape (n_joints,), LeRobot units.
    """
    pairs = [_joint_affine(joint) for joint in robot.joints]
    return np.array([scale for scale, _ in pairs]), np.array([offset for _, offset in pairs])


def to_lerobot(robot: RobotProfile, position_rad: ArrayLike) -> NDArray[np.float64]:
    """Radians to LeRobot's values.

    Args:
        robot: Whose joints they are.
        position_rad: Shape (..., n_joints), [rad].

    Returns:
        Shape (..., n_joints), [degrees, gripper 0–100].
    """
    scale, offset = affine(robot)
    return _checked(robot, position_rad) * scale + offset


def from_lerobot(robot: RobotProfile, values: ArrayLike) -> NDArray[np.float64]:
    """LeRobot's values to radians.

    Args:
        robot: Whose joints they are.
        values: Shape (..., n_joints), [degrees, gripper 0–100].

    Returns:
        Shape (..., n_joints), [rad].
    """
    scale, offset = affine(robot)
    return (_checked(robot, values) - offset) / scale


def _joint_affine(joint: Joint) -> tuple[float, float]:
    if joint.lerobot.unit == "degrees":
        scale = 180.0 / np.pi
        return scale, -scale * joint.middle_rad
    scale = 100.0 / (joint.upper_rad - joint.lower_rad)
    return scale, -scale * joint.lower_rad


def _checked(robot: RobotProfile, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != len(robot.joints):
        raise MessageError(
            f"joint array has shape {array.shape}; the last axis must be {len(robot.joints)}: "
            f"{', '.join(robot.joint_names)}"
        )
    return array
