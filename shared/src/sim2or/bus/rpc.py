"""Questions with a deadline, over ROUTER and DEALER.

A client never waits past its deadline and reconnects by itself; a server answers the newest question of each
session and says "expired" to the older ones, so nothing old is ever computed.
"""

from __future__ import annotations

import socket as sockets_of_os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import structlog
import zmq
from pydantic import ValidationError
from pydantic_core import from_json

from sim2or.bus import sockets
from sim2or.clock import boot_id, now_ns
from sim2or.errors import MessageError, TransientError
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.array import Buffer
from sim2or.messages.codec import decode, encode
from sim2or.messages.envelope import Envelope, Origin
from sim2or.messages.message import Message
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.topics import high_water_mark

log = structlog.get_logger()

_MAX_PENDING = 1000


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
    """

    sent: int = 0
    unsent: int = 0
    answered: int = 0
    late: int = 0
    expired: int = 0
    malformed: int = 0


class Client[A: Message]:
    """Asks one server; use it from one thread.

    Args:
        endpoint: ``ipc://…`` or loopback tcp.
        origin: Stamps the questions.
        answers: Message types that may come back.
        hwm: Messages that may queue; from the topic table when None.
    """

    def __init__(self, endpoint: str, origin: Origin, *answers: type[A], hwm: int | None = None) -> None:
        self.endpoint = endpoint
        self.counts = ClientCounts()
        self._origin = origin
        self._answers = answers
        self._pending: dict[UUID, tuple[int, int]] = {}
        self._inbox: deque[Reply[A]] = deque()
        identity = f"{origin.source}/{origin.session}".encode()[:255]
        self._socket = sockets.open_socket(
            zmq.DEALER, hwm=hwm or high_water_mark(*answers), identity=identity
        )
        sockets.connect(self._socket, endpoint)

    def send(self, request: Message, *, deadline_s: float) -> UUID | None:
        """Asks without waiting.

        Args:
            request: The question.
            deadline_s: The answer is useless later than this [s].

        Returns:
            The question's id; None when no server is connected or its queue is full.
        """
        envelope = self._origin.envelope(request, deadline_ms=deadline_s * 1000)
        if not sockets.send(self._socket, encode(request, envelope)):
            self.counts.unsent += 1
            return None
        self.counts.sent += 1
        self._expire()
        while len(self._pending) >= _MAX_PENDING:
            del self._pending[next(iter(self._pending))]
            self.counts.expired += 1
        self._pending[envelope.id] = (envelope.mono_ns, envelope.mono_ns + int(deadline_s * 1e9))
        return envelope.id

    def poll(self, timeout_s: float = 0.0) -> Reply[A] | None:
        """Returns the next answer that is in time, waiting at most ``timeout_s`` [s]."""
        if self._inbox:
            return self._inbox.popleft()
        end_ns = now_ns() + int(timeout_s * 1e9)
        while True:
            frames = sockets.receive(self._socket)
            if frames is not None:
                reply = self._read(frames)
                if reply:
                    return reply
                continue
            remaining_ms = (end_ns - now_ns()) / 1e6
            if remaining_ms <= 0:
                self._expire()
                return None
            self._socket.poll(max(1, round(remaining_ms)), zmq.POLLIN)

    def call(self, request: Message, *, deadline_s: float) -> A:
        """Asks and waits.

        Raises:
            TransientError: No answer before the deadline.
        """
        end_ns = now_ns() + int(deadline_s * 1e9)
        identity = None
        while identity is None:
            remaining_s = (end_ns - now_ns()) / 1e9
            if remaining_s <= 0 or not self._socket.poll(max(1, round(remaining_s * 1000)), zmq.POLLOUT):
                raise TransientError(f"no server at {self.endpoint} within {deadline_s:g} s")
            identity = self.send(request, deadline_s=remaining_s)
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

    def _read(self, frames: list[memoryview]) -> Reply[A] | None:
        try:
            envelope, message = decode(frames, *self._answers)
        except MessageError as error:
            self.counts.malformed += 1
            log.warning("answer refused", endpoint=self.endpoint, reason=str(error))
            return None
        now = now_ns()
        sent_ns, deadline_ns = (
            self._pending.pop(envelope.causation_id, (0, 0)) if envelope.causation_id else (0, 0)
        )
        if now > deadline_ns:
            self.counts.late += 1
            return None
        self.counts.answered += 1
        assert envelope.causation_id is not None
        return Reply(envelope.causation_id, message, envelope, (now - sent_ns) / 1e9)

    def _expire(self) -> None:
        now = now_ns()
        for identity in [one for one, (_, deadline_ns) in self._pending.items() if now > deadline_ns]:
            del self._pending[identity]
            self.counts.expired += 1


@dataclass(frozen=True)
class Request[Q: Message]:
    """A question that waits for its answer.

    Attributes:
        peer: The client's name on the socket.
        envelope: The question's envelope.
        message: The question.
        deadline_ns: Useless after this, by this process's clock [ns]; None: never.
    """

    peer: bytes
    envelope: Envelope
    message: Q
    deadline_ns: int | None

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
    """

    received: int = 0
    answered: int = 0
    superseded: int = 0
    expired: int = 0
    busy: int = 0
    failed: int = 0
    malformed: int = 0
    unroutable: int = 0


class Router[Q: Message]:
    """The server's socket: reads questions, sends answers; use it from one thread.

    Args:
        endpoint: Where to listen; port ``*`` takes a free one, ``self.endpoint`` says which.
        origin: Stamps the answers.
        questions: Message types that are accepted.
        error: Makes refusals.
        hwm: Messages that may queue per client; from the topic table when None.
    """

    def __init__(
        self,
        endpoint: str,
        origin: Origin,
        *questions: type[Q],
        error: Callable[..., Message] = PolicyError,
        hwm: int | None = None,
    ) -> None:
        self.counts = RouterCounts()
        self._origin = origin
        self._questions = questions
        self._error = error
        self.socket = sockets.open_socket(zmq.ROUTER, hwm=hwm or high_water_mark(*questions))
        sockets.bind(self.socket, endpoint)
        self.endpoint = sockets.address(self.socket)

    def receive(self, timeout_s: float = 0.0) -> Request[Q] | None:
        """Returns the next question, waiting at most ``timeout_s`` [s]; unreadable ones are refused."""
        end_ns = now_ns() + int(timeout_s * 1e9)
        while True:
            frames = sockets.receive(self.socket)
            if frames is not None:
                request = self._read(bytes(frames[0]), frames[1:])
                if request:
                    return request
                continue
            remaining_ms = (end_ns - now_ns()) / 1e6
            if remaining_ms <= 0:
                return None
            self.socket.poll(max(1, round(remaining_ms)), zmq.POLLIN)

    def answer(self, request: Request[Q], message: Message) -> bool:
        """Answers a question; False when its client has gone or does not read."""
        self.counts.answered += 1
        return self._send(request.peer, message, request.envelope)

    def refuse(self, request: Request[Q], code: str, detail: str) -> bool:
        """Answers a question with an explicit error."""
        return self._send(request.peer, self._error(code=code, detail=detail), request.envelope)

    def close(self) -> None:
        """Closes the socket."""
        self.socket.close()

    def _read(self, peer: bytes, frames: list[memoryview]) -> Request[Q] | None:
        try:
            envelope, message = decode(frames, *self._questions)
        except MessageError as error:
            self.counts.malformed += 1
            log.warning("question refused", endpoint=self.endpoint, reason=str(error))
            self._send(
                peer, self._error(code="refused", detail=str(error)[:2000]), _readable_envelope(frames)
            )
            return None
        self.counts.received += 1
        return Request(peer, envelope, message, _deadline_ns(envelope))

    def _send(self, peer: bytes, message: Message, cause: Envelope | None) -> bool:
        frames: list[Buffer] = [peer, *encode(message, self._origin.envelope(message, cause=cause))]
        sent = sockets.send(self.socket, frames)
        self.counts.unroutable += not sent
        return sent


def _deadline_ns(envelope: Envelope) -> int | None:
    """When a question becomes useless by this host's clock; counted from arrival for another host."""
    if envelope.deadline_ms is None:
        return None
    start_ns = envelope.mono_ns if envelope.boot_id == boot_id() else now_ns()
    return start_ns + int(envelope.deadline_ms * 1e6)


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
    ) -> None:
        self.router: Router[Q] = Router(endpoint, origin, *questions, error=error)
        self._handler = handler
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: dict[tuple[bytes, str], Request[Q]] = {}
        self._batch: list[Request[Q]] = []
        self._work: Future[Sequence[A]] | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="handler")
        self._done, self._signal = sockets_of_os.socketpair()
        self._poller = zmq.Poller()
        self._poller.register(self.router.socket, zmq.POLLIN)
        self._poller.register(self._done, zmq.POLLIN)

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
        ready = dict(self._poller.poll(round(timeout_s * 1000)))
        if self._done.fileno() in ready:
            self._done.recv(64)
        while request := self.router.receive():
            self._admit(request)
        if self._work and self._work.done():
            self._answer(self._work)
            self._work = None
        if self._work is None:
            self._begin()

    def close(self) -> None:
        """Stops listening; a handler that still works is not waited for, and its answer goes nowhere."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self.router.close()
        self._done.close()
        self._signal.close()

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
            self._work = self._executor.submit(self._handler, [request.message for request in self._batch])
            self._work.add_done_callback(self._notify)

    def _notify(self, work: Future[Sequence[A]]) -> None:
        with suppress(OSError):
            self._signal.send(b"1")

    def _answer(self, work: Future[Sequence[A]]) -> None:
        batch, self._batch = self._batch, []
        try:
            answers = work.result()
            if len(answers) != len(batch):
                raise MessageError(f"handler gave {len(answers)} answers to {len(batch)} questions")
        except Exception as error:
            log.exception("handler failed", endpoint=self.router.endpoint, requests=len(batch))
            self.counts.failed += len(batch)
            for request in batch:
                self.router.refuse(request, "failed", f"{type(error).__name__}: {error}"[:2000])
            return
        for request, answer in zip(batch, answers, strict=True):
            self.router.answer(request, answer)


class PolicyClient(Client[ActionChunk | PolicyError]):
    """Asks a policy server.

    Args:
        endpoint: The server's address.
        origin: Stamps the questions.
    """

    def __init__(self, endpoint: str, origin: Origin) -> None:
        super().__init__(endpoint, origin, ActionChunk, PolicyError)

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
    """

    def __init__(
        self,
        endpoint: str,
        handler: Callable[[list[PolicyRequest]], Sequence[ActionChunk | PolicyError]],
        *,
        origin: Origin | None = None,
        max_batch: int = 32,
        max_waiting: int = 64,
    ) -> None:
        super().__init__(
            endpoint,
            handler,
            PolicyRequest,
            origin=origin or Origin("policy"),
            max_batch=max_batch,
            max_waiting=max_waiting,
        )
