"""State that is only worth its newest value, over PUB and SUB: losses are counted, never waited for.

Large messages go through shared memory (``ring.py``) while every listener of their type has attached it: a
subscriber says so by a subscription that names the segment, and the publisher (an XPUB) counts subscriptions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import structlog
import zmq

from sim2or.bus import sockets
from sim2or.bus.keys import Keyring
from sim2or.bus.labels import socket_labels
from sim2or.bus.ring import Overwritten, Ring, Rings, Unattached, attached, local, plain
from sim2or.clock import now_ns
from sim2or.counts import LIVE
from sim2or.errors import MessageError
from sim2or.messages.array import Buffer, size_bytes
from sim2or.messages.codec import decode, encode
from sim2or.messages.envelope import Envelope, Origin
from sim2or.messages.message import Message
from sim2or.messages.topics import TOPICS, high_water_mark

log = structlog.get_logger()

KEEP_S = 0.1
"""How long a published message keeps its place in the ring where the topic table names no greatest age."""

_MAX_SUBSCRIPTIONS = 1000
_MAX_SUBSCRIPTION_BYTES = 1024
_HEARD_AT_ONCE = 100


@dataclass
class PublisherCounts:
    """What a publisher has done.

    Attributes:
        published: Messages published, whether anybody listened or not.
        sent_bytes: Their bytes, those in shared memory included; once, however many listened.
        ring_frames: Arrays that went through shared memory.
        refused: Connections turned away: an unknown key, or no encryption.
    """

    published: int = 0
    sent_bytes: int = 0
    ring_frames: int = 0
    refused: int = 0


class Publisher:
    """Publishes to whoever listens; never waits.

    Args:
        endpoint: Where subscribers connect.
        origin: Stamps the messages.
        messages: Types that will be published; they set the high-water mark.
        keys: Of the service that publishes; needed beyond loopback.
        ring: Whether large messages go through shared memory while every listener can open it.
    """

    def __init__(
        self,
        endpoint: str,
        origin: Origin,
        *messages: type[Message],
        keys: Keyring | None = None,
        ring: bool = True,
    ) -> None:
        self.counts = PublisherCounts()
        LIVE.watch(self, self.counts, **socket_labels(messages, server=origin.source))
        self._origin = origin
        self._ring = Ring() if ring and local(endpoint) else None
        self._subscriptions: Counter[bytes] = Counter()
        self._socket = sockets.open_socket(zmq.XPUB, hwm=high_water_mark(*messages))
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        sockets.bind(self._socket, endpoint, keys=keys, counts=self.counts)

    def publish(self, message: Message, *, cause: Envelope | None = None) -> None:
        """Sends a message to each subscriber whose queue has room."""
        self._hear()
        frames = encode(message, self._origin.envelope(message, cause=cause))
        self.counts.published += 1
        self.counts.sent_bytes += size_bytes(frames)
        sockets.send(self._socket, self._placed(frames, message.type_name))

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()
        if self._ring:
            self._ring.close()

    def _hear(self) -> None:
        """Takes notice of who has come and gone: a byte, 1 or 0, and what is subscribed to."""
        for _ in range(_HEARD_AT_ONCE):
            heard = sockets.receive(self._socket)
            if heard is None:
                return
            if self._ring and len(heard[0]) <= _MAX_SUBSCRIPTION_BYTES:
                self._note(bytes(heard[0]))

    def _note(self, content: bytes) -> None:
        """Counts a subscription; where there are more than real listeners make, the ring is given up."""
        self._subscriptions[content[1:]] += 1 if content[:1] == b"\1" else -1
        if self._subscriptions[content[1:]] <= 0:
            del self._subscriptions[content[1:]]
        if len(self._subscriptions) > _MAX_SUBSCRIPTIONS and self._ring:
            log.warning("too many subscriptions: frames travel plain", limit=_MAX_SUBSCRIPTIONS)
            self._ring.close()
            self._ring = None
            self._subscriptions.clear()

    def _placed(self, frames: list[Buffer], name: str) -> list[Buffer]:
        """The message as it travels: in the ring when all its listeners have attached it."""
        listeners = sum(
            count for topic, count in self._subscriptions.items() if name.encode().startswith(topic)
        )
        if self._ring is None or not listeners:
            return frames
        if self._subscriptions[acknowledgement(self._ring.token, name)] != listeners:
            return self._ring.offer(frames)
        row = TOPICS.get(name)
        keep_s = row.max_age_s if row and row.max_age_s else KEEP_S
        wire, slot = self._ring.place(frames, until_ns=now_ns() + int(keep_s * 1e9))
        self.counts.ring_frames += len(slot.place.parts) if slot else 0
        return wire


def acknowledgement(token: bytes, name: str) -> bytes:
    """What a subscriber subscribes to when it has attached a publisher's ring; nothing is ever sent there."""
    return b"\0%b %b" % (attached(token), name.encode())


@dataclass
class SubscriberCounts:
    """What a subscriber has seen.

    Attributes:
        received: Messages read.
        gaps: Messages that were sent but never arrived.
        skipped: Messages passed over because a newer one had arrived.
        repeated: Messages older than the newest one, or sent twice; ignored.
        malformed: Messages that could not be read.
        refused: Connections that failed because one end does not accept the other's key.
        received_bytes: Bytes of all messages, those in shared memory included.
        ring_frames: Arrays that came through shared memory.
        torn: Messages whose shared memory had been written again before they were read; never used.
        unattached: Messages in shared memory that cannot be opened here; the next ones come as plain frames.
    """

    received: int = 0
    gaps: int = 0
    skipped: int = 0
    repeated: int = 0
    malformed: int = 0
    refused: int = 0
    received_bytes: int = 0
    ring_frames: int = 0
    torn: int = 0
    unattached: int = 0


class Subscriber[M: Message]:
    """Listens to one publisher; use it from one thread.

    Args:
        endpoint: The publisher's address.
        messages: Types to listen to.
        keys: Of the service that listens; needed beyond loopback.
        server: Whose public key is expected, where there are keys.
        ring: Whether large messages may come through shared memory.
    """

    def __init__(
        self,
        endpoint: str,
        *messages: type[M],
        keys: Keyring | None = None,
        server: str = "",
        ring: bool = True,
    ) -> None:
        self.counts = SubscriberCounts()
        LIVE.watch(self, self.counts, **socket_labels(messages))
        self._endpoint = endpoint
        self._messages = messages
        self._last: dict[tuple[str, str, str], int] = {}
        self._rings = Rings() if ring and local(endpoint) else None
        self._attached = b""
        self._socket = sockets.open_socket(zmq.SUB, hwm=high_water_mark(*messages))
        for message in messages:
            self._socket.setsockopt(zmq.SUBSCRIBE, message.type_name.encode())
        sockets.connect(self._socket, endpoint, keys=keys, server=server, counts=self.counts)

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
        if self._rings:
            self._rings.close()

    def _read(self, frames: list[memoryview]) -> tuple[Envelope, M] | None:
        try:
            opened = self._rings.open(frames) if self._rings else plain(frames)
            if opened.token:
                self._acknowledge(opened.token)
            envelope, message = decode(opened.frames, *self._messages)
        except Overwritten:
            self.counts.torn += 1
            return None
        except Unattached:
            self.counts.unattached += 1
            self._acknowledge(b"")
            return None
        except MessageError as error:
            self.counts.malformed += 1
            log.warning("message refused", endpoint=self._endpoint, reason=str(error))
            return None
        self.counts.received_bytes += size_bytes(opened.frames)
        self.counts.ring_frames += opened.placed
        stream = (envelope.source, envelope.session, envelope.type)
        last = self._last.get(stream)
        if last is not None and envelope.seq <= last:
            self.counts.repeated += 1
            return None
        self.counts.gaps += envelope.seq - last - 1 if last is not None else 0
        self._last[stream] = envelope.seq
        self.counts.received += 1
        return envelope, message

    def _acknowledge(self, token: bytes) -> None:
        """Tells the publisher which of its segments is attached here, when that has changed."""
        if token == self._attached:
            return
        for message in self._messages:
            if self._attached:
                self._socket.setsockopt(zmq.UNSUBSCRIBE, acknowledgement(self._attached, message.type_name))
            if token:
                self._socket.setsockopt(zmq.SUBSCRIBE, acknowledgement(token, message.type_name))
        self._attached = token
