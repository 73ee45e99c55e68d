"""Every ZeroMQ option, in one place.

Questions and answers have heartbeats, which notice a dead peer in under a second; high-water marks are small
so that nothing old piles up; nothing waits without a limit; a frame larger than a message may be ends the
connection.

A connecting socket whose receive queue is full must not reconnect: libzmq 4.3.5 then aborts the process when
the queue is read (libzmq issues 3937 and 4767). Therefore a DEALER's receive queue has no limit (it holds
answers, so it is bounded by what was asked), and a SUB has a limit but no heartbeats: TCP keep-alive notices
a dead publisher.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import zmq

from sim2or.errors import ConfigError
from sim2or.messages.array import Buffer
from sim2or.messages.codec import MAX_BYTES

HEARTBEAT_INTERVAL_MS = 200
HEARTBEAT_TIMEOUT_MS = 600
RECONNECT_MS = 50
RECONNECT_MAX_MS = 500
HANDSHAKE_MS = 2000
KEEPALIVE_S = 1
ROUTER_QUEUE = 64
"""A ROUTER that is busy for a moment must still read heartbeats; it judges ages itself."""

_MAX_SOCKET_PATH = 107

_OPTIONS = {
    zmq.LINGER: 0,
    zmq.SNDTIMEO: 0,
    zmq.RCVTIMEO: 0,
    zmq.MAXMSGSIZE: MAX_BYTES,
    zmq.RECONNECT_IVL: RECONNECT_MS,
    zmq.RECONNECT_IVL_MAX: RECONNECT_MAX_MS,
    zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: KEEPALIVE_S,
    zmq.TCP_KEEPALIVE_INTVL: KEEPALIVE_S,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
_HEARTBEATS = {
    zmq.HEARTBEAT_IVL: HEARTBEAT_INTERVAL_MS,
    zmq.HEARTBEAT_TIMEOUT: HEARTBEAT_TIMEOUT_MS,
    zmq.HEARTBEAT_TTL: HEARTBEAT_TIMEOUT_MS,
}
_OPTIONS_OF: dict[int, dict[zmq.SocketOption, int]] = {
    zmq.ROUTER: {**_HEARTBEATS, zmq.ROUTER_MANDATORY: 1, zmq.ROUTER_HANDOVER: 1},
    zmq.DEALER: {**_HEARTBEATS, zmq.IMMEDIATE: 1},
}

Zmq = zmq.Socket[bytes]


def open_socket(
    kind: int, *, hwm: int, context: zmq.Context[Zmq] | None = None, identity: bytes = b""
) -> Zmq:
    """Makes a socket with all options set.

    Args:
        kind: ``zmq.ROUTER``, ``zmq.DEALER``, ``zmq.PUB`` or ``zmq.SUB``.
        hwm: Messages that may queue, per peer and direction.
        context: The process's context when None.
        identity: A DEALER's name for its ROUTER, kept over reconnections.
    """
    socket: Zmq = (context or zmq.Context.instance()).socket(kind)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, _receive_queue(kind, hwm))
    for option, value in _OPTIONS.items():
        socket.setsockopt(option, value)
    for option, value in _OPTIONS_OF.get(kind, {}).items():
        socket.setsockopt(option, value)
    if identity:
        socket.setsockopt(zmq.IDENTITY, identity)
    return socket


def _receive_queue(kind: int, hwm: int) -> int:
    if kind == zmq.DEALER:
        return 0
    return max(hwm, ROUTER_QUEUE) if kind == zmq.ROUTER else hwm


def bind(socket: Zmq, endpoint: str) -> None:
    """Binds to an ipc path or a loopback address; anything else is refused."""
    _checked(endpoint)
    _attach(socket.bind, endpoint, "bind")


def connect(socket: Zmq, endpoint: str) -> None:
    """Connects to an ipc path or a loopback address; the peer may start later."""
    _checked(endpoint)
    _attach(socket.connect, endpoint, "connect")


def address(socket: Zmq) -> str:
    """Returns where a bound socket listens."""
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))


def send(socket: Zmq, frames: Sequence[Buffer]) -> bool:
    """Sends without waiting or copying; False when there is no peer or its queue is full."""
    try:
        socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return False
    except zmq.ZMQError as error:
        if error.errno == zmq.EHOSTUNREACH:
            return False
        raise
    return True


def receive(socket: Zmq) -> list[memoryview] | None:
    """Returns the next message's frames without copying, or None when none waits."""
    try:
        return [frame.buffer for frame in socket.recv_multipart(zmq.NOBLOCK, copy=False)]
    except zmq.Again:
        return None


def _attach(operation: Callable[[str], object], endpoint: str, verb: str) -> None:
    try:
        operation(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(f"cannot {verb} to {endpoint}: {error}") from error


def _checked(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme == "inproc":
        return
    if parts.scheme == "ipc":
        path = endpoint.removeprefix("ipc://")
        if not path or len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise ConfigError(f"endpoint {endpoint!r}: the path must have 1 to {_MAX_SOCKET_PATH} bytes")
        return
    if parts.scheme != "tcp":
        raise ConfigError(
            f"endpoint {endpoint!r}: valid are ipc://PATH, tcp://127.0.0.1:PORT and inproc://NAME"
        )
    if not _loopback(parts.hostname or ""):
        raise ConfigError(
            f"endpoint {endpoint!r} leaves this host without encryption: use ipc://PATH or tcp://127.0.0.1:PORT"
        )


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
