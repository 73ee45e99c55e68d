"""Between radians and LeRobot's degrees and percent, by numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.units import affine, from_lerobot, to_lerobot
from sim2or.errors import MessageError


def test_symmetric_joint_is_plain_degrees() -> None:
    """A quarter turn of a joint whose range is symmetric reads 90 degrees."""
    assert to_lerobot(load_robot("so101"), [np.pi / 2, 0, 0, 0, 0, 0])[0] == pytest.approx(90.0)


def test_wrist_roll_counts_from_the_middle_of_its_range() -> None:
    """Wrist roll at zero reads −2.789°: its range −2.74385…2.84121 rad has its middle at 0.04868 rad."""
    assert to_lerobot(load_robot("so101"), np.zeros(6))[4] == pytest.approx(-0.04868 * 180 / np.pi, abs=1e-9)


def test_gripper_reads_percent_of_its_range() -> None:
    """The gripper reads 0 at −0.17453 rad, 100 at 1.74533 rad and 50 half way at 0.7854 rad."""
    robot = load_robot("so101")
    angles = np.zeros((3, 6))
    angles[:, 5] = (-0.17453, 1.74533, 0.7854)
    np.testing.assert_allclose(to_lerobot(robot, angles)[:, 5], [0.0, 100.0, 50.0], atol=1e-9)


def test_there_and_back_is_the_same() -> None:
    """Converting to LeRobot's values and back gives the radians again, for any leading dimensions."""
    robot = load_robot("so101")
    angles = np.random.default_rng(1).uniform(robot.lower_rad, robot.upper_rad, (5, 2, 6))
    np.testing.assert_allclose(from_lerobot(robot, to_lerobot(robot, angles)), angles, atol=1e-12)


def test_affine_is_the_conversion() -> None:
    """Scale and offset, as an exported graph folds them in, give the same values."""
    robot = load_robot("so101")
    angles = np.linspace(-0.1, 0.5, 6)
    scale, offset = affine(robot)
    np.testing.assert_allclose(scale * angles + offset, to_lerobot(robot, angles))


def test_wrong_number_of_joints_is_refused() -> None:
    """An array whose last axis is not the joints is refused with the joints' names."""
    with pytest.raises(MessageError, match=r"\(5,\).*must be 6: shoulder_pan"):
        to_lerobot(load_robot("so101"), np.zeros(5))
