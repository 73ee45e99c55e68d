"""A man in the middle at message level: ZeroMQ messages are repeated, overtaken, and played back later.

It stands between DEALER clients and a ROUTER server and keeps each client's own identity, so that the server
cannot tell. What it does is drawn from a seed.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import zmq
from sim2or.bus import sockets
from sim2or.messages.message import Message

Way = Literal["question", "answer"]
Frames = list[bytes]

POLL_MS = 10
HOLD_S = 0.25
QUEUE = 256
KEPT = 4000


class Mischief:
    """Forwards messages, some twice, some after their successor.

    Args:
        front: Endpoint that clients connect to.
        back: Endpoint of the server.
        repeat: Share of messages that are sent again at once.
        swap: Share of messages that are held back until the next one of the same client has passed, or for
            ``HOLD_S`` when none comes.
        only: Type of the messages that it touches; all others pass untouched.
        seed: Of the choice.
    """

    def __init__(
        self, front: str, back: str, only: type[Message], *, repeat: float, swap: float, seed: int
    ) -> None:
        self._only = only.type_name.encode()
        self.counts: Counter[str] = Counter()
        self._repeat, self._swap = repeat, swap
        self._random = random.Random(seed)
        self._front = sockets.open_socket(zmq.ROUTER, hwm=QUEUE)
        sockets.bind(self._front, front)
        self._back = back
        self._backs: dict[bytes, sockets.Zmq] = {}
        self._waiting: dict[tuple[Way, bytes], tuple[float, Frames]] = {}
        self._passed: list[tuple[Way, bytes, Frames]] = []
        self._replay: list[Way] = []
        self._stopping = threading.Event()

    def run(self) -> None:
        """Forwards until ``stop``."""
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        while not self._stopping.is_set():
            poller.poll(POLL_MS)
            while asked := sockets.receive(self._front):
                client, *frames = (bytes(frame) for frame in asked)
                if client not in self._backs:
                    poller.register(self._open(client), zmq.POLLIN)
                self._take("question", client, frames)
            for client, socket in self._backs.items():
                while answer := sockets.receive(socket):
                    self._take("answer", client, [bytes(frame) for frame in answer])
            self._let_go()
            while self._replay:
                self._play_back(self._replay.pop())
        for socket in (self._front, *self._backs.values()):
            socket.close()

    def stop(self) -> None:
        """Ends ``run`` within its poll period."""
        self._stopping.set()

    def replay(self, way: Way) -> None:
        """Sends everything that went this way once more, in the order in which it went."""
        self._replay.append(way)

    def _open(self, client: bytes) -> sockets.Zmq:
        socket = sockets.open_socket(zmq.DEALER, hwm=QUEUE, identity=client)
        socket.setsockopt(zmq.IMMEDIATE, 0)  # the first question waits for the connection
        sockets.connect(socket, self._back)
        self._backs[client] = socket
        return socket

    def _take(self, way: Way, client: bytes, frames: Frames) -> None:
        if frames[0] != self._only:
            self._send(way, client, frames)
            return
        earlier = self._waiting.pop((way, client), None)
        if earlier is None and self._random.random() < self._swap:
            self._waiting[way, client] = (time.monotonic() + HOLD_S, frames)
            return
        self._send(way, client, frames)
        self._passed = [*self._passed[-KEPT:], (way, client, frames)]
        if earlier is not None:
            self.counts[f"{way}s overtaken"] += 1
            self._send(way, client, earlier[1])
        if self._random.random() < self._repeat:
            self.counts[f"{way}s repeated"] += 1
            self._send(way, client, frames)

    def _let_go(self) -> None:
        now_s = time.monotonic()
        for (way, client), (due_s, frames) in list(self._waiting.items()):
            if now_s > due_s:
                del self._waiting[way, client]
                self._send(way, client, frames)

    def _play_back(self, way: Way) -> None:
        for passed, client, frames in list(self._passed):
            if passed == way:
                self.counts[f"{way}s played back"] += 1
                self._send(way, client, frames)

    def _send(self, way: Way, client: bytes, frames: Frames) -> None:
        if way == "question":
            sockets.send(self._backs[client], frames)
        else:
            sockets.send(self._front, [client, *frames])


@contextmanager
def mischief(
    back: str, only: type[Message], *, repeat: float, swap: float, seed: int
) -> Iterator[tuple[str, Mischief]]:
    """Puts mischief before a server; yields the endpoint for clients, and the mischief."""
    with tempfile.TemporaryDirectory(prefix="s2o-") as directory:
        front = f"ipc://{Path(directory) / 'm'}"
        between = Mischief(front, back, only, repeat=repeat, swap=swap, seed=seed)
        thread = threading.Thread(target=between.run, name="mischief", daemon=True)
        thread.start()
        try:
            yield front, between
        finally:
            between.stop()
            thread.join(timeout=5)
