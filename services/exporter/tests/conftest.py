"""Tiny checkpoints with random weights, in the layout that the trainer writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot_policy_sim2or.configuration_compact_act import CompactACTConfig
from lerobot_policy_sim2or.modeling_compact_act import CompactACTPolicy
from sim2or.contracts.robot import load_robot
from sim2or.model_card import (
    ACTION,
    IMAGE_PREFIX,
    STATE,
    ModelCard,
    TensorSpec,
    action_spec,
    image_spec,
    state_spec,
)

SIZE_PX = 32
CAMERAS = ("wrist", "room")
TRUTH = "observation.privileged.instrument"
MEAN = [1.0, 2.0, 3.0, 4.0, 5.0, 40.0]
STD = [10.0, 20.0, 30.0, 40.0, 50.0, 25.0]

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Writes a checkpoint: ``make_checkpoint(privileged=False, size_px=32) -> directory``."""

    def make(*, privileged: bool = False, size_px: int = SIZE_PX) -> Path:
        directory = tmp_path_factory.mktemp("checkpoint")
        _write_policy(directory, privileged=privileged, size_px=size_px)
        _card(privileged=privileged, size_px=size_px).write(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def checkpoint_directory(make_checkpoint: MakeCheckpoint) -> Path:
    """A pixels checkpoint."""
    return make_checkpoint()


def _write_policy(directory: Path, *, privileged: bool, size_px: int) -> None:
    torch.manual_seed(0)
    small = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "vector_width": 16}
    config = CompactACTConfig(device="cpu", stem_channels=[16, 16], privileged_input=privileged, **small)
    config.input_features = {
        STATE: PolicyFeature(FeatureType.STATE, (6,)),
        TRUTH: PolicyFeature(FeatureType.STATE, (12,)),
        **{IMAGE_PREFIX + c: PolicyFeature(FeatureType.VISUAL, (3, size_px, size_px)) for c in CAMERAS},
    }
    config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, (6,))}
    policy = CompactACTPolicy(config)
    stats = {"mean": torch.tensor(MEAN), "std": torch.tensor(STD)}
    before, after = make_pre_post_processors(config, dataset_stats={STATE: stats, ACTION: stats})
    for part in (policy, before, after):
        part.save_pretrained(directory)


def _card(*, privileged: bool, size_px: int) -> ModelCard:
    robot = load_robot("so101")
    truth = TensorSpec(name=TRUTH, dtype="float32", shape=(12,), unit="m")
    images = tuple(image_spec(camera, height_px=size_px, width_px=size_px) for camera in CAMERAS)
    return ModelCard(
        policy="compact_act",
        robot="so101",
        task="handover",
        calibration_id=robot.calibration_id,
        requests=("Hand me the forceps", "Hand me the scalpel"),
        control_hz=30,
        privileged=privileged,
        inputs=(state_spec(robot.joint_names), *((truth,) if privileged else images)),
        outputs=(action_spec(robot.joint_names, horizon=20),),
    )
