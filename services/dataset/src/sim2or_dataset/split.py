"""Training and validation, split by parent demonstration so that siblings never meet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence


def validation_parents(parents: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """Chooses which parents are held out: the same ones whatever their order.

    Args:
        parents: Parent of each episode; repeats are siblings.
        fraction: Share of distinct parents to hold out, 0 ≤ fraction < 1.
        seed: Chooses which.

    Returns:
        ``round(fraction * n)`` parents, at least one when the fraction is positive and there are two or more.
    """
    distinct = sorted(set(parents), key=lambda parent: hashlib.sha256(f"{seed}:{parent}".encode()).digest())
    wanted = round(fraction * len(distinct))
    if fraction > 0 and len(distinct) > 1:
        wanted = min(max(wanted, 1), len(distinct) - 1)
    return frozenset(distinct[:wanted])


def train_first(parents: Sequence[str], held_out: frozenset[str]) -> tuple[list[int], int]:
    """Orders episodes so that each split is one range.

    Args:
        parents: Parent of each episode.
        held_out: Parents of the validation split.

    Returns:
        Episode numbers, training first, each split in the given order; and how many of them are for training.
    """
    train = [number for number, parent in enumerate(parents) if parent not in held_out]
    validation = [number for number, parent in enumerate(parents) if parent in held_out]
    return train + validation, len(train)
