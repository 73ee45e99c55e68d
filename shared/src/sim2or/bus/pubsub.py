"""State that is only worth its newest value, over PUB and SUB: losses are counted, never waited for."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import zmq

from sim2or.bus import sockets
from sim2or.clock import now_ns
from sim2or.errors import MessageError
from sim2or.messages.codec import decode, encode
from sim2or.messages.envelope import Envelope, Origin
from sim2or.messages.message import Message
from sim2or.messages.topics import high_water_mark

log = structlog.get_logger()


class Publisher:
    """Publishes to whoever listens; never waits.

    Args:
        endpoint: Where subscribers connect.
        origin: Stamps the messages.
        messages: Types that will be published; they set the high-water mark.
    """

    def __init__(self, endpoint: str, origin: Origin, *messages: type[Message]) -> None:
        self._origin = origin
        self._socket = sockets.open_socket(zmq.PUB, hwm=high_water_mark(*messages))
        sockets.bind(self._socket, endpoint)

    def publish(self, message: Message, *, cause: Envelope | None = None) -> None:
        """Sends a message to each subscriber whose queue has room."""
        sockets.send(self._socket, encode(message, self._origin.envelope(message, cause=cause)))

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


@dataclass
class SubscriberCounts:
    """What a subscriber has seen.

    Attributes:
        received: Messages read.
        gaps: Messages that were sent but never arrived.
        skipped: Messages passed over because a newer one had arrived.
        repeated: Messages older than the newest one, or sent twice; ignored.
        malformed: Messages that could not be read.
    """

    received: int = 0
    gaps: int = 0
    skipped: int = 0
    repeated: int = 0
    malformed: int = 0


class Subscriber[M: Message]:
    """Listens to one publisher; use it from one thread.

    Args:
        endpoint: The publisher's address.
        messages: Types to listen to.
    """

    def __init__(self, endpoint: str, *messages: type[M]) -> None:
        self.counts = SubscriberCounts()
        self._endpoint = endpoint
        self._messages = messages
        self._last: dict[tuple[str, str, str], int] = {}
        self._socket = sockets.open_socket(zmq.SUB, hwm=high_water_mark(*messages))
        for message in messages:
            self._socket.setsockopt(zmq.SUBSCRIBE, message.type_name.encode())
        sockets.connect(self._socket, endpoint)

    def receive(self, timeout_s: float = 0.0) -> tuple[Envelope, M] | None:
        """Returns the next message, waiting at most ``timeout_s`` [s]."""
        end_ns = now_ns() + int(timeout_s * 1e9)
        while True:
            frames = sockets.receive(self._socket)
            if frames is not None:
                received = self._read(frames)
                if received:
                    return received
                continue
            remaining_ms = (end_ns - now_ns()) / 1e6
            if remaining_ms <= 0:
                return None
            self._socket.poll(max(1, round(remaining_ms)), zmq.POLLIN)

    def newest(self, timeout_s: float = 0.0) -> tuple[Envelope, M] | None:
        """Returns the newest message that has arrived, waiting at most ``timeout_s`` [s] for one."""
        newest = self.receive(timeout_s)
        while newest and (newer := self.receive()):
            newest = newer
            self.counts.skipped += 1
        return newest

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def _read(self, frames: list[memoryview]) -> tuple[Envelope, M] | None:
        try:
            envelope, message = decode(frames, *self._messages)
        except MessageError as error:
            self.counts.malformed += 1
            log.warning("message refused", endpoint=self._endpoint, reason=str(error))
            return None
        stream = (envelope.source, envelope.session, envelope.type)
        last = self._last.get(stream)
        if last is not None and envelope.seq <= last:
            self.counts.repeated += 1
            return None
        self.counts.gaps += envelope.seq - last - 1 if last is not None else 0
        self._last[stream] = envelope.seq
        self.counts.received += 1
        return envelope, message
