"""Inputs to compare and time models on: random ones, and recorded frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from numpy.typing import NDArray
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.units import from_lerobot
from sim2or.errors import ConfigError, choices
from sim2or.model_card import IMAGE_PREFIX, STATE, ModelCard

Inputs = dict[str, NDArray[Any]]
"""Input name to array with a leading batch dimension, in the card's order, types and units."""


def random_inputs(card: ModelCard, robot: RobotProfile, *, batch: int, seed: int) -> Inputs:
    """Joint positions anywhere in their ranges and images of noise."""
    rng = np.random.default_rng(seed)
    inputs: Inputs = {}
    for tensor in card.inputs:
        shape = (batch, *tensor.shape)
        if tensor.name == STATE:
            inputs[tensor.name] = rng.uniform(robot.lower_rad, robot.upper_rad, shape).astype(np.float32)
        elif tensor.dtype == "uint8":
            inputs[tensor.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            inputs[tensor.name] = rng.standard_normal(shape).astype(np.float32)
    return inputs


def recorded_inputs(card: ModelCard, robot: RobotProfile, dataset: Path, *, frames: int) -> Inputs:
    """Frames spread evenly over a LeRobot dataset, brought back to radians and colour levels.

    Raises:
        ConfigError: The dataset lacks an input of the model or has another shape.
    """
    recorded = LeRobotDataset(f"local/{dataset.name}", root=dataset, video_backend="pyav")
    rows = np.unique(np.linspace(0, len(recorded) - 1, min(frames, len(recorded)), dtype=int))
    items = [recorded[int(row)] for row in rows]
    inputs: Inputs = {}
    for tensor in card.inputs:
        if tensor.name not in items[0]:
            raise ConfigError(
                f"{dataset}: no feature {tensor.name!r}; {choices(tensor.name, recorded.features)}"
            )
        values = np.stack([item[tensor.name].numpy() for item in items])
        inputs[tensor.name] = _served(robot, tensor.name, values)
        if inputs[tensor.name].shape[1:] != tensor.shape:
            found = inputs[tensor.name].shape[1:]
            raise ConfigError(f"{dataset}: {tensor.name} has shape {found}; the model takes {tensor.shape}")
    return inputs


def take(inputs: Inputs, count: int) -> Inputs:
    """The first rows of every input."""
    return {name: np.ascontiguousarray(value[:count]) for name, value in inputs.items()}


def _served(robot: RobotProfile, name: str, values: NDArray[Any]) -> NDArray[Any]:
    if name == STATE:
        state_rad: NDArray[np.float32] = from_lerobot(robot, values).astype(np.float32)
        return state_rad
    if name.startswith(IMAGE_PREFIX):
        levels: NDArray[np.uint8] = np.rint(values.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
        return levels
    return values.astype(np.float32)
