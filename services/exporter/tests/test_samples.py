"""Recorded frames as inputs of the exported model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot_policy_sim2or.served import ServedCheckpoint
from sim2or.contracts.robot import load_robot
from sim2or.errors import ConfigError
from sim2or.messages.export import ExportSpec
from sim2or.model_card import STATE, ModelCard
from sim2or.worker import StageContext
from sim2or_exporter.export import run
from sim2or_exporter.samples import random_inputs, recorded_inputs

SIZE_PX = 32
CAMERAS = ("wrist", "room")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames: every joint at its middle, the gripper at 50; images of level 7, 8 and 9."""
    root = tmp_path_factory.mktemp("lerobot") / "three"
    joints = {"dtype": "float32", "shape": (6,), "names": list(load_robot("so101").lerobot_keys)}
    image = {"dtype": "image", "shape": (SIZE_PX, SIZE_PX, 3), "names": ["height", "width", "channels"]}
    features = {STATE: joints, "action": joints} | {f"observation.images.{c}": image for c in CAMERAS}
    made = LeRobotDataset.create("local/three", fps=30, features=features, root=root, use_videos=False)
    for level in (7, 8, 9):
        values = np.array([0, 0, 0, 0, 0, 50], np.float32)
        pixels = np.full((SIZE_PX, SIZE_PX, 3), level, np.uint8)
        images = {f"observation.images.{camera}": pixels for camera in CAMERAS}
        made.add_frame({STATE: values, "action": values, "task": "Hand me the forceps", **images})
    made.save_episode()
    made.finalize()
    return root


def test_frames_come_back_in_radians_and_levels(dataset: Path, checkpoint_directory: Path) -> None:
    """Zero degrees and half a gripper are the middles of the ranges; image levels return as they were."""
    checkpoint = ServedCheckpoint.load(checkpoint_directory)
    inputs = recorded_inputs(checkpoint.card, checkpoint.robot, dataset, frames=2)
    assert np.allclose(inputs[STATE], [joint.middle_rad for joint in checkpoint.robot.joints], atol=1e-6)
    assert [image[0, 0, 0] for image in inputs["observation.images.wrist"]] == [7, 9]
    assert inputs["observation.images.room"].shape == (2, SIZE_PX, SIZE_PX, 3)


def test_export_is_compared_on_recorded_frames(
    dataset: Path, checkpoint_directory: Path, tmp_path: Path
) -> None:
    """With a dataset given, parity holds on its frames too."""
    context = StageContext(
        work=tmp_path,
        inputs={"checkpoint": [checkpoint_directory], "dataset": [dataset]},
        digests={},
        report=lambda _: None,
    )
    summary = run(ExportSpec(latency_calls=0, parity_batches=(2,), parity_frames=3), context).summary
    assert [(c["name"], c["batch"]) for c in summary["parity"]] == [
        ("random", 2),
        ("recorded", 1),
        ("recorded", 3),
    ]


def test_dataset_of_another_size_is_refused(
    dataset: Path, make_checkpoint: object, checkpoint_directory: Path
) -> None:
    """Frames of another size than the model takes name both sizes."""
    card = ModelCard.read(make_checkpoint(size_px=64))  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"has shape \(32, 32, 3\); the model takes \(64, 64, 3\)"):
        recorded_inputs(card, load_robot("so101"), dataset, frames=1)


def test_random_joints_stay_in_their_ranges(checkpoint_directory: Path) -> None:
    """Random inputs are poses that the robot can take, and the same for the same seed."""
    checkpoint = ServedCheckpoint.load(checkpoint_directory)
    robot = checkpoint.robot
    first, second = (random_inputs(checkpoint.card, robot, batch=50, seed=3) for _ in range(2))
    assert (first[STATE] >= robot.lower_rad - 1e-6).all()
    assert (first[STATE] <= robot.upper_rad + 1e-6).all()
    assert all(np.array_equal(first[name], second[name]) for name in first)
