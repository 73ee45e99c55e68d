"""Parity: how far the exported graph's actions are from the checkpoint's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sim2or.errors import JobError

from sim2or_exporter.samples import Inputs

Model = Callable[[Inputs], NDArray[Any]]


@dataclass(frozen=True)
class Comparison:
    """One batch through both models.

    Attributes:
        name: What the inputs were, for example ``"random"``.
        batch: Rows compared.
        max_abs_diff_rad: Largest difference of a joint target [rad].
    """

    name: str
    batch: int
    max_abs_diff_rad: float


def compare(
    reference: Model, exported: Model, batches: Sequence[tuple[str, Inputs]]
) -> tuple[Comparison, ...]:
    """Runs both models on the same inputs.

    Args:
        reference: The checkpoint as LeRobot runs it.
        exported: The graph.
        batches: Name and inputs of each comparison.
    """
    return tuple(_compare(reference, exported, name, inputs) for name, inputs in batches)


def require(comparisons: Sequence[Comparison], *, max_abs_diff_rad: float) -> float:
    """The largest difference, if it is small enough.

    Raises:
        JobError: A batch differs by more, or is not finite.
    """
    worst = max(comparisons, key=lambda c: c.max_abs_diff_rad)
    if not worst.max_abs_diff_rad <= max_abs_diff_rad:
        raise JobError(
            f"the exported graph differs from the checkpoint by {worst.max_abs_diff_rad:.3g} rad "
            f"({worst.name} inputs, batch {worst.batch}); at most {max_abs_diff_rad:.3g} rad is accepted"
        )
    return worst.max_abs_diff_rad


def _compare(reference: Model, exported: Model, name: str, inputs: Inputs) -> Comparison:
    expected, actual = reference(inputs), exported(inputs)
    if expected.shape != actual.shape:
        raise JobError(f"the graph gives shape {actual.shape}; the checkpoint gives {expected.shape}")
    difference = np.abs(expected.astype(np.float64) - actual).max()
    return Comparison(name, len(expected), float(difference) if np.isfinite(difference) else float("inf"))
