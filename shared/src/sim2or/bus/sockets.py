"""Every ZeroMQ option, in one place.

Questions and answers have heartbeats, which notice a dead peer in under a second; high-water marks are small
so that nothing old piles up; nothing waits without a limit; a frame larger than a message may be ends the
connection.

A connecting socket whose receive queue is full must not reconnect: libzmq 4.3.5 then aborts the process when
the queue is read (libzmq issues 3937 and 4767). Therefore a DEALER's receive queue has no limit (it holds
answers, so it is bounded by what was asked), and a SUB has a limit but no heartbeats: TCP keep-alive notices
a dead publisher.

What leaves this host is encrypted (CURVE) and both ends prove who they are: without keys such an endpoint is
refused. With keys loopback tcp is encrypted too; ipc and inproc are guarded by the system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import zmq

from sim2or.bus.address import is_loopback
from sim2or.bus.gate import Refusals, gate_of, watch
from sim2or.bus.keys import Keyring, Road
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


def bind(socket: Zmq, endpoint: str, *, keys: Keyring | None = None, counts: Refusals | None = None) -> None:
    """Binds; tcp with keys lets in only the keys on its service's allow-list.

    Args:
        socket: A ROUTER, PUB or XPUB.
        endpoint: ``ipc://PATH``, ``tcp://ADDRESS:PORT`` or ``inproc://NAME``.
        keys: Of the service that listens here; needed beyond loopback.
        counts: Where connections that are turned away are counted, by another thread.

    Raises:
        ConfigError: An impossible endpoint, or one that leaves this host without keys.
    """
    if keys := _needed(endpoint, keys):
        road: Road = "pubsub" if socket.type in (zmq.PUB, zmq.XPUB) else "rpc"
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.ZAP_DOMAIN, gate_of(socket.context).open_for(keys, road))
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody comes in when the gate does not answer
        watch(socket, endpoint, counts)
    _attach(socket.bind, endpoint, "bind")


def connect(
    socket: Zmq,
    endpoint: str,
    *,
    keys: Keyring | None = None,
    server: str = "",
    counts: Refusals | None = None,
) -> None:
    """Connects; the peer may start later. Over tcp with keys, only to the server whose key we know.

    Args:
        socket: A DEALER or SUB.
        endpoint: ``ipc://PATH``, ``tcp://ADDRESS:PORT`` or ``inproc://NAME``.
        keys: Of the service that connects; needed beyond loopback.
        server: Whose public key is expected there.
        counts: Where handshakes that fail are counted, by another thread.

    Raises:
        ConfigError: An impossible endpoint, one that leaves this host without keys, or no key of the server.
    """
    if keys := _needed(endpoint, keys):
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.key_of(server))
        watch(socket, endpoint, counts)
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


def _needed(endpoint: str, keys: Keyring | None) -> Keyring | None:
    """The keys that an endpoint is served with; None where the system guards it, or nobody asks for them."""
    parts = urlsplit(endpoint)
    if parts.scheme == "inproc":
        return None
    if parts.scheme == "ipc":
        path = endpoint.removeprefix("ipc://")
        if not path or len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise ConfigError(f"endpoint {endpoint!r}: the path must have 1 to {_MAX_SOCKET_PATH} bytes")
        return None
    if parts.scheme != "tcp":
        raise ConfigError(
            f"endpoint {endpoint!r}: valid are ipc://PATH, tcp://127.0.0.1:PORT and inproc://NAME"
        )
    here = is_loopback(parts.hostname or "") and ";" not in endpoint  # ";" divides a source from its target
    if keys is None and not here:
        raise ConfigError(
            f"endpoint {endpoint!r} leaves this host without encryption: make keys with `make keys` and set "
            "SIM2OR_KEYS to their directory, or use ipc://PATH or tcp://127.0.0.1:PORT"
        )
    return keys
