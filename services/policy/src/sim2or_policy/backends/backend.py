"""What every backend does, and how a freshly loaded one proves itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sim2or.errors import ConfigError
from sim2or.model_card import ACTION, CHANNEL_PREFIX, IMAGE_PREFIX, SELF_TEST_FILE, STATE, ModelCard

TOLERANCE_RAD = {"fp32": 1e-3, "fp16": 2e-2}
"""Largest accepted difference from the exporter's own answer, as another machine sums otherwise [rad]."""

Images = Mapping[str, NDArray[np.uint8]]
Channels = Mapping[str, NDArray[np.float32]]
NO_CHANNELS: Channels = MappingProxyType({})


class PolicyBackend(Protocol):
    """A loaded model.

    Attributes:
        card: What it takes and gives.
        max_batch: Most observations in one call.
    """

    card: ModelCard
    max_batch: int

    def infer(
        self, state_rad: NDArray[np.float32], images: Images, channels: Channels = NO_CHANNELS
    ) -> NDArray[np.float32]:
        """Runs the model.

        Args:
            state_rad: Shape (batch, n_joints), [rad].
            images: Camera name to shape (batch, height_px, width_px, 3), RGB.
            channels: Name to shape (batch, n), in the unit that the card states.

        Returns:
            Shape (batch, horizon, n_joints), joint position targets [rad].
        """


def named_inputs(
    card: ModelCard, state_rad: NDArray[np.float32], images: Images, channels: Channels
) -> dict[str, NDArray[Any]]:
    """The arrays under the names that the card and the graph use, in the card's order."""
    given: dict[str, NDArray[Any]] = {STATE: state_rad}
    given.update({IMAGE_PREFIX + camera: image for camera, image in images.items()})
    given.update({CHANNEL_PREFIX + name: values for name, values in channels.items()})
    return {tensor.name: given[tensor.name] for tensor in card.inputs}


def warm_up(backend: PolicyBackend) -> None:
    """Runs the model once on blank inputs, so that the first robot does not pay for it.

    Raises:
        ConfigError: The answer is not a finite chunk of the card's shape.
    """
    state_rad = np.zeros((1, len(backend.card.joints)), np.float32)
    images = {camera: np.zeros((1, *shape), np.uint8) for camera, shape in backend.card.cameras.items()}
    channels = {
        name: np.zeros((1, *tensor.shape), np.float32) for name, tensor in backend.card.channels.items()
    }
    actions_rad = backend.infer(state_rad, images, channels)
    expected = (1, backend.card.horizon, len(backend.card.joints))
    if actions_rad.shape != expected or not np.isfinite(actions_rad).all():
        raise ConfigError(
            f"the model answers shape {actions_rad.shape}, finite {np.isfinite(actions_rad).all()}; "
            f"its card promises {expected}: export it again"
        )


def self_test(backend: PolicyBackend, directory: Path, *, tolerance_rad: float) -> None:
    """Compares the model with the answer the exporter stored beside it.

    Raises:
        ConfigError: The stored answer is missing or differs by more than the tolerance.
    """
    path = directory / SELF_TEST_FILE
    if not path.exists():
        raise ConfigError(f"{path} is missing: export the model again")
    with np.load(path, allow_pickle=False) as stored:
        images = {camera: stored[IMAGE_PREFIX + camera] for camera in backend.card.cameras}
        channels = {name: stored[CHANNEL_PREFIX + name] for name in backend.card.channels}
        actions_rad = backend.infer(stored[STATE], images, channels)
        worst_rad = float(np.abs(actions_rad - stored[ACTION]).max())
    if not worst_rad <= tolerance_rad:
        raise ConfigError(
            f"the model answers {worst_rad:.3g} rad away from its export's self-test; "
            f"at most {tolerance_rad:.3g} rad is accepted: export it again on this machine"
        )
