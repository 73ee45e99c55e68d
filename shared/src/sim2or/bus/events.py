"""What happened: one append-only, replayable stream.

Events are the record: nothing trims them by itself, nor the records of jobs (``jobs:all``). A job that runs
once takes about 3 kB of Redis's memory with its events; ``sim2or jobs prune`` forgets what ended longer ago
than a person says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, cast

import structlog
from pydantic import ValidationError
from redis import Redis

from sim2or.bus.jobs import redis_errors
from sim2or.errors import MessageError
from sim2or.messages.codec import explain
from sim2or.messages.event import Event

log = structlog.get_logger()

STREAM = "events"
START = "0-0"
_BLOCK_S = 1.0

Entry = tuple[str, dict[str, str]]
Entries = list[Entry]


class Events:
    """Reads and appends events. Jobs append their own, in the same step that changes them.

    Args:
        redis: A client from ``connect``.

    Attributes:
        malformed: Events that this version could not read and passed over.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.malformed = 0

    def append(self, event: Event) -> str:
        """Writes an event and returns its id."""
        fields: dict[Any, Any] = dict(event_fields(event))
        with redis_errors():
            return str(self._redis.xadd(STREAM, fields))

    def last(self) -> str:
        """Returns the id of the newest event, to follow from here on."""
        with redis_errors():
            newest = cast("list[Entry]", self._redis.xrevrange(STREAM, count=1))
        return newest[0][0] if newest else START

    def read(self, after: str = START, *, count: int = 1000) -> list[Event]:
        """Returns at most ``count`` events that follow the id ``after``; empty only at the end."""
        events: list[Event] = []
        while not events and (entries := self._page(after, count)):
            events, after = list(self._readable(entries)), entries[-1][0]
        return events

    def follow(self, after: str = START, *, timeout_s: float) -> Iterator[Event]:
        """Yields events as they come, until none came for ``timeout_s`` [s]."""
        deadline = time.monotonic() + timeout_s
        while (remaining_s := deadline - time.monotonic()) > 0:
            for entry in self._next(after, remaining_s):
                after, deadline = entry[0], time.monotonic() + timeout_s
                yield from self._readable([entry])

    def _page(self, after: str, count: int) -> Entries:
        with redis_errors():
            return cast("list[Entry]", self._redis.xrange(STREAM, f"({after}", "+", count))

    def _next(self, after: str, timeout_s: float) -> Entries:
        block_ms = max(1, int(min(timeout_s, _BLOCK_S) * 1000))
        with redis_errors():
            reply = cast("list[tuple[str, list[Entry]]]", self._redis.xread({STREAM: after}, 1000, block_ms))
        return reply[0][1] if reply else []

    def _readable(self, entries: Entries) -> Iterator[Event]:
        for entry in entries:
            try:
                yield parse_event(*entry)
            except MessageError as error:
                self.malformed += 1
                log.warning("event passed over", reason=str(error))


def event_fields(event: Event) -> dict[str, str]:
    """Writes an event as text by name, without its id."""
    plain = event.model_dump(exclude={"id", "detail"})
    return {name: str(value) for name, value in plain.items()} | {"detail": json.dumps(event.detail)}


def parse_event(identity: str, fields: dict[str, str]) -> Event:
    """Reads an event of the stream.

    Raises:
        MessageError: This version cannot read it.
    """
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
    except (ValidationError, KeyError, ValueError, RecursionError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else repr(error)
        raise MessageError(f"event {identity} cannot be read: {reason}") from error
