"""Channels beside joints and images: asked for by the card, checked at the door, handed to the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sim2or.artifacts.store import Store
from sim2or.errors import MessageError
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.observation import Channel, Observation
from sim2or.messages.policy_request import PolicyRequest
from sim2or.model_card import CHANNEL_PREFIX, ModelCard, action_spec, channel_spec, state_spec
from sim2or_policy.admission import admit
from sim2or_policy.inference import Inference
from sim2or_policy.shelf import Shelf, openers

TARGET = "target_m"


def channel(*values: float, unit: str = "m") -> Channel:
    return Channel(unit=unit, values=np.array(values, np.float32))


@pytest.fixture
def aimed(card: ModelCard) -> ModelCard:
    """A card without cameras that asks for a target."""
    target = channel_spec(TARGET, unit="m", names=("x", "y", "z"))
    changes = {"inputs": (state_spec(card.joints), target), "outputs": (action_spec(card.joints, horizon=1),)}
    return ModelCard.model_validate(card.model_dump() | changes)


@pytest.fixture
def asked(observation: Observation) -> Callable[..., Observation]:
    """The observation without images, with these channels."""

    def make(**channels: Channel) -> Observation:
        return observation.model_copy(update={"images": {}, "channels": channels})

    return make


def test_a_target_in_metres_is_admitted(aimed: ModelCard, asked: Callable[..., Observation]) -> None:
    """Three metres, as the card asks."""
    admit(asked(target_m=channel(0.2, 0.0, 0.1)), aimed)


@pytest.mark.parametrize(
    ("channels", "detail"),
    [
        ({}, r"'target_m' is missing: 3 numbers \[m\]: x, y, z"),
        ({TARGET: channel(200, 0, 100, unit="mm")}, "'target_m' is in 'mm': valid: 'm'"),
        ({TARGET: channel(0.2, 0.0)}, "'target_m' has 2 numbers: valid: 3, x, y, z"),
        ({TARGET: channel(0, 0, 0), "goal": channel(1)}, "channel 'goal'.*target_m"),
    ],
)
def test_what_does_not_fit_is_refused(
    aimed: ModelCard, asked: Callable[..., Observation], channels: dict[str, Channel], detail: str
) -> None:
    """Missing, in another unit, of another size or unknown: each says what would be accepted."""
    with pytest.raises(MessageError, match=detail):
        admit(asked(**channels), aimed)


def test_the_model_is_given_its_channels(
    aimed: ModelCard, asked: Callable[..., Observation], store: Store, tmp_path: Path
) -> None:
    """A model that answers x + y + z at every joint answers 0.2 + 0.05 + 0.1 = 0.35 rad."""
    name = CHANNEL_PREFIX + TARGET
    nodes = [
        helper.make_node("ReduceSum", [name, "last"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["observation.state", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "sum"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "middle"], ["action"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [
            helper.make_tensor_value_info("observation.state", TensorProto.FLOAT, ["batch", 6]),
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]),
        ],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", 1, 6])],
        [
            onnx.numpy_helper.from_array(np.array([1], np.int64), "last"),
            onnx.numpy_helper.from_array(np.array([1], np.int64), "middle"),
            onnx.numpy_helper.from_array(np.array(0, np.float32), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    directory = tmp_path / "model"
    directory.mkdir()
    onnx.save(model, directory / "model.onnx")
    aimed.write(directory)
    arrays = {
        "observation.state": np.zeros((1, 6), "f4"),
        name: np.ones((1, 3), "f4"),
        "action": np.full((1, 1, 6), 3.0, "f4"),
    }
    np.savez(directory / "selftest.npz", **arrays)
    digest = store.put(directory, kind="exported-model").digest
    request = PolicyRequest(
        artifact=digest, observation=asked(target_m=channel(0.2, 0.05, 0.1)), deadline_ms=5000
    )
    (answer,) = Inference(Shelf(store, openers("onnxruntime"), size=1)).answer([request])
    assert isinstance(answer, ActionChunk)
    assert np.allclose(answer.actions_rad, 0.35)
