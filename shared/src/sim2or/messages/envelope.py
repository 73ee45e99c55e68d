"""The envelope around every live message: who, when, why, and until when."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import AfterValidator, Field

from sim2or.clock import boot_id, now_ns, utc_now
from sim2or.messages.message import Message
from sim2or.messages.observation import Count, Name
from sim2or.tracing import TRACEPARENT, environment_traceparent, new_traceparent


def uuid7() -> UUID:
    """Makes an identifier that sorts by time. Source: RFC 9562 §5.7 (48 bits of time, 74 random)."""
    random = int.from_bytes(os.urandom(10))
    milliseconds = time.time_ns() // 1_000_000
    value = (
        (milliseconds & (1 << 48) - 1) << 80
        | 0x7 << 76
        | (random >> 68) << 64
        | 0b10 << 62
        | random & (1 << 62) - 1
    )
    return UUID(int=value)


def _fits(number: int) -> int:
    """Refuses what no counter or clock ever reaches, and what overflows where it is counted."""
    if number >= 1 << 63:
        raise ValueError("must be less than 2**63")
    return number


class Envelope(Message):
    """What every message says about itself.

    Attributes:
        v: Version of the envelope itself.
        id: Names this message.
        type: Message type, for example ``"robot_state"``.
        version: Schema version of the message type, ``major.minor``.
        run_id: The run it belongs to; empty outside runs.
        correlation_id: Shared by everything that answers one question (a run, a request).
        causation_id: The message that caused this one.
        traceparent: W3C trace context.
        source: Who sent it: service, process.
        session: A source's life; a restart begins a new session.
        seq: Grows by one with each message of (source, session, type).
        mono_ns: Source's monotonic clock at sending [ns]; comparable on one boot only.
        boot_id: The boot that ``mono_ns`` counts from.
        utc: Wall time for people; never used for ages.
        deadline_ms: Useless this long after ``mono_ns`` [ms]; None: never.
        calibration: Digest of the calibration that the numbers depend on, where one applies.
    """

    type_name: ClassVar[str] = "envelope"

    v: Literal[1] = 1
    id: UUID
    type: Name
    version: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    run_id: Name = ""
    correlation_id: UUID | None = None
    causation_id: UUID | None = None
    traceparent: Annotated[str, Field(pattern=TRACEPARENT)]
    source: Name
    session: Name
    seq: Annotated[Count, AfterValidator(_fits)]
    mono_ns: Annotated[Count, AfterValidator(_fits)]
    boot_id: Name
    utc: Name
    deadline_ms: Annotated[float, Field(gt=0)] | None = None
    calibration: Name | None = None

    def expired(self, now: int) -> bool:
        """Whether the deadline has passed at ``now`` [ns] on the clock of this message's boot."""
        return self.deadline_ms is not None and now - self.mono_ns > self.deadline_ms * 1e6


class Origin:
    """Stamps the envelopes of one sender.

    Args:
        source: Who sends, for example ``"bridge"``.
        session: The sender's life; a new random one when empty.
        run_id: The run it works for.
        calibration: Digest of the calibration behind its numbers.
        clock: Monotonic clock [ns].
        traceparent: The trace it works for; the process's own, from ``TRACEPARENT``, when None.
    """

    def __init__(
        self,
        source: str,
        *,
        session: str = "",
        run_id: str = "",
        calibration: str | None = None,
        clock: Callable[[], int] = now_ns,
        traceparent: str | None = None,
    ) -> None:
        self.source = source
        self.session = session or str(uuid7())
        self.run_id = run_id
        self.calibration = calibration
        self.traceparent = environment_traceparent() if traceparent is None else traceparent
        self._clock = clock
        self._counts: dict[str, count[int]] = {}

    def envelope(
        self,
        message: Message,
        *,
        cause: Envelope | None = None,
        deadline_ms: float | None = None,
        sampled: bool = True,
    ) -> Envelope:
        """Makes the envelope of a message, correlated with the message that caused it.

        Args:
            message: What is sent.
            cause: The message that it follows from; its trace goes on, else the sender's.
            deadline_ms: Useless this long after sending [ms].
            sampled: Whether the work behind it may be exported as a span.
        """
        identity = uuid7()
        return Envelope(
            id=identity,
            type=message.type_name,
            version=message.schema_version,
            run_id=cause.run_id if cause and cause.run_id else self.run_id,
            correlation_id=(cause.correlation_id or cause.id) if cause else identity,
            causation_id=cause.id if cause else None,
            traceparent=new_traceparent(cause.traceparent if cause else self.traceparent, sampled=sampled),
            source=self.source,
            session=self.session,
            seq=next(self._counts.setdefault(message.type_name, count())),
            mono_ns=self._clock(),
            boot_id=boot_id(),
            utc=utc_now(),
            deadline_ms=deadline_ms,
            calibration=self.calibration,
        )
