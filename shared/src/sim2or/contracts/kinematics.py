"""Forward kinematics of a robot profile in numpy, for limits and labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim2or.contracts.geometry import Quaternion, Vector
from sim2or.contracts.robot import RobotProfile

Pose = NDArray[np.float64]


def rotation(quaternion_wxyz: Quaternion) -> NDArray[np.float64]:
    """Rotation matrix, shape (3, 3), of a quaternion that need not be of unit length."""
    w, x, y, z = np.asarray(quaternion_wxyz) / np.linalg.norm(quaternion_wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def transform(position_m: Vector, quaternion_wxyz: Quaternion) -> Pose:
    """Homogeneous transform, shape (4, 4)."""
    pose = np.eye(4)
    pose[:3, :3] = rotation(quaternion_wxyz)
    pose[:3, 3] = position_m
    return pose


class Kinematics:
    """Where every body and the tool are, for joint positions; all poses in the base frame.

    Attributes:
        body_names: The order of ``body_origins``.
    """

    def __init__(self, robot: RobotProfile) -> None:
        """Precomputes the fixed transforms of a robot."""
        index = {name: i for i, name in enumerate(robot.joint_names)}
        order = {body.name: i for i, body in enumerate(robot.bodies)}
        self.body_names = tuple(order)
        self._n_joints = len(index)
        self._links = [
            (
                order.get(body.parent, -1),
                index.get(body.joint, -1),
                transform(body.position_m, body.quaternion_wxyz),
            )
            for body in robot.bodies
        ]
        self._tool_body = order[robot.tool.body]
        self._frame = transform(robot.tool.frame_m, robot.tool.frame_wxyz)
        self._grasp = np.array([*robot.tool.grasp_m, 1.0])

    def body_poses(self, position_rad: ArrayLike) -> Pose:
        """Poses of all bodies.

        Args:
            position_rad: Shape (..., n_joints), [rad].

        Returns:
            Shape (..., n_bodies, 4, 4), in the base frame.
        """
        angles = np.asarray(position_rad, dtype=np.float64)
        poses: list[Pose] = []
        for parent, joint, fixed in self._links:
            pose = fixed if parent < 0 else poses[parent] @ fixed
            poses.append(pose if joint < 0 else _turned(pose, angles[..., joint]))
        lead = angles.shape[:-1]
        return np.stack([np.broadcast_to(pose, (*lead, 4, 4)) for pose in poses], axis=-3)

    def body_origins(self, position_rad: ArrayLike) -> NDArray[np.float64]:
        """Origins of all bodies, shape (..., n_bodies, 3), [m]."""
        return self.body_poses(position_rad)[..., :3, 3]

    def tool_pose(self, position_rad: ArrayLike) -> Pose:
        """Pose of the published tool frame, shape (..., 4, 4)."""
        return self.body_poses(position_rad)[..., self._tool_body, :, :] @ self._frame

    def tool_position(self, position_rad: ArrayLike) -> NDArray[np.float64]:
        """Origin of the published tool frame, shape (..., 3), [m]."""
        return self.tool_pose(position_rad)[..., :3, 3]

    def grasp_position(self, position_rad: ArrayLike) -> NDArray[np.float64]:
        """The point between the pads, shape (..., 3), [m]."""
        grasp: NDArray[np.float64] = self.body_poses(position_rad)[..., self._tool_body, :, :] @ self._grasp
        return grasp[..., :3]


def _turned(pose: Pose, angle_rad: NDArray[np.float64]) -> Pose:
    """``pose`` turned about its own z axis; columns x and y mix, z and the origin stay."""
    cos, sin = np.cos(angle_rad)[..., None], np.sin(angle_rad)[..., None]
    turned = np.broadcast_to(pose, (*np.broadcast_shapes(pose.shape[:-2], np.shape(angle_rad)), 4, 4)).copy()
    x, y = pose[..., :, 0], pose[..., :, 1]
    turned[..., :, 0] = cos * x + sin * y
    turned[..., :, 1] = cos * y - sin * x
    return turned
