"""The store's door for files that arrive in pieces: resumed after a crash, visible only when whole.

A file on its way is ``incoming/<hex>`` under the store's root, named by the digest that it must have. What
was written survives the end of its writer; the digest is taken from what is on the disk before it gets its
name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from pathlib import Path

from sim2or.artifacts.manifest import FileEntry
from sim2or.artifacts.store import Store
from sim2or.errors import ConfigError, JobError
from sim2or.messages.array import Buffer

KEEP_S = 7 * 24 * 3600.0
"""How long a file that nobody goes on sending is kept [s]."""

_COPY_BYTES = 16 * 1024 * 1024


class PartFile:
    """A file of which the first ``written_bytes`` are here.

    Args:
        path: Where it grows, on the store's file system.
        store: Where it gets its name.
        entry: Digest and size that it must have.

    Attributes:
        resumed: Whether an earlier writer began it.
    """

    def __init__(self, path: Path, store: Store, entry: FileEntry) -> None:
        self.entry = entry
        self._path = path
        self._store = store
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.written_bytes = os.fstat(self._file).st_size
        self.resumed = self.written_bytes > 0
        if self.written_bytes > entry.size_bytes:
            os.ftruncate(self._file, 0)
            self.written_bytes = 0

    def write(self, data: Buffer) -> None:
        """Appends bytes; they survive this process, and the machine only after ``finish``."""
        rest = memoryview(data).cast("B")
        while rest:
            count = os.pwrite(self._file, rest, self.written_bytes)
            self.written_bytes += count
            rest = rest[count:]

    def take(self, file: int) -> None:
        """Appends the rest of an open file of this host, within the kernel; the caller closes it.

        Raises:
            JobError: It is shorter than it should be.
        """
        while self.written_bytes < self.entry.size_bytes:
            count = self._copy(file, min(_COPY_BYTES, self.entry.size_bytes - self.written_bytes))
            if count == 0:
                self._path.unlink()
                raise JobError(
                    f"{self.entry.path}: the file that was handed over ends at {self.written_bytes} of "
                    f"{self.entry.size_bytes} bytes; removed"
                )
            self.written_bytes += count

    def finish(self) -> None:
        """Flushes the file to the disk, verifies its digest and gives it its name. Any thread may call it.

        Raises:
            JobError: The bytes have another digest; they are removed.
            OSError: The disk failed.
        """
        os.fchmod(self._file, 0o444)
        self._flush()
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if digest != self.entry.digest:
            self._path.unlink()
            raise JobError(
                f"{self.entry.path}: the {self.written_bytes} bytes that came have digest {digest}, "
                f"expected {self.entry.digest}; removed"
            )
        self._store.adopt(self._path, self.entry)

    def _flush(self) -> None:
        """Flushes; what a disk failed to take may be lost although it can still be read, so it goes."""
        try:
            os.fsync(self._file)
        except OSError:
            self._path.unlink()
            raise

    def _copy(self, file: int, count: int) -> int:
        with contextlib.suppress(OSError):  # another file system
            return os.copy_file_range(file, self._file, count, self.written_bytes, self.written_bytes)
        os.lseek(self._file, self.written_bytes, os.SEEK_SET)
        return os.sendfile(self._file, file, self.written_bytes, count)

    def close(self) -> None:
        """Closes the file; what was written stays for the next writer."""
        os.close(self._file)


class StoreIntake(Store):
    """A store that takes files in pieces; one process at a time.

    Args:
        root: The store's root.
        keep_s: How long a file that nobody goes on sending is kept [s].

    Raises:
        ConfigError: Another process takes files into this store.
    """

    def __init__(self, root: Path, *, keep_s: float = KEEP_S) -> None:
        super().__init__(root)
        self._incoming = root / "incoming"
        self._incoming.mkdir(exist_ok=True)
        self._lock = (root / "incoming.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ConfigError(
                f"{root}: another receiver takes files into this store; stop it, or give this one its own "
                "store with SIM2OR_STORE"
            ) from None
        self._remove_older_than(keep_s)

    def lacking(self, entry: FileEntry) -> int | None:
        """How many bytes of a file are still to come; None when it is here."""
        if self.has(entry):
            return None
        with contextlib.suppress(FileNotFoundError):
            return max(0, entry.size_bytes - self._part_path(entry).stat().st_size)
        return entry.size_bytes

    def open_part(self, entry: FileEntry) -> PartFile:
        """Begins a file, or goes on with what an earlier writer left."""
        return PartFile(self._part_path(entry), self, entry)

    def free_bytes(self) -> int:
        """How much the disk still takes."""
        return shutil.disk_usage(self.root).free

    def close(self) -> None:
        """Lets another process take files into this store."""
        self._lock.close()

    def _part_path(self, entry: FileEntry) -> Path:
        return self._incoming / entry.digest.removeprefix("sha256:")

    def _remove_older_than(self, keep_s: float) -> None:
        for path in self._incoming.iterdir():
            if time.time() - path.stat().st_mtime > keep_s:
                path.unlink()
