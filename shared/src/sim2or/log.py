"""Logs: one structured line per unit of work, on stdout; readable on a terminal, JSON elsewhere."""

from __future__ import annotations

import sys
from typing import Any, TextIO

import structlog


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
