"""A fault proxy in user space: a line (TCP, unix socket) that is cut, slowed, torn and healed while it runs.

It needs no privileges. Whoever connects to ``proxy.address`` talks to ``upstream`` through it::

    with FaultProxy(upstream=("127.0.0.1", 6379), seed=7) as proxy:
        proxy.line(delay_s=0.3, jitter_s=0.1)   # both ways
        proxy.cut()                              # nothing passes, nobody is told
        proxy.heal()
        proxy.reset()                            # every connection ends with RST
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

CHUNK = 65536
HELD_CHUNKS = 32
PACE_S = 0.05
START_S = 5.0
RST = struct.pack("ii", 1, 0)
"""SO_LINGER on with zero time: closing sends RST. Source: socket(7), tcp(7)."""

Address = tuple[str, int] | Path
Way = Literal["up", "down"]


@dataclass(frozen=True)
class Line:
    """How one direction behaves.

    Attributes:
        delay_s: Every byte is late by this [s].
        jitter_s: And by up to this more, at random; the order of bytes is kept [s].
        rate_bps: Bytes per second; 0: no limit.
        dark: Bytes are held, and nobody is told: a cut cable, a black hole.
        torn_after: The connection ends after so many more bytes in this direction; None: never.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    rate_bps: float = 0.0
    dark: bool = False
    torn_after: int | None = None


@dataclass
class Counts:
    """What passed.

    Attributes:
        connections: Accepted so far.
        open: Open now.
        bytes: Passed, by direction.
    """

    connections: int = 0
    open: int = 0
    bytes: dict[Way, int] = field(default_factory=lambda: {"up": 0, "down": 0})


class FaultProxy:
    """Forwards connections to one upstream through two lines, "up" (to it) and "down" (from it).

    Args:
        upstream: Host and port, or the path of a unix socket.
        listen: Where to listen: a host and port (0 takes a free one), or a path.
        seed: Of the jitter.
    """

    def __init__(self, upstream: Address, listen: Address = ("127.0.0.1", 0), *, seed: int = 0) -> None:
        self.counts = Counts()
        self._upstream, self._listen = upstream, listen
        self._random = random.Random(seed)
        self._lines: dict[Way, Line] = {"up": Line(), "down": Line()}
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._changed = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_S)
        self._loop.close()

    @property
    def address(self) -> Address:
        """Where it listens."""
        if isinstance(self._listen, Path):
            return self._listen
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    @property
    def port(self) -> int:
        """Its TCP port."""
        assert not isinstance(self.address, Path)
        return self.address[1]

    def line(self, way: Way | None = None, **changes: Any) -> None:
        """Changes fields of a direction's ``Line``, or of both; what is under way already keeps its delay."""
        self._call(self._change((way,) if way else ("up", "down"), changes))

    def cut(self, way: Way | None = None) -> None:
        """Lets nothing through in a direction, or in both, without telling anyone; connections stay open."""
        self.line(way, dark=True)

    def heal(self) -> None:
        """Makes both directions whole; what was held back is delivered."""
        for way in ("up", "down"):
            self._call(self._change((way,), vars(Line())))

    def reset(self) -> int:
        """Ends every connection with RST; new ones are accepted. Returns how many there were."""
        return self._call(self._reset())

    def tear(self, after: int, way: Way = "down") -> None:
        """Ends the connection that passes the next ``after`` bytes in a direction, wherever that is."""
        self.line(way, torn_after=after)

    def _call[T](self, work: Coroutine[Any, Any, T]) -> T:
        done: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(START_S)

    async def _open(self) -> None:
        if isinstance(self._listen, Path):
            self._server = await asyncio.start_unix_server(self._accept, str(self._listen))
        else:
            self._server = await asyncio.start_server(self._accept, *self._listen)

    async def _close(self) -> None:
        self._server.close()
        await self._reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _change(self, ways: tuple[Way, ...], changes: dict[str, Any]) -> None:
        for way in ways:
            self._lines[way] = replace(self._lines[way], **changes)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _reset(self) -> int:
        writers, self._writers = self._writers, set()
        for writer in writers:
            end = writer.get_extra_info("socket")
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            writer.transport.abort()
        return len(writers) // 2

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts.connections += 1
        try:
            if isinstance(self._upstream, Path):
                far_reader, far_writer = await asyncio.open_unix_connection(str(self._upstream))
            else:
                far_reader, far_writer = await asyncio.open_connection(*self._upstream)
        except OSError:  # nobody listens: as if the proxy did not either
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        self.counts.open += 1
        ways = [
            asyncio.ensure_future(self._pass("up", reader, far_writer)),
            asyncio.ensure_future(self._pass("down", far_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the proxy ends; its streams would complain of a cancelled task
            return
        finally:
            for task in ways:
                task.cancel()
            self.counts.open -= 1
            self._writers -= pair
            for one in pair:
                one.close()

    async def _pass(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries one direction; ends with the connection, or in the middle of it where it is torn."""
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD_CHUNKS)
        reading = asyncio.ensure_future(self._read(way, reader, held))
        try:
            await self._send(way, held, writer)
        finally:
            reading.cancel()

    async def _read(
        self, way: Way, reader: asyncio.StreamReader, held: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(CHUNK)
            except ConnectionError:
                data = b""
            line = self._lines[way]
            late_s = line.delay_s + line.jitter_s * self._random.random()
            await held.put((self._loop.time() + late_s, data))

    async def _send(
        self, way: Way, held: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due_s, data = await held.get()
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            while self._lines[way].dark:
                await self._changed.wait()
            step = int(self._lines[way].rate_bps * PACE_S) or CHUNK
            pieces = [data[start : start + step] for start in range(0, len(data), step)]
            for piece in pieces:
                if not await self._write(way, piece, writer):
                    return
            if not pieces:
                return

    async def _write(self, way: Way, data: bytes, writer: asyncio.StreamWriter) -> bool:
        """Writes at the line's rate; False when the line is torn here."""
        line = self._lines[way]
        if line.rate_bps:
            await asyncio.sleep(len(data) / line.rate_bps)
        whole = line.torn_after is None or len(data) <= line.torn_after
        if line.torn_after is not None:
            data = data[: line.torn_after]
            left = None if not whole else line.torn_after - len(data)
            self._lines[way] = replace(line, torn_after=left)
        try:
            writer.write(data)
            await writer.drain()
        except ConnectionError:
            return False
        self.counts.bytes[way] += len(data)
        return whole
