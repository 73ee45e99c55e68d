"""Logs: what is said too often is dropped, and counted."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog
from sim2or import log
from structlog import DropEvent


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the lines of this process go, until the test is over."""
    lines = io.StringIO()
    log.configure("toy", stream=lines)
    yield lines
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_flood_of_warnings_leaves_a_few_lines() -> None:
    """A thousand alike within a second leave ten; the next second's first line says how many were dropped."""
    now_s = 5.0
    limit = log.Limit(per_s=10, now_s=lambda: now_s)

    def say(event: str, method: str = "warning") -> dict | None:
        try:
            return limit(None, method, {"event": event})
        except DropEvent:
            return None

    assert sum(say("refused") is not None for _ in range(1000)) == 10
    assert say("refused", "error") == {"event": "refused"}
    assert say("something else") == {"event": "something else"}
    now_s = 6.0
    assert say("refused") == {"event": "refused", "dropped": 990}
    assert say("refused") == {"event": "refused"}


def test_every_unit_of_work_has_its_line(stream: io.StringIO) -> None:
    """Lines about work that was done are never dropped; a flood of warnings beside them is."""
    for number in range(500):
        log.get_logger().info("job", number=number)
        log.get_logger().warning("question refused", number=number)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sum(line["event"] == "job" for line in lines) == 500
    assert sum(line["event"] == "question refused" for line in lines) <= 100
