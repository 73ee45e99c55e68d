"""Compact ACT as LeRobot sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_policy_config
from lerobot_policy_sim2or.configuration_compact_act import CompactACTConfig
from lerobot_policy_sim2or.modeling_compact_act import CompactACTPolicy
from safetensors.torch import load_file, save_file

TRUTH = "observation.privileged.instrument"
CAMERAS = ("observation.images.room", "observation.images.wrist")
SMALL = {
    "dim_model": 32,
    "dim_feedforward": 64,
    "vector_width": 32,
    "stem_channels": [16, 16],
    "pose_width": 32,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices gain nothing from threads, and waiting threads slow everything else down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_config(**fields: Any) -> CompactACTConfig:
    """A small policy for two cameras and six joints, with simulator truth in the data."""
    config = CompactACTConfig(device="cpu", **(SMALL | fields))
    config.input_features = {
        "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        **{key: PolicyFeature(FeatureType.VISUAL, (3, 96, 96)) for key in CAMERAS},
        TRUTH: PolicyFeature(FeatureType.STATE, (12,)),
    }
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (6,))}
    return config


def make_policy(**fields: Any) -> CompactACTPolicy:
    """A policy with fixed random weights."""
    torch.manual_seed(0)
    return CompactACTPolicy(make_config(**fields))


def make_batch(size: int = 4) -> dict[str, torch.Tensor]:
    """A training batch, normalised as the preprocessor gives it."""
    generator = torch.Generator().manual_seed(1)
    return {
        "observation.state": torch.randn(size, 6, generator=generator),
        **{key: torch.rand(size, 3, 96, 96, generator=generator) for key in CAMERAS},
        TRUTH: 0.1 * torch.randn(size, 12, generator=generator),
        "action": torch.randn(size, 20, 6, generator=generator),
        "action_is_pad": torch.zeros(size, 20, dtype=torch.bool),
    }


def test_lerobot_discovers_the_plugin() -> None:
    """A fresh process knows compact_act after LeRobot's own discovery."""
    code = (
        "from lerobot.utils.import_utils import register_third_party_plugins as r; r();"
        "from lerobot.configs import PreTrainedConfig as C; import sys;"
        "sys.exit('compact_act' not in C.get_known_choices())"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_factory_builds_it_by_name() -> None:
    """LeRobot's factory finds configuration, policy and processors by the registered name."""
    assert isinstance(make_policy_config("compact_act", device="cpu"), CompactACTConfig)
    assert get_policy_class("compact_act") is CompactACTPolicy


def test_truth_is_no_input() -> None:
    """Simulator truth in the data is taken out of the inputs, also in the saved configuration."""
    policy = make_policy()
    assert list(policy.config.input_features) == ["observation.state", *CAMERAS]


def test_truth_changes_the_loss_and_never_the_actions() -> None:
    """The pose target moves the loss; the actions are the same with any truth and with none."""
    policy, batch = make_policy(), make_batch()
    other = batch | {TRUTH: batch[TRUTH] + 0.1}
    without = {key: value for key, value in batch.items() if key != TRUTH}
    assert policy(batch)[0] != policy(other)[0]
    assert "pose_loss" not in policy(without)[1]
    actions = policy.predict_action_chunk(batch)
    assert torch.equal(actions, policy.predict_action_chunk(other))
    assert torch.equal(actions, policy.predict_action_chunk(without))


def test_exported_graph_has_no_privileged_input() -> None:
    """The traced computation takes the state and two images, nothing else."""

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = make_policy().eval()

        def forward(self, state: torch.Tensor, room: torch.Tensor, wrist: torch.Tensor) -> torch.Tensor:
            return self.policy.forward_actions(state, [room, wrist])

    batch = make_batch()
    inputs = tuple(batch[key] for key in ("observation.state", *CAMERAS))
    program = torch.export.export(Exported(), inputs)
    assert len(program.graph_signature.user_inputs) == 3
    torch.testing.assert_close(program.module()(*inputs), make_policy().predict_action_chunk(batch))


def test_privileged_input_is_explicit() -> None:
    """With privileged_input the truth replaces the pictures, and changes the actions."""
    policy, batch = make_policy(privileged_input=True), make_batch()
    assert list(policy.config.input_features) == ["observation.state", TRUTH]
    moved = batch | {TRUTH: batch[TRUTH] + 0.1}
    assert not torch.equal(policy.predict_action_chunk(batch), policy.predict_action_chunk(moved))


def test_pose_target_by_hand() -> None:
    """At 9 cm ahead of the gripper with near 3 cm, the position target is 9 / (9 + 3) = 0.75."""
    policy = make_policy(pose_centre_m=[0.2, 0.0, 0.06], pose_scale_m=0.08, pose_near_m=0.03)
    pose = torch.tensor([[0.24, 0.08, 0.06, 0, 1, 0, 0.09, 0, 0, 1, 0, 0]])
    expected = torch.tensor([[0.5, 1.0, 0.0, 0, 1, 0, 0.75, 0, 0, 1, 0, 0]])
    torch.testing.assert_close(policy.model.pose_code(pose), expected, atol=1e-6, rtol=1e-6)


def test_padded_actions_do_not_count() -> None:
    """Targets after an episode's end leave the loss unchanged."""
    policy, batch = make_policy(), make_batch()
    batch["action_is_pad"][:, 10:] = True
    changed = batch | {"action": batch["action"].clone()}
    changed["action"][:, 10:] += 5
    assert policy(batch)[1]["l1_loss"] == policy(changed)[1]["l1_loss"]


def test_overfits_a_batch() -> None:
    """A hundred steps on one batch bring the loss to a third."""
    policy, batch = make_policy(), make_batch()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    first = policy(batch)[0].item()
    for _ in range(100):
        loss = policy(batch)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 3


def test_image_scaling_is_folded_exactly() -> None:
    """The stem gives what a plain convolution gives on images scaled from 0…1 to −2…2."""
    stem = make_policy().model.cameras[0].maps[0]
    image = make_batch()[CAMERAS[0]]
    plain = torch.nn.functional.conv2d(4 * image - 2, stem.weight, stem.bias, stem.stride)
    torch.testing.assert_close(stem(image), plain, atol=1e-5, rtol=1e-5)


def test_saves_and_loads_itself(tmp_path: Path) -> None:
    """A saved policy comes back with its type, its requests and the same actions."""
    policy, batch = make_policy(requests=["Hand me the scalpel"]), make_batch()
    policy.save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    assert isinstance(config, CompactACTConfig)
    assert config.requests == ["Hand me the scalpel"]
    loaded = get_policy_class(config.type).from_pretrained(tmp_path)
    assert torch.equal(loaded.predict_action_chunk(batch), policy.predict_action_chunk(batch))


def test_missing_weights_are_refused_by_default(tmp_path: Path) -> None:
    """Loading is strict without being asked: a checkpoint that lacks a tensor raises."""
    make_policy().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("model.action_head.weight")
    save_file(tensors, path)
    with pytest.raises(RuntimeError, match="action_head"):
        CompactACTPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_vae": True}, "no VAE"),
        ({"stem_channels": [32]}, "multiples of 16"),
        ({"dim_model": 30, "n_heads": 4}, "no multiple of n_heads"),
    ],
)
def test_impossible_configurations_are_named(fields: dict[str, Any], message: str) -> None:
    """A configuration that cannot be built says which field is wrong."""
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


def test_odd_image_sizes_are_refused() -> None:
    """An image size that the convolutions do not divide is named."""
    config = make_config()
    config.input_features[CAMERAS[0]] = PolicyFeature(FeatureType.VISUAL, (3, 100, 96))
    with pytest.raises(ValueError, match="multiples of 8"):
        CompactACTPolicy(config)


def test_configuration_is_plain_json(tmp_path: Path) -> None:
    """The saved configuration names no simulator truth among its inputs."""
    make_policy().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["type"] == "compact_act"
    assert not any(key.startswith("observation.privileged") for key in saved["input_features"])
