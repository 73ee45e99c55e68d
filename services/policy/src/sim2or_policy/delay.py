"""Injected delay: every answer of a server is held back, while the server stays as quick as ever.

A fault drill for the robot's side: answers arrive late, yet none is lost and no request is slowed down.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import zmq
from sim2or.bus import sockets
from sim2or.bus.keys import Keyring
from sim2or.clock import now_ns

POLL_MS = 50
MAX_CLIENTS = 256
QUEUE = 64


@contextmanager
def delayed(endpoint: str, *, delay_ms: float, keys: Keyring | None = None) -> Iterator[str]:
    """Puts a line with a delay before a ROUTER server, for as long as the context lasts.

    Args:
        endpoint: Where clients connect; the line binds it.
        delay_ms: How long each answer is held back [ms]; 0 puts nothing there.
        keys: Of the server; needed beyond loopback.

    Yields:
        Where the server must bind instead.
    """
    if delay_ms <= 0:
        yield endpoint
        return
    with tempfile.TemporaryDirectory(prefix="s2o-") as directory:
        inner = f"ipc://{os.path.join(directory, 'policy')}"
        line = DelayLine(endpoint, inner, delay_ms=delay_ms, keys=keys)
        thread = threading.Thread(target=line.run, name="delay", daemon=True)
        thread.start()
        try:
            yield inner
        finally:
            line.stop()
            thread.join(timeout=5)


class DelayLine:
    """Forwards requests at once and answers late, each client through a socket of its own identity.

    Args:
        front: Endpoint that clients connect to.
        back: Endpoint of the server.
        delay_ms: How long each answer is held back [ms].
        keys: Of the server; needed beyond loopback.
    """

    def __init__(self, front: str, back: str, *, delay_ms: float, keys: Keyring | None = None) -> None:
        self._front = sockets.open_socket(zmq.ROUTER, hwm=QUEUE)
        sockets.bind(self._front, front, keys=keys)
        self._back = back
        self._delay_ns = int(delay_ms * 1e6)
        self._backs: dict[bytes, sockets.Zmq] = {}
        self._held: deque[tuple[int, list[bytes | memoryview]]] = deque()
        self._poller = zmq.Poller()
        self._poller.register(self._front, zmq.POLLIN)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Forwards until ``stop``."""
        while not self._stopping.is_set():
            ready = dict(self._poller.poll(self._wait_ms()))
            if self._front in ready and (asked := sockets.receive(self._front)):
                sockets.send(self._back_of(bytes(asked[0])), asked[1:])
            for client, socket in self._backs.items():
                if socket in ready and (answer := sockets.receive(socket)):
                    self._held.append((now_ns() + self._delay_ns, [client, *answer]))
            while self._held and self._held[0][0] <= now_ns():
                sockets.send(self._front, self._held.popleft()[1])
        for socket in (self._front, *self._backs.values()):
            socket.close()

    def stop(self) -> None:
        """Ends ``run`` within its poll period."""
        self._stopping.set()

    def _wait_ms(self) -> int:
        due_ms = (self._held[0][0] - now_ns()) // 1_000_000 + 1 if self._held else POLL_MS
        return max(0, min(POLL_MS, due_ms))

    def _back_of(self, client: bytes) -> zmq.Socket[bytes]:
        if client not in self._backs:
            if len(self._backs) >= MAX_CLIENTS:
                self._forget(next(iter(self._backs)))
            socket = sockets.open_socket(zmq.DEALER, hwm=QUEUE, identity=client)
            socket.setsockopt(zmq.IMMEDIATE, 0)  # the first request waits for the connection
            sockets.connect(socket, self._back)
            self._poller.register(socket, zmq.POLLIN)
            self._backs[client] = socket
        return self._backs[client]

    def _forget(self, client: bytes) -> None:
        socket = self._backs.pop(client)
        self._poller.unregister(socket)
        socket.close()
