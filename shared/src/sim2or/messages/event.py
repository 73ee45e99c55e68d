"""What happened, for the append-only stream."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from sim2or.messages.message import Message
from sim2or.messages.observation import Count, Name


class Event(Message):
    """One fact.

    Attributes:
        id: Its place in the stream, ``milliseconds-number`` of Redis's clock; empty until it is written.
        kind: For example ``"job.done"``, ``"artifact.stored"`` or ``"verdict.recorded"``.
        run_id: The run it belongs to.
        job_id: The job it is about.
        stage: That job's stage.
        worker: Who did it.
        attempt: The job's attempt.
        traceparent: W3C trace context of the run that asked first.
        detail: More, as JSON.
    """

    type_name: ClassVar[str] = "event"

    id: Name = ""
    kind: Name
    run_id: Name = ""
    job_id: Name = ""
    stage: Name = ""
    worker: Name = ""
    attempt: Count = 0
    traceparent: str = ""
    detail: dict[str, Any] = Field(default_factory=dict)

    @property
    def time_ms(self) -> int:
        """When it was written, by Redis's clock [ms since 1970]."""
        return int(self.id.split("-")[0] or 0)
