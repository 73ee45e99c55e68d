"""Large frames between processes of one host, through shared memory: copied once, and read where they lie.

A sender owns a segment of a few slots. The arrays of a large message are copied into a slot, and the ZeroMQ
message carries topic and header only, with a note of where the arrays lie; small messages go as before. The
note stands in the topic frame, behind a NUL byte, where receivers that know no ring overlook it::

    topic \\0 O pid fd token slots slot_bytes              an offer, beside plain frames
    topic \\0 S pid fd token slots slot_bytes slot …       the arrays lie in that slot
    topic \\0 A token                                      an answer: your segment is attached

Nobody sends notes of slots before the receiver has said that it attached the segment.

The kernel is the judge of who may touch a slot. A reader holds a shared lock on a slot for as long as any
array of its message lives; a writer takes the exclusive lock, or another slot; a process that dies, however
it dies, holds no lock. The segment is an anonymous file that cannot shrink (memfd, sealed): it has no name
that could be left behind, and it is gone with the last process that has it open. See docs/decisions/0010.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import structlog

from sim2or.bus.address import is_loopback
from sim2or.clock import now_ns
from sim2or.errors import MessageError
from sim2or.messages.array import MAX_FRAMES, Buffer

log = structlog.get_logger()

SLOTS = 8
"""Messages on their way or in use at once; when all slots are taken, frames travel as before."""

LARGE_BYTES = 64 * 1024
"""Smaller frames are cheaper to send than to place."""

MAX_SLOTS = 64
MAX_SEGMENT_BYTES = 256 * 1024 * 1024
MAX_ATTACHED = 64
"""Segments that one receiver maps at once; the one unused for longest goes first."""

_NAME = "sim2or-ring"
_MAGIC = b"sim2or ring 1\0\0\0"
_HEADER = struct.Struct("<16s16sIQ")
_GENERATION = struct.Struct("<Q")
_GENERATIONS_AT = 64
_WHERE = struct.Struct("<II16sIQ")
_PLACE = struct.Struct("<IQH")
_PART = struct.Struct("<QQ")
_ALIGNMENT = 64
_PAGE = mmap.PAGESIZE
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_FUTURE_WRITE = 0x10
"""Only the owner's own mapping may ever write. Source: ``F_SEAL_FUTURE_WRITE``, linux/fcntl.h, since 5.1."""

_OFFER, _PLACED, _ATTACHED = b"O", b"S", b"A"


class Overwritten(MessageError):
    """The frames of a message were replaced before it was read: its deadline had passed."""


class Unattached(MessageError):
    """The frames of a message lie in a segment that this process cannot open."""


@dataclass(frozen=True)
class Where:
    """Finds a segment, and proves that it is the right one.

    Attributes:
        pid: The owner.
        fd: The owner's descriptor.
        token: 16 random bytes that name the segment.
        slots: How many messages it holds.
        slot_bytes: Size of each slot [bytes].
    """

    pid: int
    fd: int
    token: bytes
    slots: int
    slot_bytes: int

    @property
    def size_bytes(self) -> int:
        """Size of the whole segment: a page for its header, then the slots."""
        return _PAGE + self.slots * self.slot_bytes

    @property
    def path(self) -> str:
        """Where another process of the same user opens it."""
        return f"/proc/{self.pid}/fd/{self.fd}"

    @property
    def link(self) -> str:
        """What ``path`` must point to."""
        return f"/memfd:{_NAME}-{self.token.hex()} (deleted)"

    @property
    def header(self) -> bytes:
        """The first bytes of the segment."""
        return _HEADER.pack(_MAGIC, self.token, self.slots, self.slot_bytes)

    def pack(self) -> bytes:
        """The wire form."""
        return _WHERE.pack(self.pid, self.fd, self.token, self.slots, self.slot_bytes)

    @classmethod
    def unpack(cls, content: bytes) -> Where:
        """Reads the wire form; ``MessageError`` when it describes no segment that we would make."""
        if len(content) != _WHERE.size:
            raise MessageError(f"ring note of {len(content)} bytes is too short; an offer has {_WHERE.size}")
        where = cls(*_WHERE.unpack(content))
        if not (0 < where.slots <= MAX_SLOTS and where.slot_bytes > 0 and where.slot_bytes % _PAGE == 0):
            raise MessageError(
                f"ring of {where.slots} slots of {where.slot_bytes} bytes is refused; "
                f"1 to {MAX_SLOTS} slots of whole pages of {_PAGE} bytes are accepted"
            )
        if where.size_bytes > MAX_SEGMENT_BYTES:
            raise MessageError(
                f"ring of {where.size_bytes} bytes is refused; at most {MAX_SEGMENT_BYTES} are accepted"
            )
        return where


class Place(NamedTuple):
    """Where the arrays of a message lie.

    Attributes:
        slot: Which slot.
        generation: What the slot's counter says while it holds this message.
        parts: Offset in the slot and size of each array [bytes].
    """

    slot: int
    generation: int
    parts: tuple[tuple[int, int], ...]

    def pack(self) -> bytes:
        """The wire form."""
        parts = [_PART.pack(*part) for part in self.parts]
        return _PLACE.pack(self.slot, self.generation, len(parts)) + b"".join(parts)

    @classmethod
    def unpack(cls, content: bytes, where: Where) -> Place:
        """Reads the wire form; ``MessageError`` when it points outside its segment."""
        if len(content) < _PLACE.size:
            raise MessageError(f"ring note of {len(content)} bytes is too short")
        slot, generation, count = _PLACE.unpack_from(content)
        if count > MAX_FRAMES or len(content) != _PLACE.size + count * _PART.size:
            raise MessageError(f"ring note of {len(content)} bytes does not hold {count} frames")
        parts = tuple(_PART.iter_unpack(content[_PLACE.size :]))
        if slot >= where.slots:
            raise MessageError(f"ring slot {slot} does not exist; the ring has {where.slots}")
        for offset, size in parts:
            if offset % _ALIGNMENT or offset + size > where.slot_bytes:
                raise MessageError(
                    f"ring frame of {size} bytes at {offset} is refused; frames begin at multiples of "
                    f"{_ALIGNMENT} and end within a slot of {where.slot_bytes}"
                )
        return cls(slot, generation, parts)


def local(endpoint: str) -> bool:
    """Whether both ends of an endpoint are on this host, in different processes."""
    parts = urlsplit(endpoint)
    return parts.scheme == "ipc" or (parts.scheme == "tcp" and is_loopback(parts.hostname or ""))


def attached(token: bytes) -> bytes:
    """The note that says "your segment is attached"."""
    return _ATTACHED + token


def noted(topic: Buffer, note: bytes) -> bytes:
    """A topic frame with a note."""
    return b"\0".join((topic, note))


def note_of(frames: Sequence[Buffer]) -> bytes:
    """The note in a message's topic frame; empty when there is none."""
    return bytes(frames[0]).partition(b"\0")[2] if frames else b""


class Ring:
    """A sender's side: places large messages; use it from one thread.

    Args:
        slots: Messages on their way or in use at once.
    """

    def __init__(self, slots: int = SLOTS) -> None:
        self._slots = slots
        self._segment: _Segment | None = None
        self._refused = False

    @property
    def token(self) -> bytes:
        """Names the segment; empty while there is none."""
        return self._segment.where.token if self._segment else b""

    def offer(self, frames: list[Buffer]) -> list[Buffer]:
        """Offers the segment to the receiver when a message is large; its frames stay as they are."""
        segment = self._fitting(frames[2:]) if _is_large(frames) else None
        return [noted(frames[0], _OFFER + segment.packed), *frames[1:]] if segment else frames

    def place(self, frames: list[Buffer], *, until_ns: int) -> tuple[list[Buffer], Slot | None]:
        """Puts the arrays of a large message into a slot.

        Args:
            frames: The message.
            until_ns: Until then the slot is kept for a message that nobody has opened [ns]; after that a
                newer one may take its place.

        Returns:
            Topic with a note, header, and the slot; without a free slot the message with an offer, and None.
        """
        segment = self._segment
        if segment is None or not _is_large(frames):
            return frames, None
        arrays = frames[2:]
        slot = segment.write(arrays, until_ns) if segment.fits(arrays) else None
        if slot is None:
            return self.offer(frames), None
        return [noted(frames[0], _PLACED + segment.packed + slot.place.pack()), frames[1]], slot

    def close(self) -> None:
        """Gives the segment up; who still reads from it keeps it alive."""
        if self._segment:
            self._segment.close()
        self._segment = None

    def _fitting(self, arrays: Sequence[Buffer]) -> _Segment | None:
        """The segment when its slots have room for the arrays; otherwise a new one that has."""
        if self._segment and self._segment.fits(arrays):
            return self._segment
        needed = sum(map(_room, arrays))
        slot_bytes = -(-needed // _PAGE) * _PAGE
        if self._refused or _PAGE + self._slots * slot_bytes > MAX_SEGMENT_BYTES:
            return None
        self.close()
        try:
            self._segment = _Segment(self._slots, slot_bytes)
        except OSError as error:
            self._refused = True
            log.warning("no shared memory: large frames travel as before", bytes=needed, reason=str(error))
        return self._segment


class Slot(NamedTuple):
    """A slot that holds a message on its way.

    Attributes:
        place: Where the message's arrays are.
        segment: Whose slot it is.
    """

    place: Place
    segment: _Segment

    def free(self) -> None:
        """Says that nobody will open the message any more; who already has it keeps it."""
        self.segment.kept_ns[self.place.slot] = 0


class _Segment:
    """The owner's segment; an ``OSError`` says that there can be none."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        token = secrets.token_bytes(16)
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        self._fd = os.memfd_create(f"{_NAME}-{token.hex()}", flags)
        self._close = weakref.finalize(self, os.close, self._fd)
        self.where = Where(os.getpid(), self._fd, token, slots, slot_bytes)
        self.packed = self.where.pack()
        self.kept_ns = [0] * slots
        os.fchmod(self._fd, 0o600)
        os.posix_fallocate(self._fd, 0, self.where.size_bytes)
        self._map = mmap.mmap(self._fd, self.where.size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._map[: _HEADER.size] = self.where.header
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS | _FUTURE_WRITE)
        _lock(self._fd, fcntl.F_WRLCK, slots)
        self._generation = 0

    def fits(self, arrays: Sequence[Buffer]) -> bool:
        """Whether a slot has room for the arrays."""
        return sum(map(_room, arrays)) <= self.where.slot_bytes

    def write(self, arrays: Sequence[Buffer], until_ns: int) -> Slot | None:
        """Copies arrays into the slot that has been free for longest; None when none is free."""
        now = now_ns()
        for slot in sorted(range(self.where.slots), key=self.kept_ns.__getitem__):
            if self.kept_ns[slot] > now:
                return None
            if _lock(self._fd, fcntl.F_WRLCK, slot):
                try:
                    place = self._fill(slot, arrays)
                finally:
                    _lock(self._fd, fcntl.F_UNLCK, slot)
                self.kept_ns[slot] = until_ns
                return Slot(place, self)
        return None

    def close(self) -> None:
        """Closes the owner's ends."""
        self._map.close()
        self._close()

    def _fill(self, slot: int, arrays: Sequence[Buffer]) -> Place:
        """Writes a slot; a writer that dies in the middle leaves generation 0, which no note names."""
        self._generation += 1
        counter, start, parts = _counter_at(slot), _PAGE + slot * self.where.slot_bytes, []
        _GENERATION.pack_into(self._map, counter, 0)
        offset = 0
        with memoryview(self._map) as memory:
            for array in arrays:
                size = len(array)
                memory[start + offset : start + offset + size] = array
                parts.append((offset, size))
                offset += _room(array)
        _GENERATION.pack_into(self._map, counter, self._generation)
        return Place(slot, self._generation, tuple(parts))


class Opened(NamedTuple):
    """A message whose frames are all there.

    Attributes:
        frames: Topic, header and arrays; those from a ring are read-only views of shared memory.
        token: The sender's segment, which is attached; empty when it offered none that could be.
        placed: How many frames came through the ring.
    """

    frames: Sequence[Buffer]
    token: bytes = b""
    placed: int = 0


def plain(frames: Sequence[Buffer]) -> Opened:
    """A message for a receiver without shared memory; raises ``Unattached`` when its arrays lie there."""
    if note_of(frames)[:1] == _PLACED:
        raise Unattached("its frames lie in shared memory, which is not used here")
    return Opened(frames)


class Rings:
    """A receiver's side: the segments of its senders; use it from one thread."""

    def __init__(self) -> None:
        self._attachments: OrderedDict[bytes, _Attachment] = OrderedDict()

    def open(self, frames: Sequence[Buffer]) -> Opened:
        """Finds the arrays of a message that lie in shared memory.

        Args:
            frames: The message as it arrived.

        Raises:
            Overwritten: They were replaced meanwhile.
            Unattached: They lie in a segment that cannot be attached.
            MessageError: The note makes no sense.
        """
        note = note_of(frames)
        kind, where, place = note[:1], note[1 : 1 + _WHERE.size], note[1 + _WHERE.size :]
        if kind not in (_OFFER, _PLACED):
            return Opened(frames)
        attachment = self._attached(where)
        if kind == _OFFER:
            return Opened(frames, attachment.where.token if attachment else b"")
        if attachment is None:
            raise Unattached(f"ring of process {Where.unpack(where).pid} cannot be attached here")
        if len(frames) != 2:
            raise MessageError(
                f"message in a ring has {len(frames)} frames; only topic and header travel beside it"
            )
        arrays = attachment.read(Place.unpack(place, attachment.where))
        return Opened([*frames, *arrays], attachment.where.token, len(arrays))

    def close(self) -> None:
        """Lets all segments go; those whose arrays are still in use stay mapped until they are not."""
        self._attachments.clear()

    def _attached(self, packed: bytes) -> _Attachment | None:
        known = self._attachments.get(packed)
        if known:
            self._attachments.move_to_end(packed)
            known.release()
            return known
        where = Where.unpack(packed)
        for key in [key for key, one in self._attachments.items() if not one.owned()]:
            del self._attachments[key]
        try:
            made = _Attachment(where)
        except OSError:
            return None
        self._attachments[packed] = made
        while len(self._attachments) > MAX_ATTACHED:
            self._attachments.popitem(last=False)
        return made


class _Attachment:
    """Somebody else's segment, mapped read-only; an ``OSError`` says that it cannot be, or is not his."""

    def __init__(self, where: Where) -> None:
        self.where = where
        if os.readlink(where.path) != where.link:
            raise PermissionError(f"{where.path} is not {where.link}")
        self._fd = os.open(where.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        weakref.finalize(self, os.close, self._fd).atexit = False
        self._check()
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._map = mmap.mmap(self._fd, where.size_bytes, flags=flags, prot=mmap.PROT_READ)
        if self._map[: _HEADER.size] != where.header:
            raise PermissionError(f"{where.path} has another header")
        self._readers = [0] * where.slots
        self._dropped: deque[int] = deque()

    def read(self, place: Place) -> list[memoryview]:
        """Views of the arrays in a slot, which is nobody else's until the last of them is gone."""
        slot, generation, parts = place
        if not self._readers[slot] and not _lock(self._fd, fcntl.F_RDLCK, slot):
            raise Overwritten(f"ring slot {slot} is being written again")
        if _GENERATION.unpack_from(self._map, _counter_at(slot))[0] != generation:
            if not self._readers[slot]:
                _lock(self._fd, fcntl.F_UNLCK, slot)
            raise Overwritten(f"ring slot {slot} no longer holds message {generation}")
        whole = np.frombuffer(
            self._map, np.uint8, self.where.slot_bytes, _PAGE + slot * self.where.slot_bytes
        )
        self._readers[slot] += 1
        weakref.finalize(whole, self._dropped_slot, slot).atexit = False
        view = memoryview(whole)
        return [view[offset : offset + size] for offset, size in parts]

    def release(self) -> None:
        """Gives the slots back whose arrays are gone.

        They go in any thread, even within a garbage collection; so that is only written down then.
        """
        while self._dropped:
            slot = self._dropped.popleft()
            self._readers[slot] -= 1
            if not self._readers[slot]:
                _lock(self._fd, fcntl.F_UNLCK, slot)

    def owned(self) -> bool:
        """Whether its owner lives and has not given it up."""
        asked = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _request(fcntl.F_RDLCK, self.where.slots))
        return bool(_FLOCK.unpack_from(asked)[0] != fcntl.F_UNLCK)

    def _dropped_slot(self, slot: int) -> None:
        self._dropped.append(slot)

    def _check(self) -> None:
        """It is the same user's, has the size it claims, and can never shrink under a reader."""
        found = os.fstat(self._fd)
        seals = fcntl.fcntl(self._fd, fcntl.F_GET_SEALS)
        if found.st_uid != os.geteuid() or found.st_size != self.where.size_bytes or seals & _SEALS != _SEALS:
            raise PermissionError(
                f"{self.where.path}: user {found.st_uid}, {found.st_size} bytes, seals {seals:#x}; expected "
                f"user {os.geteuid()}, {self.where.size_bytes} bytes, seals {_SEALS:#x}"
            )


_FLOCK = struct.Struct("hhqqi")
"""``struct flock``: type, whence, start, length, pid (0). Source: fcntl(2), "Open file description locks"."""


@lru_cache(maxsize=4 * MAX_SLOTS)
def _request(kind: int, slot: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, slot, 1, 0)


def _lock(fd: int, kind: int, slot: int) -> bool:
    """Locks or unlocks a slot without waiting; False when somebody else holds it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(kind, slot))
    except BlockingIOError:
        return False
    return True


def _counter_at(slot: int) -> int:
    return _GENERATIONS_AT + slot * _GENERATION.size


def _room(frame: Buffer) -> int:
    """What a frame takes in a slot, so that each begins at a multiple of a cache line."""
    return -(-len(frame) // _ALIGNMENT) * _ALIGNMENT


def _is_large(frames: Sequence[Buffer]) -> bool:
    return any(len(frame) >= LARGE_BYTES for frame in frames[2:])
