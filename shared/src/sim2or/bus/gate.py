"""The gate: who connects to an encrypted socket is checked, and whoever is turned away is counted.

One authenticator per context answers libzmq's questions (ZAP, RFC 27). A key that is not on the server's
allow-list is turned away with status 300, "not now": libzmq then closes the connection when its handshake
time is over and the client tries again by itself, so that it comes in as soon as its key is added. After
status 400 a client never tries again (libzmq issue 3519, measured with 4.3.5).
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import uuid
from collections.abc import Callable
from hashlib import sha256
from typing import Protocol

import structlog
import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from sim2or.bus.keys import Keyring, Road, may_enter

POLL_MS = 1000
REPORT_S = 10.0

_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_REASONS = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "no encryption at one end",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "wrong server key",
    zmq.PROTOCOL_ERROR_ZMTP_UNSPECIFIED: "no handshake of ours",
}

log = structlog.get_logger()


class Gate(ThreadAuthenticator):
    """Answers libzmq in a thread: may this key come in?"""

    def open_for(self, keys: Keyring, road: Road) -> bytes:
        """Begins to answer for a server; returns the domain that its socket must name."""
        directory = keys.allowed(road)
        domain = f"{keys.name}/{road}/{sha256(os.fsencode(directory)).hexdigest()[:16]}"
        self.configure_curve_callback(domain, _AllowList(lambda key: may_enter(directory, key)))
        return domain.encode()

    def _send_zap_reply(
        self, request_id: bytes, status_code: bytes, status_text: bytes, user_id: str = "anonymous"
    ) -> None:
        later = status_code == b"400" and status_text == b"Unknown key"
        super()._send_zap_reply(request_id, b"300" if later else status_code, status_text, user_id)


class _AllowList:
    """What the authenticator calls; nothing may be raised into its thread."""

    def __init__(self, accepts: Callable[[bytes], bool]) -> None:
        self._accepts = accepts

    def callback(self, domain: str, key: bytes) -> bool:
        return self._accepts(key)


_GATES: dict[zmq.Context[zmq.Socket[bytes]], Gate] = {}
_MAKING = threading.Lock()


def gate_of(context: zmq.Context[zmq.Socket[bytes]]) -> Gate:
    """The gate of a context; libzmq allows one, started once, stopped when the process ends."""
    with _MAKING:
        if context not in _GATES:
            gate = Gate(context)
            gate.start()
            atexit.register(gate.stop)
            _GATES[context] = gate
        return _GATES[context]


class Refusals(Protocol):
    """Counts of a socket's owner.

    Attributes:
        refused: Handshakes that failed; written by one thread of the gate.
    """

    refused: int


def watch(socket: zmq.Socket[bytes], endpoint: str, counts: Refusals | None = None) -> threading.Thread:
    """Counts the handshakes of a socket that fail, in a thread that ends with the socket.

    Args:
        socket: Not yet bound or connected.
        endpoint: For the log, which has one line at most every ``REPORT_S``.
        counts: Where they are counted.
    """
    address = f"inproc://watch-{uuid.uuid4()}"
    socket.monitor(address, _FAILURES | zmq.EVENT_MONITOR_STOPPED)
    monitor: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.RCVHWM, 0)  # a full queue would hold up libzmq's own thread
    monitor.connect(address)
    thread = threading.Thread(target=_count, args=(monitor, endpoint, counts), name="gate-watch", daemon=True)
    thread.start()
    return thread


def _count(monitor: zmq.Socket[bytes], endpoint: str, counts: Refusals | None) -> None:
    total, told_s = 0, -REPORT_S
    while True:
        if not monitor.poll(POLL_MS):
            continue
        message = recv_monitor_message(monitor)
        if message["event"] == zmq.EVENT_MONITOR_STOPPED:
            monitor.close()
            return
        total += 1
        if counts:
            counts.refused += 1
        if time.monotonic() - told_s >= REPORT_S:
            told_s = time.monotonic()
            why = reason(message["event"], message["value"])
            log.warning("connections refused", endpoint=endpoint, why=why, total=total)


def reason(event: int, value: int) -> str:
    """Says why a handshake failed, for people."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "unknown key: add it to the server's allow-list"
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        return (
            "the other end closed the connection: it does not know our key, or has another one than we expect"
        )
    return _REASONS.get(zmq.Event(value), f"protocol error {value:#x}")
