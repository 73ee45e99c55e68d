"""Logs: one structured line per unit of work, on stdout; readable on a terminal, JSON elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

import structlog

WARNINGS_PER_S = 10
"""Of one kind: a flood of bad messages is no flood of lines. All that happens is counted elsewhere."""


class Limit:
    """A structlog processor that drops warnings of one kind beyond so many a second, and says how many.

    Args:
        per_s: How many lines of one event pass in a second.
        now_s: Monotonic time [s].
    """

    def __init__(self, per_s: int = WARNINGS_PER_S, now_s: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._now_s = now_s
        self._said: dict[str, list[int]] = {}

    def __call__(self, _: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Passes the line, with ``dropped=n`` after lines that were dropped."""
        if method != "warning":
            return line
        second = int(self._now_s())
        said = self._said.setdefault(line["event"], [second, 0, 0])
        if said[0] != second:
            said[:2] = second, 0
        said[1] += 1
        if said[1] > self._per_s:
            said[2] += 1
            raise structlog.DropEvent
        if said[2]:
            line["dropped"], said[2] = said[2], 0
        return line


def configure(service: str, *, stream: TextIO | None = None) -> None:
    """Sets the format of all logs of this process.

    Args:
        service: Bound to every line.
        stream: Where lines go; stdout by default.
    """
    out = stream or sys.stdout
    people = out.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            Limit(),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(service=service)


def get_logger(**bound: Any) -> Any:
    """A logger that adds ``bound`` to its lines."""
    return structlog.get_logger(**bound)
