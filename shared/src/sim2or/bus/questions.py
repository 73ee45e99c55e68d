"""The spans of questions that one process asks another."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sim2or.messages.envelope import Envelope
from sim2or.tracing import exporting, is_sampled, record

QUESTION_PERIOD_NS = 1_000_000_000
"""One question a second of each kind is traced: a 30 Hz loop would drown everything else."""

MAX_OPEN = 64


@dataclass(frozen=True)
class _Asked:
    """A question that is traced and has no answer yet."""

    name: str
    identity: UUID
    own: str
    parent: str
    started_ns: int


class Questions:
    """The spans of one client's questions: of each kind at most one a second, and whatever follows from it.

    The choice travels as the traceparent's flag, so that whoever answers traces the same questions.

    Args:
        parent: The trace that the questions belong to.
    """

    def __init__(self, parent: str) -> None:
        self._parent = parent
        self._next_ns: dict[str, int] = {}
        self._open: dict[UUID, _Asked] = {}

    def sampled(self, kind: str, asked_ns: int) -> bool:
        """Whether a question of this kind is traced that is asked now."""
        return asked_ns >= self._next_ns.get(kind, 0)

    def asked(self, envelope: Envelope) -> None:
        """Remembers a question that was sent."""
        if not is_sampled(envelope.traceparent):
            return
        self._next_ns[envelope.type] = envelope.mono_ns + QUESTION_PERIOD_NS
        if exporting():
            if len(self._open) >= MAX_OPEN:
                self._open.clear()
            self._open[envelope.id] = _Asked(
                f"ask {envelope.type}", envelope.id, envelope.traceparent, self._parent, envelope.mono_ns
            )

    def answered(self, identity: UUID, *, kind: str, error: str = "") -> None:
        """Tells of a question that was answered, or given up with an ``error``."""
        asked = self._open.pop(identity, None) if self._open else None
        if asked:
            record(
                asked.name,
                own=asked.own,
                parent=asked.parent,
                started_ns=asked.started_ns,
                kind="client",
                error=error,
                answer=kind,
            )
