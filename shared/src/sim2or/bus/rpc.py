"""Questions with a deadline, over ROUTER and DEALER.

A client never waits past its deadline and reconnects by itself; a server answers the newest question of each
session and says "expired" to the older ones, so nothing old is ever computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import structlog
import zmq
from pydantic import ValidationError
from pydantic_core import from_json

from sim2or.bus import sockets
from sim2or.bus.handler import HandlerThread, Outcome
from sim2or.bus.keys import Keyring
from sim2or.bus.labels import socket_labels
from sim2or.bus.questions import Questions
from sim2or.bus.ring import (
    Opened,
    Overwritten,
    Ring,
    Rings,
    Slot,
    Unattached,
    attached,
    local,
    note_of,
    noted,
)
from sim2or.clock import boot_id, now_ns
from sim2or.counts import LIVE
from sim2or.errors import MessageError, TransientError
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.array import Buffer, size_bytes
from sim2or.messages.codec import decode, encode
from sim2or.messages.envelope import Envelope, Origin
from sim2or.messages.message import Message
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.topics import TOPICS, high_water_mark
from sim2or.tracing import record

log = structlog.get_logger()

_MAX_PENDING = 1000
_MAX_DEADLINE_MS = 86_400_000.0
_UNANSWERED = frozenset(name for name, row in TOPICS.items() if row.policy == "never-late")


@dataclass(frozen=True)
class Reply[A: Message]:
    """An answer that came in time.

    Attributes:
        request_id: Which question it answers.
        message: The answer.
        envelope: The answer's envelope.
        waited_s: Time since the question was sent, by the client's clock [s].
    """

    request_id: UUID
    message: A
    envelope: Envelope
    waited_s: float


@dataclass
class ClientCounts:
    """What a client has seen.

    Attributes:
        sent: Questions sent.
        unsent: Questions refused because no server was connected or its queue was full.
        answered: Answers in time.
        late: Answers after the deadline, or to no question of ours; never handed out.
        expired: Questions whose deadline passed without an answer.
        malformed: Answers that could not be read.
        refused: Connections that failed because one end does not accept the other's key.
        sent_bytes: Bytes of all questions, those in shared memory included.
        received_bytes: Bytes of all answers.
        ring_frames: Large frames that went through shared memory.
        resent: Questions sent again as plain frames because the server could not open the shared memory.
    """

    sent: int = 0
    unsent: int = 0
    answered: int = 0
    late: int = 0
    expired: int = 0
    malformed: int = 0
    refused: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    ring_frames: int = 0
    resent: int = 0


@dataclass
class _Asked:
    """A question that waits for its answer.

    Attributes:
        sent_ns: When it was sent [ns].
        deadline_ns: Useless after this [ns].
        slot: Where its large frames lie; None when they travelled with it.
        frames: All of it, kept while it could have to be sent again.
        expects: Whether an answer is expected; a command is only answered when it is refused.
    """

    sent_ns: int
    deadline_ns: int
    slot: Slot | None
    frames: list[Buffer] | None
    expects: bool = True


class Client[A: Message]:
    """Asks one server; use it from one thread.

    Args:
        endpoint: ``ipc://…`` or tcp.
        origin: Stamps the questions.
        answers: Message types that may come back.
        hwm: Messages that may queue; from the topic table when None.
        keys: Of the service that asks; needed beyond loopback.
        server: Whose public key is expected, where there are keys.
        ring: Whether large frames go through shared memory where the server can open it.
    """

    def __init__(
        self,
        endpoint: str,
        origin: Origin,
        *answers: type[A],
        hwm: int | None = None,
        keys: Keyring | None = None,
        server: str = "",
        ring: bool = True,
    ) -> None:
        self.endpoint = endpoint
        self.counts = ClientCounts()
        LIVE.watch(self, self.counts, **socket_labels(answers))
        self._origin = origin
        self._traced = Questions(origin.traceparent)
        self._answers = answers
        self._pending: dict[UUID, _Asked] = {}
        self._inbox: deque[Reply[A]] = deque()
        self._ring = Ring() if ring and local(endpoint) else None
        self._attached = b""
        identity = f"{origin.source}/{origin.session}".encode()[:255]
        self._socket = sockets.open_socket(
            zmq.DEALER, hwm=hwm or high_water_mark(*answers), identity=identity
        )
        sockets.connect(self._socket, endpoint, keys=keys, server=server, counts=self.counts)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)

    def send(self, request: Message, *, deadline_s: float) -> UUID | None:
        """Asks without waiting.

        Args:
            request: The question.
            deadline_s: The answer is useless later than this [s].

        Returns:
            The question's id; None when no server is connected or its queue is full.
        """
        expects = request.type_name not in _UNANSWERED
        sampled = expects and self._traced.sampled(request.type_name, now_ns())
        envelope = self._origin.envelope(request, deadline_ms=deadline_s * 1000, sampled=sampled)
        deadline_ns = envelope.mono_ns + int(deadline_s * 1e9)
        frames = encode(request, envelope)
        wire, slot = self._placed(frames, deadline_ns)
        if not sockets.send(self._socket, wire):
            self.counts.unsent += 1
            if slot:
                slot.free()
            return None
        self.counts.sent += 1
        self.counts.sent_bytes += size_bytes(frames)
        self.counts.ring_frames += len(slot.place.parts) if slot else 0
        self._traced.asked(envelope)
        self._expire()
        while len(self._pending) >= _MAX_PENDING:
            self._forget(next(iter(self._pending)))
            self.counts.expired += 1
        asked = _Asked(envelope.mono_ns, deadline_ns, slot, frames if slot else None, expects)
        self._pending[envelope.id] = asked
        return envelope.id

    def poll(self, timeout_s: float = 0.0) -> Reply[A] | None:
        """Returns the next answer that is in time, waiting at most ``timeout_s`` [s]."""
        if self._inbox:
            return self._inbox.popleft()
        end_ns = now_ns() + int(timeout_s * 1e9)
        ready = _ready(self._socket, zmq.POLLIN)
        while True:
            while ready and (frames := sockets.receive(self._socket)):
                reply = self._read(frames)
                if reply:
                    return reply
            remaining_ms = (end_ns - now_ns()) / 1e6
            if remaining_ms <= 0:
                self._expire()
                return None
            ready = bool(self._poller.poll(max(1, round(remaining_ms))))

    def call(self, request: Message, *, deadline_s: float) -> A:
        """Asks and waits.

        Raises:
            TransientError: No answer before the deadline.
        """
        end_ns = now_ns() + int(deadline_s * 1e9)
        identity = None
        while identity is None:
            remaining_s = (end_ns - now_ns()) / 1e9
            wait_ms = max(1, round(remaining_s * 1000))
            if remaining_s <= 0 or not (
                _ready(self._socket, zmq.POLLOUT) or self._socket.poll(wait_ms, zmq.POLLOUT)
            ):
                failed = self.counts.refused
                said = f": {failed} handshakes failed, see SIM2OR_KEYS" if failed else ""
                raise TransientError(f"no server at {self.endpoint} within {deadline_s:g} s{said}")
            identity = self.send(request, deadline_s=remaining_s)
        return self.wait(identity, deadline_s=(end_ns - now_ns()) / 1e9)

    def wait(self, identity: UUID, *, deadline_s: float) -> A:
        """Waits for the answer to a question that was sent.

        Raises:
            TransientError: No answer before the deadline.
        """
        end_ns = now_ns() + int(deadline_s * 1e9)
        others: list[Reply[A]] = []
        try:
            while (remaining_s := (end_ns - now_ns()) / 1e9) > 0:
                reply = self.poll(remaining_s)
                if reply and reply.request_id == identity:
                    return reply.message
                if reply:
                    others.append(reply)
        finally:
            self._inbox.extend(others)
        raise TransientError(f"no answer from {self.endpoint} within {deadline_s:g} s")

    def close(self) -> None:
        """Closes the socket; open questions are forgotten."""
        self._socket.close()
        if self._ring:
            self._ring.close()

    def _read(self, frames: list[memoryview]) -> Reply[A] | None:
        self.counts.received_bytes += size_bytes(frames)
        try:
            envelope, message = decode(frames, *self._answers)
        except MessageError as error:
            self.counts.malformed += 1
            log.warning("answer refused", endpoint=self.endpoint, reason=str(error))
            return None
        now = now_ns()
        asked = self._forget(envelope.causation_id)
        if asked is None or now > asked.deadline_ns:
            self.counts.late += 1
            return None
        assert envelope.causation_id is not None
        if not self._opened(frames) and asked.slot:
            self._resend(envelope.causation_id, asked)
            return None
        self.counts.answered += 1
        self._traced.answered(
            envelope.causation_id, kind=message.type_name, error=getattr(message, "code", "")
        )
        return Reply(envelope.causation_id, message, envelope, (now - asked.sent_ns) / 1e9)

    def _placed(self, frames: list[Buffer], until_ns: int) -> tuple[list[Buffer], Slot | None]:
        """The message as it travels: in the ring when the server has attached it, else with an offer."""
        if self._ring is None:
            return frames, None
        if not self._attached or self._attached != self._ring.token:
            return self._ring.offer(frames), None
        return self._ring.place(frames, until_ns=until_ns)

    def _opened(self, frames: Sequence[Buffer]) -> bool:
        """Whether an answer says that the server has attached the ring."""
        if self._ring is None or not self._ring.token or note_of(frames) != attached(self._ring.token):
            return False
        self._attached = self._ring.token
        return True

    def _resend(self, identity: UUID, asked: _Asked) -> None:
        """Asks again without the ring: this server cannot open it, or knows of none."""
        self._attached = b""
        if asked.frames and sockets.send(self._socket, asked.frames):
            self.counts.resent += 1
            self._pending[identity] = _Asked(asked.sent_ns, asked.deadline_ns, None, None)

    def _forget(self, identity: UUID | None) -> _Asked | None:
        asked = self._pending.pop(identity, None) if identity else None
        if asked and asked.slot:
            asked.slot.free()
        return asked

    def _expire(self) -> None:
        now = now_ns()
        for identity in [one for one, asked in self._pending.items() if now > asked.deadline_ns]:
            asked = self._forget(identity)
            self.counts.expired += bool(asked and asked.expects)
            self._traced.answered(identity, kind="none", error="no answer before the deadline")


@dataclass(frozen=True)
class Request[Q: Message]:
    """A question that waits for its answer.

    Attributes:
        peer: The client's name on the socket.
        envelope: The question's envelope.
        message: The question.
        deadline_ns: Useless after this, by this process's clock [ns]; None: never.
        received_ns: When it was read, by this process's clock [ns].
        ring: Names the client's shared memory that this server has attached.
    """

    peer: bytes
    envelope: Envelope
    message: Q
    deadline_ns: int | None
    received_ns: int = 0
    ring: bytes = b""

    @property
    def session(self) -> tuple[bytes, str]:
        """Whose newest question wins."""
        return self.peer, self.envelope.type


@dataclass
class RouterCounts:
    """What a server has seen.

    Attributes:
        received: Questions read.
        answered: Answers sent by the application.
        superseded: Questions replaced by a newer one of the same session.
        expired: Questions whose deadline passed before work on them began.
        busy: Questions refused because too many waited.
        failed: Questions whose handler failed.
        malformed: Messages that could not be read.
        unroutable: Answers whose client had gone or did not read.
        refused: Connections turned away: an unknown key, no encryption, or another server's key expected.
        sent_bytes: Bytes of all answers.
        received_bytes: Bytes of all questions, those in shared memory included.
        ring_frames: Large frames that came through shared memory.
        torn: Questions whose shared memory had been written again, past their deadline; never used.
        unattached: Questions in shared memory that cannot be opened here; they come again as plain frames.
    """

    received: int = 0
    answered: int = 0
    superseded: int = 0
    expired: int = 0
    busy: int = 0
    failed: int = 0
    malformed: int = 0
    unroutable: int = 0
    refused: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    ring_frames: int = 0
    torn: int = 0
    unattached: int = 0


class Router[Q: Message]:
    """The server's socket: reads questions, sends answers; use it from one thread.

    Args:
        endpoint: Where to listen; port ``*`` takes a free one, ``self.endpoint`` says which.
        origin: Stamps the answers.
        questions: Message types that are accepted.
        error: Makes refusals.
        hwm: Messages that may queue per client; from the topic table when None.
        keys: Of the service that listens; needed beyond loopback.
        ring: Whether clients may hand over large frames in shared memory.
    """

    def __init__(
        self,
        endpoint: str,
        origin: Origin,
        *questions: type[Q],
        error: Callable[..., Message] = PolicyError,
        hwm: int | None = None,
        keys: Keyring | None = None,
        ring: bool = True,
    ) -> None:
        self.counts = RouterCounts()
        self._rings = Rings() if ring and local(endpoint) else None
        LIVE.watch(self, self.counts, **socket_labels(questions, server=origin.source))
        self._origin = origin
        self._questions = questions
        self._error = error
        self.socket = sockets.open_socket(zmq.ROUTER, hwm=hwm or high_water_mark(*questions))
        sockets.bind(self.socket, endpoint, keys=keys, counts=self.counts)
        self.endpoint = sockets.address(self.socket)
        self._poller = zmq.Poller()
        self._poller.register(self.socket, zmq.POLLIN)

    def receive(self, timeout_s: float = 0.0) -> Request[Q] | None:
        """Returns the next question, waiting at most ``timeout_s`` [s]; unreadable ones are refused."""
        end_ns = now_ns() + int(timeout_s * 1e9)
        ready = _ready(self.socket, zmq.POLLIN)
        while True:
            while ready and (frames := sockets.receive(self.socket)):
                request = self._read(bytes(frames[0]), frames[1:])
                if request:
                    return request
            remaining_ms = (end_ns - now_ns()) / 1e6
            if remaining_ms <= 0:
                return None
            ready = bool(self._poller.poll(max(1, round(remaining_ms))))

    def answer(self, request: Request[Q], message: Message) -> bool:
        """Answers a question; False when its client has gone or does not read."""
        self.counts.answered += 1
        return self._reply(request, message)

    def refuse(self, request: Request[Q], code: str, detail: str) -> bool:
        """Answers a question with an explicit error."""
        return self._reply(request, self._error(code=code, detail=detail))

    def close(self) -> None:
        """Closes the socket."""
        self.socket.close()
        if self._rings:
            self._rings.close()

    def _read(self, peer: bytes, frames: list[memoryview]) -> Request[Q] | None:
        ring = b""
        try:
            opened = self._rings.open(frames) if self._rings else Opened(frames)
            ring = opened.token
            envelope, message = decode(opened.frames, *self._questions)
        except MessageError as error:
            self._turn_away(peer, frames, error, ring)
            return None
        self.counts.received += 1
        self.counts.received_bytes += size_bytes(opened.frames)
        self.counts.ring_frames += opened.placed
        return Request(peer, envelope, message, _deadline_ns(envelope), now_ns(), ring)

    def _turn_away(self, peer: bytes, frames: list[memoryview], error: MessageError, ring: bytes) -> None:
        """Counts a message that cannot be read and says why; without ``ring`` it comes again without one."""
        self.counts.received_bytes += size_bytes(frames)
        self.counts.torn += isinstance(error, Overwritten)
        self.counts.unattached += isinstance(error, Unattached)
        self.counts.malformed += not isinstance(error, Overwritten | Unattached)
        log.warning("question refused", endpoint=self.endpoint, reason=str(error))
        code = "expired" if isinstance(error, Overwritten) else "refused"
        refusal = self._error(code=code, detail=str(error)[:2000])
        self._send(peer, refusal, _readable_envelope(frames), ring)

    def _reply(self, request: Request[Q], message: Message) -> bool:
        return self._send(request.peer, message, request.envelope, request.ring, request.received_ns)

    def _send(
        self,
        peer: bytes,
        message: Message,
        cause: Envelope | None,
        ring: bytes = b"",
        received_ns: int | None = None,
    ) -> bool:
        envelope = self._origin.envelope(message, cause=cause)
        frames = encode(message, envelope)
        self.counts.sent_bytes += size_bytes(frames)
        if ring:
            frames[0] = noted(frames[0], attached(ring))
        sent = sockets.send(self.socket, [peer, *frames])
        self.counts.unroutable += not sent
        if cause and received_ns:
            record(
                f"answer {cause.type}",
                own=envelope.traceparent,
                parent=cause.traceparent,
                started_ns=received_ns,
                kind="server",
                error=getattr(message, "code", ""),
                answer=message.type_name,
            )
        return sent


def _ready(socket: sockets.Zmq, event: int) -> bool:
    """Whether a socket can be read or written now; asking costs less than an attempt that fails."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & event)


def _deadline_ns(envelope: Envelope) -> int | None:
    """When a question becomes useless by this host's clock; counted from arrival for another host."""
    if envelope.deadline_ms is None:
        return None
    start_ns = envelope.mono_ns if envelope.boot_id == boot_id() else now_ns()
    return start_ns + int(min(envelope.deadline_ms, _MAX_DEADLINE_MS) * 1e6)


def _readable_envelope(frames: Sequence[Buffer]) -> Envelope | None:
    """Returns the envelope of a message whose payload is wrong, so that the refusal finds its question."""
    with suppress(ValueError, ValidationError, KeyError, IndexError, TypeError, RecursionError):
        content = from_json(bytes(frames[1]))["envelope"]
        return Envelope.model_validate(content, strict=False, extra="ignore")
    return None


class ServerLoop[Q: Message, A: Message]:
    """Answers the newest question of each session with a handler that takes a batch.

    The socket is served while the handler works in its own thread, so that clients hear "busy" or "expired"
    at once.

    Args:
        endpoint: Where to listen.
        handler: Takes questions of different sessions, returns one answer for each, in order.
        origin: Stamps the answers.
        questions: Message types that are accepted.
        error: Makes refusals.
        max_batch: Questions handed to the handler at once.
        max_waiting: Sessions that may wait; further ones are told "busy".
        keys: Of the service that listens; needed beyond loopback.
        ring: Whether clients may hand over large frames in shared memory.
    """

    def __init__(
        self,
        endpoint: str,
        handler: Callable[[list[Q]], Sequence[A]],
        *questions: type[Q],
        origin: Origin,
        error: Callable[..., Message] = PolicyError,
        max_batch: int = 32,
        max_waiting: int = 64,
        keys: Keyring | None = None,
        ring: bool = True,
    ) -> None:
        self.router: Router[Q] = Router(endpoint, origin, *questions, error=error, keys=keys, ring=ring)
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: dict[tuple[bytes, str], Request[Q]] = {}
        self._batch: list[Request[Q]] = []
        self._handler = HandlerThread(handler)
        self._poller = zmq.Poller()
        self._poller.register(self.router.socket, zmq.POLLIN)
        self._poller.register(self._handler.done, zmq.POLLIN)

    @property
    def counts(self) -> RouterCounts:
        """What was received, answered and refused so far."""
        return self.router.counts

    def run(self, stopped: Callable[[], bool]) -> None:
        """Serves until ``stopped()``, which is asked at least ten times a second, then closes."""
        try:
            while not stopped():
                self.step(0.1)
        finally:
            self.close()

    def step(self, timeout_s: float) -> None:
        """Waits for something to happen, at most ``timeout_s`` [s], and does what can be done."""
        self._poller.poll(round(timeout_s * 1000))
        while request := self.router.receive():
            self._admit(request)
        if outcome := self._handler.outcome():
            self._answer(outcome)
        if not self._handler.busy:
            self._begin()

    def close(self) -> None:
        """Stops listening; a handler that still works is not waited for, and its answer goes nowhere."""
        self._handler.close()
        self.router.close()

    def _admit(self, request: Request[Q]) -> None:
        older = self._waiting.pop(request.session, None)
        if older:
            self.counts.superseded += 1
            self.router.refuse(older, "expired", "a newer observation of the same session came")
        if len(self._waiting) >= self._max_waiting:
            self.counts.busy += 1
            self.router.refuse(request, "busy", f"{self._max_waiting} sessions wait already; try again later")
            return
        self._waiting[request.session] = request

    def _begin(self) -> None:
        while self._waiting and len(self._batch) < self._max_batch:
            request = self._waiting.pop(next(iter(self._waiting)))
            if request.deadline_ns is not None and now_ns() > request.deadline_ns:
                self.counts.expired += 1
                self.router.refuse(
                    request, "expired", f"the deadline of {request.envelope.deadline_ms:g} ms passed"
                )
            else:
                self._batch.append(request)
        if self._batch:
            self._handler.begin([request.message for request in self._batch])

    def _answer(self, outcome: Outcome[A]) -> None:
        batch, self._batch = self._batch, []
        if outcome.answers is not None:
            for request, answer in zip(batch, outcome.answers, strict=True):
                self.router.answer(request, answer)
            return
        log.error(
            "handler failed", endpoint=self.router.endpoint, requests=len(batch), exc_info=outcome.error
        )
        self.counts.failed += len(batch)
        for request in batch:
            detail = f"{type(outcome.error).__name__}: {outcome.error}"
            self.router.refuse(request, "failed", detail[:2000])


class PolicyClient(Client[ActionChunk | PolicyError]):
    """Asks a policy server.

    Args:
        endpoint: The server's address.
        origin: Stamps the questions.
        keys: Of the service that asks; needed beyond loopback.
        server: Whose public key is expected, where there are keys.
        ring: Whether large frames go through shared memory where the server can open it.
    """

    def __init__(
        self,
        endpoint: str,
        origin: Origin,
        *,
        keys: Keyring | None = None,
        server: str = "policy",
        ring: bool = True,
    ) -> None:
        super().__init__(endpoint, origin, ActionChunk, PolicyError, keys=keys, server=server, ring=ring)

    def ask(self, request: PolicyRequest) -> UUID | None:
        """Asks without waiting, with the request's own deadline."""
        return self.send(request, deadline_s=request.deadline_ms / 1000)


class PolicyServerLoop(ServerLoop[PolicyRequest, ActionChunk | PolicyError]):
    """Answers policy requests.

    Args:
        endpoint: Where to listen.
        handler: Takes requests of different sessions, returns a chunk or an error for each, in order.
        origin: Stamps the answers.
        max_batch: Requests handed over at once.
        max_waiting: Sessions that may wait.
        keys: Of the policy server; needed beyond loopback.
        ring: Whether clients may hand over large frames in shared memory.
    """

    def __init__(
        self,
        endpoint: str,
        handler: Callable[[list[PolicyRequest]], Sequence[ActionChunk | PolicyError]],
        *,
        origin: Origin | None = None,
        max_batch: int = 32,
        max_waiting: int = 64,
        keys: Keyring | None = None,
        ring: bool = True,
    ) -> None:
        super().__init__(
            endpoint,
            handler,
            PolicyRequest,
            origin=origin or Origin("policy"),
            max_batch=max_batch,
            max_waiting=max_waiting,
            keys=keys,
            ring=ring,
        )
