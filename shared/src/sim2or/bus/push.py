"""One artifact on its way: which file is wanted, how far it may be sent, and when to offer it again."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from sim2or.artifacts.manifest import FileEntry, Manifest
from sim2or.artifacts.store import Store
from sim2or.clock import now_ns
from sim2or.errors import JobError
from sim2or.messages.upload import UploadGrant

BACKOFF_S = (0.1, 2.0)
"""Shortest and longest wait after the receiver said no [s]."""


class Source:
    """A file that is sent without being copied into this process.

    Args:
        path: A file that nobody writes to.
        entry: Its digest and size.
    """

    def __init__(self, path: Path, entry: FileEntry) -> None:
        self.entry = entry
        self.path = path
        self._released = 0
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size != entry.size_bytes:
                raise JobError(
                    f"{entry.path}: {path} has {size} bytes, expected {entry.size_bytes}; rerun its stage"
                )
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None

    def bytes(self, start: int, end: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A read-only view of some bytes."""
        if self._map is None:
            return np.empty(0, np.uint8)
        return np.frombuffer(self._map, np.uint8, count=end - start, offset=start)

    def release(self, before: int) -> None:
        """Gives back the memory of what the receiver has written."""
        start, end = self._released, before // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is not None and end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)
            self._released = end


class Push:
    """How far one artifact has come.

    Args:
        store: Where it is.
        manifest: What it holds.

    Attributes:
        source: The file that the receiver wants now.
        fresh: Whether it may be handed over: no byte of it was sent since the receiver asked for it.
        sent_bytes: How much of it was handed to the socket.
        limit_bytes: How much of it may be.
        lacking_bytes: How much of the artifact the receiver still lacks.
        offer_at_ns: When to offer it again [ns].
        offered_ns: When it was offered last [ns].
        moved_ns: When it last came forward [ns].
        attempts: How often the receiver called it corrupt.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.manifest = manifest
        self.entries = {entry.digest: entry for entry in manifest.files}
        self.source: Source | None = None
        self.fresh = False
        self.sent_bytes = self.limit_bytes = 0
        self.total_bytes = self.lacking_bytes = sum(one.size_bytes for one in self.entries.values())
        self.offer_at_ns = self.offered_ns = 0
        self.moved_ns = now_ns()
        self.backoff_s = BACKOFF_S[0]
        self.attempts = 0
        self._store = store
        self._highest: dict[str, int] = {}

    @property
    def sendable(self) -> bool:
        """Whether there are bytes to send and credits for them."""
        return self.source is not None and self.sent_bytes < self.limit_bytes

    def granted(self, grant: UploadGrant) -> int:
        """Takes a grant over; returns how many bytes an earlier attempt had brought there."""
        if grant.lacking_bytes != self.lacking_bytes:
            self.moved_ns, self.backoff_s = now_ns(), BACKOFF_S[0]
        self.lacking_bytes = grant.lacking_bytes
        if grant.rewind:
            self._turn_to(grant.file)
            self.sent_bytes, self.fresh = grant.written_bytes, True
        if self.source is None or self.source.entry.digest != grant.file:
            return 0
        self.limit_bytes = grant.limit_bytes
        self.source.release(grant.written_bytes)
        found = grant.written_bytes - self._highest.get(grant.file, 0) if grant.rewind else 0
        self._highest[grant.file] = max(grant.written_bytes, self._highest.get(grant.file, 0))
        return max(0, found)

    def sent(self, count: int) -> int:
        """Counts bytes as sent; returns how many of them had been sent before."""
        assert self.source is not None
        before, name = self.sent_bytes, self.source.entry.digest
        self.sent_bytes += count
        again = max(0, min(self.sent_bytes, self._highest.get(name, 0)) - before)
        self._highest[name] = max(self.sent_bytes, self._highest.get(name, 0))
        return again

    def wait(self, delay_s: float) -> None:
        """Sends nothing, and offers again after ``delay_s`` [s]."""
        self.source = None
        self.offer_at_ns = now_ns() + int(delay_s * 1e9)

    def back_off(self) -> None:
        """Waits before the next offer, longer each time."""
        self.wait(self.backoff_s)
        self.backoff_s = min(BACKOFF_S[1], 2 * self.backoff_s)

    def check_files(self) -> None:
        """Reads every file again; raises ``JobError`` when one does not have its digest."""
        for entry in self.entries.values():
            with self._store.object_path(entry.digest).open("rb") as file:
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            if digest != entry.digest:
                raise JobError(
                    f"{entry.path}: stored bytes have digest {digest}, expected {entry.digest}; "
                    "rerun its stage"
                )

    def _turn_to(self, name: str) -> None:
        if self.source and self.source.entry.digest == name:
            return
        entry = self.entries.get(name)
        self.source = Source(self._store.object_path(entry.digest), entry) if entry else None
