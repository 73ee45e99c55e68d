"""The ring: large arrays in memory that a sender and its receivers share."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sim2or.bus import ring
from sim2or.bus.ring import Overwritten, Ring, Rings, Unattached, Where
from sim2or.clock import now_ns
from sim2or.errors import MessageError
from sim2or.messages.array import Buffer

sys.path.insert(0, str(Path(__file__).parent))
from ring_messages import LATER_NS, NEVER, level_of, message, no_room, note


@pytest.fixture
def sender() -> Iterator[Ring]:
    made = Ring()
    yield made
    made.close()


@pytest.fixture
def receiver(sender: Ring) -> Rings:
    """A receiver that has attached the sender's segment."""
    made = Rings()
    opened = made.open(sender.offer(message(0)))
    assert opened.token == sender.token != b""
    assert opened.placed == 0
    return made


def where_of(sender: Ring) -> Where:
    return Where.unpack(ring.note_of(sender.offer(message(0)))[1:])


def test_arrays_are_read_where_they_lie(sender: Ring, receiver: Rings) -> None:
    """A large message leaves as topic and header; its arrays come back bit-equal and read-only."""
    placed, slot = sender.place(message(7), until_ns=now_ns() + LATER_NS)
    assert slot is not None
    assert [len(frame) for frame in placed[1:]] == [2]
    opened = receiver.open(placed)
    assert opened.placed == 2
    assert [bytes(frame) for frame in opened.frames[1:]] == [bytes(frame) for frame in message(7)[1:]]
    array = np.frombuffer(opened.frames[2], np.uint8)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_small_messages_go_as_before(sender: Ring, receiver: Rings) -> None:
    """Below 64 KiB nothing is placed, and nothing is offered."""
    small: list[Buffer] = [b"topic", b"{}", bytes(ring.LARGE_BYTES - 1)]
    assert sender.place(small, until_ns=NEVER) == (small, None)
    assert sender.offer(small) == small
    assert receiver.open(small).frames == small


def test_what_is_read_is_never_written(sender: Ring, receiver: Rings) -> None:
    """A slot whose arrays are in use is passed over; when all are, messages go as plain frames."""
    held = []
    for level in range(ring.SLOTS):
        placed, slot = sender.place(message(level), until_ns=NEVER)
        assert slot is not None
        held.append(receiver.open(placed).frames)
    plain, slot = sender.place(message(99), until_ns=NEVER)
    assert slot is None
    assert level_of(receiver.open(plain).frames) == 99
    assert [level_of(frames) for frames in held] == list(range(ring.SLOTS))
    del held[3]
    gc.collect()
    receiver.open(plain)
    placed, slot = sender.place(message(100), until_ns=NEVER)
    assert slot is not None
    assert slot.place.slot == 3
    assert level_of(receiver.open(placed).frames) == 100


def test_an_array_alone_keeps_its_slot(sender: Ring, receiver: Rings) -> None:
    """One array of a message that is long forgotten is enough to keep the slot from being written."""
    placed, _ = sender.place(message(5), until_ns=NEVER)
    array = np.frombuffer(receiver.open(placed).frames[2], np.uint8).reshape(100, -1)[3:, ::2]
    for level in range(6, 6 + 3 * ring.SLOTS):
        placed, _ = sender.place(message(level), until_ns=NEVER)
        assert level_of(receiver.open(placed).frames) == level
    assert set(array.reshape(-1)) == {5}


def test_a_message_on_its_way_keeps_its_slot(sender: Ring, receiver: Rings) -> None:
    """Until its time is over, a message that nobody has opened yet is not overwritten."""
    on_their_way = [sender.place(message(level), until_ns=now_ns() + LATER_NS) for level in range(ring.SLOTS)]
    assert sender.place(message(99), until_ns=NEVER)[1] is None
    for level, (placed, _) in enumerate(on_their_way):
        assert level_of(receiver.open(placed).frames) == level


def test_an_overwritten_message_is_noticed(sender: Ring, receiver: Rings) -> None:
    """A message whose slot was written again is refused, never read; the newer one is there."""
    old, slot = sender.place(message(1), until_ns=now_ns() + LATER_NS)
    assert slot is not None
    slot.free()
    new, _ = sender.place(message(2), until_ns=now_ns() + LATER_NS)
    with pytest.raises(Overwritten, match="slot 0 no longer holds message 1"):
        receiver.open(old)
    assert level_of(receiver.open(new).frames) == 2


def test_a_message_that_comes_twice_is_read_twice(sender: Ring, receiver: Rings) -> None:
    """A repeated note finds the same arrays, and the slot is free only when both are gone."""
    placed, _ = sender.place(message(1), until_ns=NEVER)
    first, second = receiver.open(placed), receiver.open(placed)
    del first
    gc.collect()
    receiver.open(placed)
    for level in range(2, 2 + 2 * ring.SLOTS):
        sender.place(message(level), until_ns=NEVER)
    assert level_of(second.frames) == 1


def test_a_larger_message_gets_a_larger_segment(sender: Ring, receiver: Rings) -> None:
    """A message that does not fit goes as plain frames and offers a new segment, which then carries it."""
    old = sender.token
    offered, slot = sender.place(message(1, 300_000), until_ns=NEVER)
    assert slot is None
    opened = receiver.open(offered)
    assert opened.token == sender.token != old
    assert level_of(opened.frames) == 1
    placed, slot = sender.place(message(2, 300_000), until_ns=NEVER)
    assert slot is not None
    assert level_of(receiver.open(placed).frames) == 2


def test_a_message_too_large_for_any_segment_goes_as_plain_frames(sender: Ring) -> None:
    """The segment's size is capped."""
    huge: list[Buffer] = [b"topic", b"{}", bytes(ring.MAX_SEGMENT_BYTES // ring.SLOTS)]
    assert sender.offer(huge) == huge


def test_without_shared_memory_messages_go_as_plain_frames(sender: Ring) -> None:
    """A segment that cannot be had is not asked for again, and nothing else changes."""
    before = len(os.listdir("/proc/self/fd"))
    with no_room():
        assert sender.offer(message(1)) == message(1)
    gc.collect()
    assert sender.offer(message(1)) == message(1)
    assert sender.token == b""
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda w: b"S", "note of 0 bytes is too short"),
        (lambda w: b"O" + w.pack()[:-1], "too short"),
        (lambda w: b"S" + w.pack() + b"\1\2", "too short"),
        (lambda w: note(w, w.slots), f"slot {ring.SLOTS} does not exist; the ring has {ring.SLOTS}"),
        (lambda w: note(w, 2**32 - 1), "does not exist"),
        (lambda w: note(w, 0, 1, (0, w.slot_bytes + 1)), "end within a slot"),
        (lambda w: note(w, 0, 1, (64, w.slot_bytes)), "end within a slot"),
        (lambda w: note(w, 0, 1, (2**64 - 64, 64)), "end within a slot"),
        (lambda w: note(w, 0, 1, (3, 8)), "multiples of 64"),
        (lambda w: note(w, 0, 1, *[(0, 8)] * 65), "does not hold 65 frames"),
        (lambda w: note(w, 0, 1, (0, 8)) + b"x", "does not hold 1 frames"),
        (lambda w: b"O" + w.pack()[:24] + struct.pack("<IQ", 0, 4096), "ring of 0 slots"),
        (lambda w: b"O" + w.pack()[:24] + struct.pack("<IQ", 65, 4096), "ring of 65 slots"),
        (lambda w: b"O" + w.pack()[:24] + struct.pack("<IQ", 8, 4097), "whole pages"),
        (lambda w: b"O" + w.pack()[:24] + struct.pack("<IQ", 64, 2**40), "at most 268435456"),
        (lambda w: note(w, 0, 0, (0, 8)), "no longer holds message 0"),
        (lambda w: note(w, 0, 2**64 - 1, (0, 8)), "no longer holds"),
    ],
)
def test_a_hostile_note_is_refused(
    sender: Ring, receiver: Rings, made: Callable[[Where], bytes], said: str
) -> None:
    """Nothing outside the slot of a written message is read; the error says what is wrong with the note."""
    sender.place(message(1), until_ns=NEVER)
    topic = ring.noted(b"topic", made(where_of(sender)))
    with pytest.raises(MessageError, match=said):
        receiver.open([topic, b"{}"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_note_is_refused_or_reads(sender: Ring, receiver: Rings, data: st.DataObject) -> None:
    """Whatever bytes stand behind the topic, the answer is MessageError or frames within the slot."""
    placed, slot = sender.place(message(1), until_ns=NEVER)
    assert slot is not None
    damaged = bytearray(placed[0])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(6, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(6, len(damaged)))
    for topic in (bytes(damaged), bytes(placed[0])[:cut], b"topic\0" + data.draw(st.binary(max_size=80))):
        with suppress(MessageError):
            opened = receiver.open([topic, b"{}"])
            assert sum(len(frame) for frame in opened.frames[2:]) <= 64 * slot.segment.where.slot_bytes


def test_extra_frames_beside_a_note_are_refused(sender: Ring, receiver: Rings) -> None:
    """Arrays lie either in the ring or beside the header, not both."""
    placed, _ = sender.place(message(1), until_ns=NEVER)
    with pytest.raises(MessageError, match="has 3 frames; only topic and header"):
        receiver.open([*placed, b"more"])


def _memfd(name: str, size: int, *, header: bytes = b"", sealed: bool = False) -> int:
    fd = os.memfd_create(name, os.MFD_ALLOW_SEALING)
    os.truncate(fd, size)
    os.pwrite(fd, header, 0)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


@pytest.mark.parametrize(
    "make",
    [
        lambda w, path: os.open("/etc/passwd", os.O_RDONLY),
        lambda w, path: os.open("/dev/zero", os.O_RDONLY),
        lambda w, path: os.open(_fifo(path), os.O_RDWR),
        lambda w, path: 10_000,
        lambda w, path: _memfd("other", w.size_bytes, header=w.header, sealed=True),
        lambda w, path: _memfd(w.link[7:-10], w.size_bytes, header=w.header),
        lambda w, path: _memfd(w.link[7:-10], w.size_bytes - 4096, header=w.header, sealed=True),
        lambda w, path: _memfd(w.link[7:-10], w.size_bytes, header=b"x" * 16, sealed=True),
    ],
    ids=["file", "device", "fifo", "closed", "other name", "can shrink", "other size", "other header"],
)
def test_another_file_is_never_attached(
    sender: Ring, make: Callable[[Where, Path], int], tmp_path: Path
) -> None:
    """Only a sealed segment with the right name, size and header is mapped; nothing else is even opened."""
    sender.offer(message(0))
    real = where_of(sender)
    fd = make(real, tmp_path)
    try:
        foreign = Where(os.getpid(), fd, real.token, real.slots, real.slot_bytes)
        assert Rings().open([ring.noted(b"topic", b"O" + foreign.pack()), b"{}"]).token == b""
        with pytest.raises(Unattached, match=f"process {os.getpid()} cannot be attached"):
            Rings().open([ring.noted(b"topic", note(foreign, 0, 1, (0, 8))), b"{}"])
    finally:
        if fd < 10_000:
            os.close(fd)


def _fifo(directory: Path) -> Path:
    path = directory / "fifo"
    os.mkfifo(path)
    return path


def test_a_segment_cannot_be_changed_by_others(sender: Ring) -> None:
    """Nobody but its owner's own mapping writes to it, nobody shrinks it, nobody but the user opens it."""
    sender.offer(message(0))
    where = where_of(sender)
    assert os.stat(where.path).st_mode & 0o777 == 0o600
    fd = os.open(where.path, os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, where.size_bytes)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_segments_of_those_who_left_are_let_go(receiver: Rings) -> None:
    """A receiver drops the segments whose owner has closed them when the next one comes."""
    before = sum("sim2or-ring" in line for line in Path("/proc/self/maps").read_text().splitlines())
    for level in range(5):
        passing = Ring()
        receiver.open(passing.offer(message(level)))
        passing.close()
    gc.collect()
    now = sum("sim2or-ring" in line for line in Path("/proc/self/maps").read_text().splitlines())
    assert now <= before + 1


def test_a_receiver_without_the_ring_knows_what_it_misses(sender: Ring, receiver: Rings) -> None:
    """A message whose arrays lie in shared memory is unattached there, not malformed; others pass."""
    placed, slot = sender.place(message(1), until_ns=now_ns() + 10**9)
    assert slot
    with pytest.raises(Unattached, match="not used here"):
        ring.plain(placed)
    assert ring.plain(message(2)).frames[2:] == message(2)[2:]
