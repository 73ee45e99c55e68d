from __future__ import annotations

import fcntl
import gc
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sim2or.bus import ring, sockets
from sim2or.bus.pubsub import Publisher, Subscriber
from sim2or.bus.ring import Overwritten, Ring, Rings, Unattached, Where
from sim2or.bus.rpc import PolicyClient, PolicyServerLoop, Router
from sim2or.clock import now_ns
from sim2or.errors import MessageError
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.array import Buffer
from sim2or.messages.codec import decode
from sim2or.messages.envelope import Envelope, Origin
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.robot_state import RobotState

Eventually = Callable[..., None]

SIDE_PX = 200
LATER_NS = 60_000_000_000
NEVER = 0


def image(level: int) -> np.ndarray:
    return np.full((SIDE_PX, SIDE_PX, 3), level % 256, np.uint8)


def message(level: int, size: int = 100_000) -> list[Buffer]:
    return [b"topic", b"{}", np.full(size, level % 256, np.uint8).data, b"small"]


def level_of(frames: Sequence[Buffer]) -> int:
    values = set(bytes(frames[2]))
    assert len(values) == 1
    return values.pop()


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


@contextmanager
def no_room(size_bytes: int = 100_000) -> Iterator[None]:
    """Files of this process, anonymous ones too, may not grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_shared_memory_messages_go_as_plain_frames(sender: Ring) -> None:
    """A segment that cannot be had is not asked for again, and nothing else changes."""
    before = len(os.listdir("/proc/self/fd"))
    with no_room():
        assert sender.offer(message(1)) == message(1)
    gc.collect()
    assert sender.offer(message(1)) == message(1)
    assert sender.token == b""
    assert len(os.listdir("/proc/self/fd")) == before


def note(where: Where, slot: int = 0, generation: int = 1, *parts: tuple[int, int]) -> bytes:
    placed = struct.pack("<IQH", slot, generation, len(parts))
    return b"S" + where.pack() + placed + b"".join(struct.pack("<QQ", *part) for part in parts)


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


# --- the same questions, answers and states as without it ---


def request(tick: int = 0, deadline_ms: float = 10_000.0) -> PolicyRequest:
    observation = Observation(
        robot="so101",
        task="handover",
        request="Hand me the scalpel",
        episode="e",
        tick=tick,
        state_rad=np.full(6, tick, np.float32),
        images={"wrist": image(tick), "room": image(tick + 1)},
        captured_ns=tick,
    )
    return PolicyRequest(artifact="sha256:1", observation=observation, deadline_ms=deadline_ms)


def answer(question: PolicyRequest) -> ActionChunk:
    """Actions that prove that every pixel was seen."""
    seen = question.observation
    levels = {camera: float(picture.mean()) for camera, picture in seen.images.items()}
    return ActionChunk(
        episode=seen.episode,
        tick=seen.tick,
        actions_rad=np.array([[levels["wrist"], levels["room"], 0, 0, 0, 0]], np.float32),
        period_s=1 / 30,
        captured_ns=seen.captured_ns,
        inference_s=0.0,
        artifact=question.artifact,
    )


@contextmanager
def serving(endpoint: str, *, shared: bool = True) -> Iterator[PolicyServerLoop]:
    loop = PolicyServerLoop(endpoint, lambda asked: [answer(one) for one in asked], ring=shared)
    stopped = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stopped.is_set,))
    thread.start()
    try:
        yield loop
    finally:
        stopped.set()
        thread.join(10)
        assert not thread.is_alive()


def test_a_receiver_without_the_ring_knows_what_it_misses(sender: Ring, receiver: Rings) -> None:
    """A message whose arrays lie in shared memory is unattached there, not malformed; others pass."""
    placed, slot = sender.place(message(1), until_ns=now_ns() + 10**9)
    assert slot
    with pytest.raises(Unattached, match="not used here"):
        ring.plain(placed)
    assert ring.plain(message(2)).frames[2:] == message(2)[2:]


@pytest.fixture
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('s')}/p"


@pytest.fixture
def client(endpoint: str) -> Iterator[PolicyClient]:
    made = PolicyClient(endpoint, Origin("bridge"))
    yield made
    made.close()


def ask(client: PolicyClient, tick: int, deadline_s: float = 10.0) -> None:
    """Asks and checks that the answer is about this very question's pixels."""
    got = client.call(request(tick), deadline_s=deadline_s)
    assert isinstance(got, ActionChunk), got
    assert got.tick == tick
    assert list(got.actions_rad[0, :2]) == [tick % 256, (tick + 1) % 256]


def test_questions_move_into_the_ring(endpoint: str, client: PolicyClient) -> None:
    """The first question goes as plain frames and offers the ring; its answer accepts, the others use it."""
    with serving(endpoint) as server:
        for tick in range(20):
            ask(client, tick)
        assert client.counts.ring_frames == server.counts.ring_frames == 3 * 19
        assert (client.counts.answered, server.counts.torn, client.counts.resent) == (20, 0, 0)
        assert min(client.counts.sent_bytes, server.counts.received_bytes) > 20 * 2 * SIDE_PX**2 * 3
        assert client.counts.received_bytes > 0


def test_loopback_tcp_uses_the_ring_too() -> None:
    """On one host it is the token that proves that both ends see the same memory, not the kind of address."""
    with serving("tcp://127.0.0.1:*") as server:
        client = PolicyClient(server.router.endpoint, Origin("bridge"))
        for tick in range(3):
            ask(client, tick)
        assert server.counts.ring_frames == 6
        client.close()


@pytest.mark.parametrize(("asks_with", "answers_with"), [(True, False), (False, True), (False, False)])
def test_one_end_without_the_ring_is_enough_for_plain_frames(
    endpoint: str, asks_with: bool, answers_with: bool
) -> None:
    """A peer that cannot or may not attach is served as before, with nothing lost or repeated."""
    with serving(endpoint, shared=answers_with) as server:
        client = PolicyClient(endpoint, Origin("bridge"), ring=asks_with)
        for tick in range(5):
            ask(client, tick)
        client.close()
        assert (server.counts.ring_frames, server.counts.received, client.counts.resent) == (0, 5, 0)


def test_a_restarted_server_attaches_again(endpoint: str, client: PolicyClient) -> None:
    """A new server finds the segment from the note alone."""
    with serving(endpoint):
        ask(client, 1)
    with serving(endpoint) as second:
        ask(client, 2)
        ask(client, 3)
        assert second.counts.ring_frames == 6


def test_a_server_that_lost_the_ring_loses_no_question(endpoint: str, client: PolicyClient) -> None:
    """A question in a ring that the new server cannot read is sent again as plain frames, and answered."""
    with serving(endpoint):
        ask(client, 1)
        ask(client, 2)
    with serving(endpoint, shared=False) as second:
        ask(client, 3)
        ask(client, 4)
        assert client.counts.resent == 1
        assert second.counts.ring_frames == 0
    with serving(endpoint) as third:
        ask(client, 5)
        ask(client, 6)
        assert third.counts.ring_frames == 3


def test_a_question_overwritten_after_its_deadline_is_told_expired(
    endpoint: str, client: PolicyClient, eventually: Eventually
) -> None:
    """A server that reads late says "expired" to a question whose memory is gone, and answers the newer."""
    with serving(endpoint):
        ask(client, 1)
    router = Router(endpoint, Origin("policy"), PolicyRequest)
    asked: list[object] = []
    eventually(lambda: asked.append(client.send(request(2), deadline_s=0.02)) or asked[-1])
    eventually(lambda: client.poll() is None and client.counts.expired >= 1)
    eventually(lambda: client.send(request(3), deadline_s=10) is not None)  # None: not connected again yet
    question = router.receive(5)
    assert question is not None
    assert question.message.observation.tick == 3
    assert (router.counts.torn, router.counts.malformed) == (1, 0)
    router.answer(question, answer(question.message))
    reply = client.poll(5)
    assert reply is not None
    assert isinstance(reply.message, ActionChunk)
    eventually(lambda: client.poll() is None and client.counts.late == 1)
    router.close()


def test_a_handler_may_keep_what_it_was_given(endpoint: str, client: PolicyClient) -> None:
    """Observations kept by the application stay as they were; the ring makes way for plain frames."""
    kept: list[PolicyRequest] = []

    def handler(asked: list[PolicyRequest]) -> list[ActionChunk]:
        kept.extend(asked)
        return [answer(one) for one in asked]

    loop = PolicyServerLoop(endpoint, handler)
    stopped = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stopped.is_set,))
    thread.start()
    try:
        for tick in range(3 * ring.SLOTS):
            ask(client, tick)
    finally:
        stopped.set()
        thread.join(10)
    assert loop.counts.ring_frames == 3 * ring.SLOTS
    assert [one.observation.images["wrist"].mean() for one in kept] == list(range(3 * ring.SLOTS))


def test_a_hostile_note_is_answered(endpoint: str, client: PolicyClient) -> None:
    """A server counts it as malformed, tells its sender what is wrong, and serves the next question."""
    with serving(endpoint) as server:
        ask(client, 1)
        raw = sockets.open_socket(zmq.DEALER, hwm=4)
        sockets.connect(raw, endpoint)
        assert raw.poll(5000, zmq.POLLOUT)
        strange = Where(1, 0, bytes(16), 8, 4096)
        raw.send_multipart([ring.noted(b"policy_request", note(strange, 99)), b"{}"])
        assert raw.poll(5000, zmq.POLLIN)
        _, reply = decode(raw.recv_multipart(), PolicyError)
        assert (reply.code, "cannot be attached" in reply.detail) == ("refused", True)
        raw.send_multipart([b"policy_request\0S", b"{}"])
        assert raw.poll(5000, zmq.POLLIN)
        _, reply = decode(raw.recv_multipart(), PolicyError)
        assert "too short" in reply.detail
        raw.close()
        ask(client, 2)
        assert (server.counts.unattached, server.counts.malformed) == (1, 1)


def state(seq: int) -> RobotState:
    return RobotState(
        seq=seq,
        captured_ns=seq,
        position_rad=np.full(6, seq, np.float32),
        velocity_radps=np.zeros(6, np.float32),
        images={"wrist": image(seq)},
    )


def heard(
    publisher: Publisher, *subscribers: Subscriber[RobotState], seq: int
) -> list[tuple[Envelope, RobotState]]:
    """Publishes one state and returns what each subscriber makes of it."""
    publisher.publish(state(seq))
    got = [subscriber.newest(0.2) for subscriber in subscribers]
    for received in got:
        assert received is None or set(received[1].images["wrist"].reshape(-1)) == {received[1].seq % 256}
    return [received for received in got if received]


def test_states_move_into_the_ring_while_every_listener_can(endpoint: str, eventually: Eventually) -> None:
    """One listener that cannot attach brings plain frames back for all, until it has gone."""
    with ExitStack() as closing:
        publisher = Publisher(endpoint, Origin("robot"), RobotState)
        closing.callback(publisher.close)
        able = [Subscriber(endpoint, RobotState) for _ in (1, 2)]
        for one in able:
            closing.callback(one.close)

        def placed() -> bool:
            before = publisher.counts.ring_frames
            return len(heard(publisher, *able, seq=1)) == 2 and publisher.counts.ring_frames > before

        eventually(placed)
        assert all(one.counts.ring_frames > 0 for one in able)
        unable = Subscriber(endpoint, RobotState, ring=False)
        eventually(lambda: len(heard(publisher, *able, unable, seq=2)) == 3)  # its first may be unattached
        before = publisher.counts.ring_frames
        assert len(heard(publisher, *able, unable, seq=3)) == 3
        assert publisher.counts.ring_frames == before
        assert (unable.counts.ring_frames, unable.counts.malformed) == (0, 0)
        unable.close()
        eventually(placed)
        assert [one.counts.malformed for one in able] == [0, 0]


def test_a_flood_of_subscriptions_costs_only_the_ring(endpoint: str, eventually: Eventually) -> None:
    """A listener with thousands of topics makes a publisher go back to plain frames, and forget them."""
    with ExitStack() as closing:
        publisher = Publisher(endpoint, Origin("robot"), RobotState)
        closing.callback(publisher.close)
        subscriber = Subscriber(endpoint, RobotState)
        closing.callback(subscriber.close)
        eventually(lambda: heard(publisher, subscriber, seq=1) and subscriber.counts.ring_frames)
        flood = zmq.Context.instance().socket(zmq.SUB)
        closing.callback(flood.close, linger=0)
        flood.connect(endpoint)
        for number in range(2000):
            flood.setsockopt(zmq.SUBSCRIBE, b"topic %d" % number)

        def plain() -> bool:
            before = publisher.counts.ring_frames
            return bool(heard(publisher, subscriber, seq=2)) and publisher.counts.ring_frames == before

        eventually(lambda: all(plain() for _ in range(3)))
        assert subscriber.counts.malformed == 0


def test_a_late_reader_gets_the_newest_state_whole(endpoint: str, eventually: Eventually) -> None:
    """States overwritten before they were read count as torn and as gaps; what is handed out is whole."""
    with ExitStack() as closing:
        publisher = Publisher(endpoint, Origin("robot"), RobotState)
        closing.callback(publisher.close)
        subscriber = Subscriber(endpoint, RobotState)
        closing.callback(subscriber.close)
        eventually(lambda: heard(publisher, subscriber, seq=1) and subscriber.counts.ring_frames)
        total = publisher.counts.published
        end_ns = now_ns() + int(0.5e9)
        while now_ns() < end_ns:
            publisher.publish(state(2))
        eventually(lambda: heard(publisher, subscriber, seq=3))
        while subscriber.newest(0.2):
            pass
        total = publisher.counts.published - total
        counts = subscriber.counts
        assert counts.torn + counts.gaps > 0
        assert counts.gaps >= counts.torn
        assert counts.malformed == 0
        assert total > counts.ring_frames


def test_a_restarted_publisher_offers_a_new_ring(endpoint: str, eventually: Eventually) -> None:
    """The listener attaches the new segment; nothing is malformed."""
    subscriber = Subscriber(endpoint, RobotState)
    for _ in range(2):
        publisher = Publisher(endpoint, Origin("robot"), RobotState)
        eventually(
            lambda now=publisher: heard(now, subscriber, seq=1) and now.counts.ring_frames  # type: ignore[misc]
        )
        publisher.close()
    assert subscriber.counts.malformed == 0
    subscriber.close()


# --- kill, freeze, fill ---

SERVER = """
import sys
import numpy as np
from sim2or.bus.rpc import PolicyServerLoop
from sim2or.messages.action_chunk import ActionChunk

kept = []

def handler(asked):
    kept.extend(asked)
    return [
        ActionChunk(
            episode="e", tick=one.observation.tick, period_s=1 / 30, captured_ns=0,
            inference_s=0.0, artifact="a",
            actions_rad=np.array(
                [[one.observation.images[name].mean() for name in ("wrist", "room")] + 4 * [0]], np.float32
            ),
        )
        for one in asked
    ]

PolicyServerLoop(sys.argv[1], handler).run(lambda: False)
"""

WRITER = """
import sys
import numpy as np
from sim2or.bus.ring import Ring, note_of

ring = Ring()
size = 8_000_000
pictures = [np.full(size, level, np.uint8).data for level in range(1, 8)]
sys.stdout.buffer.write(note_of(ring.offer([b"topic", b"{}", pictures[0]]))[1:])
sys.stdout.flush()
number = 0
while True:
    number += 1
    ring.place([b"topic", b"{}", pictures[number % 7]], until_ns=number)
"""

CLIENT = """
import sys
import numpy as np
from sim2or.bus.rpc import PolicyClient
from sim2or.messages.envelope import Origin
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyRequest

client = PolicyClient(sys.argv[1], Origin("bridge"))
while True:
    observation = Observation(
        robot="r", task="t", request="", episode="e", tick=0, captured_ns=0,
        state_rad=np.zeros(6, np.float32),
        images={name: np.zeros((200, 200, 3), np.uint8) for name in ("wrist", "room")},
    )
    client.call(PolicyRequest(artifact="a", observation=observation, deadline_ms=5000.0), deadline_s=10)
    if client.counts.ring_frames:
        print("in the ring", flush=True)
"""


@contextmanager
def process(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
    try:
        yield started
    finally:
        started.kill()
        started.wait(10)
        assert started.stdout is not None
        started.stdout.close()


def segments(process_id: str = "[0-9]*") -> set[str]:
    """The segments that any process, or one of them, has open or mapped, seen from outside."""
    found = set()
    for path in Path("/proc").glob(process_id):
        try:
            links = [os.readlink(link) for link in (path / "fd").iterdir()]
            links += [line.rpartition(" /")[2] for line in (path / "maps").read_text().splitlines()]
        except OSError:
            continue
        found |= {link.lstrip("/") for link in links if "memfd:sim2or-ring" in link}
    return found


@pytest.mark.faults("F7")
def test_a_killed_server_gives_its_slots_back(endpoint: str, client: PolicyClient) -> None:
    """A server killed with every slot in its hands takes none with it: its successor finds them free."""
    for _ in range(3):
        with process(SERVER, endpoint):
            before = client.counts.ring_frames
            for tick in range(2 * ring.SLOTS):
                ask(client, tick, deadline_s=20)
            assert client.counts.ring_frames - before == 3 * ring.SLOTS


@pytest.mark.faults("F7")
@pytest.mark.parametrize("seed", range(8))
def test_a_sender_killed_while_it_writes_leaves_nothing_half_written(
    seed: int,
) -> None:
    """Whenever it dies, each slot either holds one whole picture or says that it holds none."""
    pause_s = random.Random(seed).uniform(0.02, 0.08)
    with process(WRITER) as writer, ExitStack() as closing:
        assert writer.stdout is not None
        packed = writer.stdout.read(36)
        where = Where.unpack(packed)
        receiver = Rings()
        assert receiver.open([ring.noted(b"topic", b"O" + packed), b"{}"]).token == where.token
        fd = os.open(where.path, os.O_RDONLY)
        closing.callback(os.close, fd)
        threading.Event().wait(pause_s)
        writer.kill()
        writer.wait(10)
        whole = 0
        for slot in range(where.slots):
            (generation,) = struct.unpack("<Q", os.pread(fd, 8, 64 + 8 * slot))
            topic = ring.noted(b"topic", note(where, slot, generation or 1, (0, 8_000_000)))
            if generation:
                picture = np.frombuffer(receiver.open([topic, b"{}"]).frames[2], np.uint8)
                assert picture.min() == picture.max() == generation % 7 + 1
                whole += 1
            else:
                with pytest.raises(Overwritten):
                    receiver.open([topic, b"{}"])
        assert whole >= 1


@pytest.mark.faults("F7")
def test_nothing_is_left_when_both_ends_are_killed(endpoint: str) -> None:
    """After SIGKILL of both no process has the segment, and it never had a name in any directory."""
    with process(SERVER, endpoint) as server, process(CLIENT, endpoint) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"in the ring\n"
        made = segments(str(client.pid))
        assert len(made) == 1
        assert made <= segments(str(server.pid))
        for one in (client, server):
            one.send_signal(signal.SIGKILL)
            one.wait(10)
        assert not made & segments()


@pytest.mark.faults("F9")
def test_a_frozen_server_costs_its_client_no_memory(endpoint: str, client: PolicyClient) -> None:
    """While it is stopped questions are refused or expire within bounds; afterwards all is well."""
    with process(SERVER, endpoint) as server:
        ask(client, 1, deadline_s=20)
        ask(client, 2)
        server.send_signal(signal.SIGSTOP)
        before_kb = _resident_kb()
        end_ns = now_ns() + int(1.5e9)
        while now_ns() < end_ns:
            client.send(request(3), deadline_s=0.05)
            client.poll()
        assert _resident_kb() - before_kb < 50_000
        server.send_signal(signal.SIGCONT)
        ask(client, 4, deadline_s=20)


def _resident_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.faults("F10")
def test_full_memory_means_plain_frames(endpoint: str) -> None:
    """A client that gets no segment asks as before; every question is answered."""
    with process(SERVER, endpoint), no_room():
        client = PolicyClient(endpoint, Origin("bridge"))
        for tick in range(5):
            ask(client, tick, deadline_s=20)
        assert (client.counts.ring_frames, client.counts.answered) == (0, 5)
        client.close()
