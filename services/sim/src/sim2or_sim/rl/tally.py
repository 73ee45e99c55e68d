"""What finished episodes came to."""

from __future__ import annotations

from torch import Tensor


class Tally:
    """Sums over finished episodes, emptied when they are read."""

    def __init__(self) -> None:
        self._episodes = 0
        self._sums: dict[str, float] = {}

    def add(self, **values: Tensor) -> None:
        """Adds finished episodes: figures by name, each of shape (n,)."""
        self._episodes += len(next(iter(values.values())))
        for name, of_each in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(of_each.sum())

    def take(self) -> dict[str, float]:
        """Means since the last call; empty when no episode ended."""
        episodes, sums = self._episodes, self._sums
        self._episodes, self._sums = 0, {}
        return {name: value / episodes for name, value in sums.items() if episodes}
