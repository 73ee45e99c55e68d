"""Units and normalisation folded into one affine map per channel, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lerobot_policy_sim2or.served import ServedCheckpoint
from sim2or.model_card import IMAGE_PREFIX, STATE
from sim2or_exporter.normalisation import Affine, input_affine, output_affine


def test_maps_compose_and_invert() -> None:
    """Doubling then adding three is one map, and its inverse takes the result back."""
    both = Affine.of([2.0], [0.0]).then(Affine.of([1.0], [3.0]))
    assert both.scale * 5.0 + both.offset == pytest.approx(13.0)
    assert both.inverse().scale * 13.0 + both.inverse().offset == pytest.approx(5.0)


def test_state_goes_from_radians_to_normalised_degrees(checkpoint_directory: Path) -> None:
    """A joint 0.1 rad above its middle is 5.7296 degrees; with mean 1 and deviation 10 that is 0.47296."""
    checkpoint = ServedCheckpoint.load(checkpoint_directory)
    pan = checkpoint.robot.joints[0]
    folded = input_affine(checkpoint, STATE)
    assert folded.scale[0] * (pan.middle_rad + 0.1) + folded.offset[0] == pytest.approx(0.472958, abs=1e-6)


def test_gripper_goes_from_radians_to_normalised_percent(checkpoint_directory: Path) -> None:
    """A gripper at three quarters of its range is 75; with mean 40 and deviation 25 that is 1.4."""
    checkpoint = ServedCheckpoint.load(checkpoint_directory)
    gripper = checkpoint.robot.joints[5]
    position_rad = gripper.lower_rad + 0.75 * (gripper.upper_rad - gripper.lower_rad)
    folded = input_affine(checkpoint, STATE)
    assert folded.scale[5] * position_rad + folded.offset[5] == pytest.approx(1.4, abs=1e-6)


def test_action_goes_from_normalised_to_radians(checkpoint_directory: Path) -> None:
    """A normalised action of 0.5 is 1 + 0.5·10 = 6 degrees, which is 0.10472 rad above the joint's middle."""
    checkpoint = ServedCheckpoint.load(checkpoint_directory)
    folded = output_affine(checkpoint)
    action_rad = folded.scale[0] * 0.5 + folded.offset[0]
    assert action_rad - checkpoint.robot.joints[0].middle_rad == pytest.approx(0.1047198, abs=1e-6)


def test_images_go_from_levels_to_unit_range(checkpoint_directory: Path) -> None:
    """Colour level 51 of 255 is 0.2, and no other image statistics apply to this policy."""
    folded = input_affine(ServedCheckpoint.load(checkpoint_directory), IMAGE_PREFIX + "wrist")
    assert np.allclose(folded.scale * 51 + folded.offset, 0.2)
