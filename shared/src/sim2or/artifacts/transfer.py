"""A transfer: how far one artifact has come, and how its work is watched."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim2or.artifacts.manifest import FileEntry, Manifest
from sim2or.errors import JobError, TransientError

PATIENCE_S = 120.0
TELL_S = 0.1
LEAVE_S = 2.0
AT_ONCE = 4
"""Files on their way at the same time."""

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and their sum; what it raises ends the transfer."""


@dataclass
class Transfer:
    """How far one artifact has come.

    Attributes:
        manifest: What it holds.
        patience_s: How long nothing may come forward [s].
        entries: Its files, each content once.
        done_bytes: What is there.
        moved_s: When it last came forward, by the monotonic clock [s].
    """

    manifest: Manifest
    patience_s: float
    entries: list[FileEntry] = field(init=False)
    done_bytes: int = 0
    moved_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.entries = list({entry.digest: entry for entry in self.manifest.files}.values())

    @property
    def total_bytes(self) -> int:
        """Size of its files [bytes]."""
        return sum(entry.size_bytes for entry in self.entries)

    def moved(self, count: int) -> None:
        """Counts bytes as there, or takes them back."""
        self.done_bytes += count
        self.moved_s = time.monotonic()

    async def watch(self, work: Coroutine[Any, Any, None], progress: Progress, *, where: str) -> None:
        """Does the work and tells how far it is, ten times a second.

        Raises:
            TransientError: Nothing came forward for too long.
        """
        task = asyncio.ensure_future(work)
        try:
            progress(self.done_bytes, self.total_bytes)
            while not (await asyncio.wait({task}, timeout=TELL_S))[0]:
                progress(self.done_bytes, self.total_bytes)
                self._check_patience(where)
            await task
        finally:
            await _end([task])
        progress(self.total_bytes, self.total_bytes)

    def _check_patience(self, where: str) -> None:
        if time.monotonic() - self.moved_s > self.patience_s:
            raise TransientError(
                f"{where}: {self.manifest.digest}: nothing came forward for {self.patience_s:g} s, "
                f"{self.total_bytes - self.done_bytes} of {self.total_bytes} bytes are still to come; see "
                "that it can be reached from this host and is not overloaded"
            )


def run[T](work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine, and returns when none of the library's threads is in Python any more.

    A thread of the library wakes this one for its result, and then needs the interpreter once more to leave
    Python. Where this was the last thing to do, the interpreter may be ending by then: the thread cannot come
    back, and aborts the process.
    """
    try:
        return asyncio.run(work)
    finally:
        deadline_s = time.monotonic() + LEAVE_S
        while _strangers() and time.monotonic() < deadline_s:
            time.sleep(0.001)


def _strangers() -> set[int]:
    """The threads that are in Python and were not started by it."""
    return set(sys._current_frames()) - {thread.ident for thread in threading.enumerate()}


async def in_parallel[T](items: Iterable[T], one: Callable[[T], Awaitable[None]]) -> None:
    """Does one thing with each item, a few at the same time; the first failure ends the others."""
    rest = iter(items)

    async def work() -> None:
        for item in rest:
            await one(item)

    tasks = [asyncio.ensure_future(work()) for _ in range(AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def parts(path: Path, entry: FileEntry, size_bytes: int) -> Iterator[bytes]:
    """A file's bytes in parts; the last one is given only when all of them have the file's digest.

    Args:
        path: Where it is.
        entry: Digest and size that it must have.
        size_bytes: Of a part.

    Raises:
        JobError: It is missing or damaged.
    """
    digest, count = hashlib.sha256(), 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise JobError(f"{entry.path}: {path} is missing; rerun its stage") from None
    with file:
        while True:
            part = file.read(size_bytes)
            digest.update(part)
            count += len(part)
            last = not part or count >= entry.size_bytes
            if last and f"sha256:{digest.hexdigest()}" != entry.digest:
                raise JobError(
                    f"{entry.path}: stored bytes have digest sha256:{digest.hexdigest()}, expected "
                    f"{entry.digest}; rerun its stage"
                )
            yield part
            if last:
                return
