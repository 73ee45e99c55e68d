"""LeRobot's units and normalisation folded into one multiplication and one addition per channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.configs.types import NormalizationMode
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot_policy_sim2or.served import ServedCheckpoint
from numpy.typing import ArrayLike, NDArray
from sim2or.contracts.units import affine
from sim2or.errors import ConfigError, choices
from sim2or.model_card import ACTION, IMAGE_PREFIX, STATE

LEVELS = 255.0

# Steps that change no number, so nothing of them belongs in the graph.
_PASSIVE = (AddBatchDimensionProcessorStep, DeviceProcessorStep, RenameObservationsProcessorStep)


@dataclass(frozen=True)
class Affine:
    """``y = scale * x + offset``, per channel, in double precision until it is used.

    Attributes:
        scale: Shape (n,).
        offset: Shape (n,).
    """

    scale: NDArray[np.float64]
    offset: NDArray[np.float64]

    @classmethod
    def of(cls, scale: ArrayLike, offset: ArrayLike) -> Affine:
        """Takes anything array-like; both are broadcast to one shape (n,)."""
        pair = np.broadcast_arrays(*(np.asarray(x, np.float64).reshape(-1) for x in (scale, offset)))
        return cls(*pair)

    def then(self, after: Affine) -> Affine:
        """This map followed by another, as one map."""
        return Affine.of(after.scale * self.scale, after.scale * self.offset + after.offset)

    def inverse(self) -> Affine:
        """The map back."""
        return Affine.of(1.0 / self.scale, -self.offset / self.scale)


IDENTITY = Affine.of(1.0, 0.0)


def input_affine(checkpoint: ServedCheckpoint, name: str) -> Affine:
    """From what the graph is given (radians, colour levels) to what the policy sees.

    Args:
        checkpoint: Whose units and statistics they are.
        name: An input of its card.
    """
    step = _only_step(checkpoint.preprocess, NormalizerProcessorStep)
    normalise = _normalise(step, name)
    if name == STATE:
        return Affine.of(*affine(checkpoint.robot)).then(normalise)
    if name.startswith(IMAGE_PREFIX):
        return Affine.of(1.0 / LEVELS, 0.0).then(normalise)
    return normalise


def output_affine(checkpoint: ServedCheckpoint) -> Affine:
    """From the policy's normalised actions to radians."""
    step = _only_step(checkpoint.postprocess, UnnormalizerProcessorStep)
    return _denormalise(step, ACTION).then(Affine.of(*affine(checkpoint.robot)).inverse())


def _only_step[S](pipeline: Any, wanted: type[S]) -> S:
    found = [step for step in pipeline.steps if isinstance(step, wanted)]
    foreign = [type(s).__name__ for s in pipeline.steps if not isinstance(s, (wanted, *_PASSIVE))]
    if len(found) != 1 or foreign:
        raise ConfigError(
            f"the checkpoint's processors hold {len(found)} {wanted.__name__} and "
            f"{', '.join(foreign) or 'no other'}; the exporter folds exactly one normalisation in "
            "and knows no other step"
        )
    return found[0]


def _normalise(step: Any, name: str) -> Affine:
    """As LeRobot's normalizer does. Source: lerobot 0.6.1, processor/normalize_processor.py."""
    mode, stats = _mode_and_stats(step, name)
    if mode is NormalizationMode.IDENTITY:
        return IDENTITY
    if mode is NormalizationMode.MEAN_STD:
        scale = 1.0 / (stats["std"] + step.eps)
        return Affine.of(scale, -stats["mean"] * scale)
    width = stats["max"] - stats["min"]
    scale = 2.0 / np.where(width == 0, step.eps, width)
    return Affine.of(scale, -stats["min"] * scale - 1.0)


def _denormalise(step: Any, name: str) -> Affine:
    mode, stats = _mode_and_stats(step, name)
    if mode is NormalizationMode.IDENTITY:
        return IDENTITY
    if mode is NormalizationMode.MEAN_STD:
        return Affine.of(stats["std"], stats["mean"])
    width = stats["max"] - stats["min"]
    scale = np.where(width == 0, step.eps, width) / 2.0
    return Affine.of(scale, scale + stats["min"])


def _mode_and_stats(step: Any, name: str) -> tuple[Any, dict[str, Any]]:
    feature = step.features.get(name)
    stats = {
        key: np.asarray(value, np.float64).reshape(-1)
        for key, value in (step.stats or {}).get(name, {}).items()
    }
    mode = (
        step.norm_map.get(feature.type, NormalizationMode.IDENTITY) if feature else NormalizationMode.IDENTITY
    )
    if not stats:
        mode = NormalizationMode.IDENTITY
    known = (NormalizationMode.IDENTITY, NormalizationMode.MEAN_STD, NormalizationMode.MIN_MAX)
    if mode not in known:
        raise ConfigError(
            f"{name}: normalisation {mode.value!r} cannot be exported; "
            f"{choices(mode.value, [m.value for m in known])}"
        )
    return mode, stats
