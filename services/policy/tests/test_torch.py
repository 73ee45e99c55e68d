"""Serving a checkpoint in torch, the reference for its export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot_policy_sim2or.configuration_compact_act import CompactACTConfig
from lerobot_policy_sim2or.modeling_compact_act import CompactACTPolicy
from sim2or.artifacts.store import Store
from sim2or.errors import ConfigError
from sim2or.model_card import ACTION, IMAGE_PREFIX, STATE, ModelCard
from sim2or_policy.shelf import Shelf, openers

HORIZON = 4
MEAN, STD = torch.zeros(6), torch.ones(6)


@pytest.fixture
def checkpoint(tmp_path: Path, card: ModelCard) -> Path:
    """A tiny policy whose last layer is zero: whatever it sees, it wants LeRobot's zero in every channel."""
    config = CompactACTConfig(
        device="cpu",
        chunk_size=HORIZON,
        n_action_steps=HORIZON,
        stem_channels=[16, 16],
        dim_model=16,
        n_heads=2,
        dim_feedforward=16,
    )
    config.input_features = {STATE: PolicyFeature(FeatureType.STATE, (6,))}
    for name, shape in card.cameras.items():
        config.input_features[IMAGE_PREFIX + name] = PolicyFeature(FeatureType.VISUAL, (3, *shape[:2]))
    config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, (6,))}
    policy = CompactACTPolicy(config)
    torch.nn.init.zeros_(policy.model.action_head.weight)
    torch.nn.init.zeros_(policy.model.action_head.bias)
    stats = {"mean": MEAN, "std": STD}
    before, after = make_pre_post_processors(config, dataset_stats={STATE: stats, ACTION: stats})
    directory = tmp_path / "checkpoint"
    for part in (policy, before, after):
        part.save_pretrained(directory)
    card.write(directory)
    return directory


def test_checkpoint_answers_in_radians(store: Store, checkpoint: Path, card: ModelCard) -> None:
    """LeRobot's zeros are the middle of each range, and the gripper's lower end."""
    from sim2or.contracts.robot import load_robot

    robot = load_robot("so101")
    shelf = Shelf(store, openers("onnxruntime"), size=1)
    model = shelf.get(store.put(checkpoint, kind="checkpoint").digest)
    images = {name: np.zeros((2, *shape), np.uint8) for name, shape in card.cameras.items()}
    actions_rad = model.infer(np.zeros((2, 6), np.float32), images)
    expected_rad = [*(joint.middle_rad for joint in robot.joints[:5]), robot.lower_rad[5]]
    assert actions_rad.shape == (2, HORIZON, 6)
    assert np.allclose(actions_rad, expected_rad, atol=1e-5)


def test_incomplete_checkpoint_is_refused(store: Store, checkpoint: Path) -> None:
    """A checkpoint without weights is never served with random ones."""
    (checkpoint / "model.safetensors").unlink()
    digest = store.put(checkpoint, kind="checkpoint").digest
    with pytest.raises(ConfigError, match=r"model\.safetensors missing"):
        Shelf(store, openers("onnxruntime"), size=1).get(digest)
