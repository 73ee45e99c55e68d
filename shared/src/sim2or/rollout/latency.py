"""Injected latency: a simulated actor's answer arrives ticks after its question, as on a robot."""

from __future__ import annotations

from collections import deque

from sim2or.errors import ConfigError


class DelayLine[T]:
    """Delivers items a fixed number of ticks after they were put in, in order.

    Args:
        ticks: Delay [control ticks], ≥ 0.

    Raises:
        ConfigError: The delay is negative.
    """

    def __init__(self, ticks: int) -> None:
        if ticks < 0:
            raise ConfigError(f"latency_ticks is {ticks}; it must be 0 or more")
        self.ticks = ticks
        self._items: deque[tuple[int, T]] = deque()

    def put(self, item: T, tick: int) -> None:
        """Puts an item in at ``tick``; it is due at ``tick + ticks``."""
        self._items.append((tick + self.ticks, item))

    def due(self, tick: int) -> list[T]:
        """Takes out what is due at ``tick``."""
        items: list[T] = []
        while self._items and self._items[0][0] <= tick:
            items.append(self._items.popleft()[1])
        return items
