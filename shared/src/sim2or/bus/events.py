"""What happened: one append-only, replayable stream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, cast

from pydantic import ValidationError
from redis import Redis

from sim2or.bus.jobs import redis_errors
from sim2or.errors import MessageError
from sim2or.messages.codec import explain
from sim2or.messages.event import Event

STREAM = "events"
START = "0-0"
_BLOCK_S = 1.0

Entry = tuple[str, dict[str, str]]


class Events:
    """Reads and appends events. Jobs append their own, in the same step that changes them.

    Args:
        redis: A client from ``connect``.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def append(self, event: Event) -> str:
        """Writes an event and returns its id."""
        fields: dict[Any, Any] = event.model_dump(exclude={"id", "detail"})
        with redis_errors():
            return str(self._redis.xadd(STREAM, {**fields, "detail": json.dumps(event.detail)}))

    def last(self) -> str:
        """Returns the id of the newest event, to follow from here on."""
        with redis_errors():
            newest = cast("list[Entry]", self._redis.xrevrange(STREAM, count=1))
        return newest[0][0] if newest else START

    def read(self, after: str = START, *, count: int = 1000) -> list[Event]:
        """Returns at most ``count`` events that follow the id ``after``."""
        with redis_errors():
            entries = cast("list[Entry]", self._redis.xrange(STREAM, f"({after}", "+", count))
        return [_event(*entry) for entry in entries]

    def follow(self, after: str = START, *, timeout_s: float) -> Iterator[Event]:
        """Yields events as they come, until none came for ``timeout_s`` [s]."""
        deadline = time.monotonic() + timeout_s
        while (remaining_s := deadline - time.monotonic()) > 0:
            block_ms = max(1, int(min(remaining_s, _BLOCK_S) * 1000))
            with redis_errors():
                reply = cast(
                    "list[tuple[str, list[Entry]]]", self._redis.xread({STREAM: after}, 1000, block_ms)
                )
            for entry in reply[0][1] if reply else []:
                after, deadline = entry[0], time.monotonic() + timeout_s
                yield _event(*entry)


def _event(identity: str, fields: dict[str, str]) -> Event:
    try:
        return Event(
            id=identity,
            kind=fields["kind"],
            run_id=fields.get("run_id", ""),
            job_id=fields.get("job_id", ""),
            stage=fields.get("stage", ""),
            worker=fields.get("worker", ""),
            attempt=int(fields.get("attempt", 0)),
            traceparent=fields.get("traceparent", ""),
            detail=json.loads(fields.get("detail", "{}")),
        )
    except (ValidationError, KeyError, ValueError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else repr(error)
        raise MessageError(f"event {identity} cannot be read: {reason}") from error
