"""F17: malformed input at a live server, subscriber, client and queue; nothing crashes, all is counted.

Hypothesis makes the input up; a failure prints the example and the seed that repeats it.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from sim2or.bus import sockets
from sim2or.bus.events import Events
from sim2or.bus.jobs import Jobs
from sim2or.bus.pubsub import Publisher, Subscriber
from sim2or.bus.rpc import PolicyClient, PolicyServerLoop
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.codec import decode, encode
from sim2or.messages.envelope import Envelope, Origin
from sim2or.messages.job import Job, JobResult
from sim2or.messages.message import Message
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.robot_state import RobotState

pytestmark = pytest.mark.faults("F17")

Eventually = Callable[..., None]
Frames = list[bytes]
ORIGIN = Origin("fuzz")
PATIENCE_MS = 5000

fuzz = settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck))
few = settings(fuzz, max_examples=60)


def question(tick: int = 0) -> PolicyRequest:
    return PolicyRequest(
        artifact="sha256:1",
        deadline_ms=60_000.0,
        observation=Observation(
            robot="so101",
            task="handover",
            request="Hand me the scalpel",
            episode="e",
            tick=tick,
            state_rad=np.zeros(6, np.float32),
            images={"wrist": np.zeros((4, 5, 3), np.uint8)},
            captured_ns=1000,
        ),
    )


def chunk(asked: PolicyRequest) -> ActionChunk:
    return ActionChunk(
        episode=asked.observation.episode,
        tick=asked.observation.tick,
        actions_rad=np.zeros((20, 6), np.float32),
        period_s=1 / 30,
        captured_ns=asked.observation.captured_ns,
        inference_s=0.0,
        artifact=asked.artifact,
    )


def state(seq: int) -> RobotState:
    zeros = np.zeros(6, np.float32)
    return RobotState(seq=seq, captured_ns=seq, position_rad=zeros, velocity_radps=zeros)


def frames_of(message: Message, *, cause: Envelope | None = None, origin: Origin = ORIGIN) -> Frames:
    return [
        bytes(frame) for frame in encode(message, origin.envelope(message, cause=cause, deadline_ms=60_000.0))
    ]


def nested(depth: int) -> Any:
    inner: Any = 0
    for _ in range(depth):
        inner = [inner]
    return inner


huge = st.sampled_from([2**31, 2**63, 2**64, -(2**64), 10**30, 10**400, 1e308, -1e308, 1e-308])
odd = st.one_of(
    st.none(),
    st.booleans(),
    huge,
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.just("x" * 5000),
    st.lists(st.integers(-2, 2**65), max_size=12),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.sampled_from(
        ["object", "O", "V8", "float64", ">f4", "2.0", "99.1", "policy_request", "job", "robot_state"]
    ),
    st.integers(1, 400).map(nested),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


@st.composite
def edited(draw: st.DrawFn, text: bytes) -> bytes:
    """A JSON text in which one or two values are something else, gone, or under another name."""
    content = json.loads(text)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(content))
        if not places:
            break
        *above, key = draw(st.sampled_from(places))
        holder = content
        for step in above:
            holder = holder[step]
        how = draw(st.sampled_from(["replace", "replace", "remove", "rename"]))
        if how == "replace" or isinstance(holder, list):
            holder[key] = draw(odd)
        else:
            value = holder.pop(key)
            if how == "rename":
                holder[draw(st.text(max_size=10))] = value
    return json.dumps(content).encode()


@st.composite
def flipped(draw: st.DrawFn, frame: bytes) -> bytes:
    """A frame with a changed byte, cut short, drawn out, or of bytes that are no text."""
    where, how = draw(st.integers(0, max(0, len(frame) - 1))), draw(st.integers(0, 4))
    if how == 0 and frame:
        return frame[:where] + bytes([frame[where] ^ draw(st.integers(1, 255))]) + frame[where + 1 :]
    if how == 1:
        return frame[:where]
    if how == 2:
        return frame[:where] + b"\xff\xfe\x00" + frame[where:]
    if how == 3:
        return frame + draw(st.binary(min_size=1, max_size=30))
    return draw(st.binary(max_size=60))


@st.composite
def mutated(draw: st.DrawFn, whole: Frames) -> Frames:
    """A valid message in which something is wrong: a field, bytes, or the frames themselves."""
    frames = list(whole)
    how = draw(
        st.sampled_from(["field", "field", "field", "bytes", "drop", "twice", "order", "nan", "noise"])
    )
    index = draw(st.integers(0, len(frames) - 1))
    if how == "field":
        frames[1] = draw(edited(frames[1]))
    elif how == "bytes":
        frames[index] = draw(flipped(frames[index]))
    elif how == "drop":
        del frames[index]
    elif how == "twice":
        frames.insert(index, frames[index])
    elif how == "order":
        frames = draw(st.permutations(frames))
    elif how == "nan":
        frames[2] = np.full(6, draw(st.sampled_from([np.nan, np.inf, -np.inf])), np.float32).tobytes()
    else:
        frames = draw(st.lists(st.binary(max_size=100), min_size=1, max_size=70))
    return frames or [b""]


@contextmanager
def serving(endpoint: str) -> Iterator[PolicyServerLoop]:
    loop = PolicyServerLoop(endpoint, lambda questions: [chunk(one) for one in questions])
    stopped = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stopped.is_set,))
    thread.start()
    try:
        yield loop
        assert thread.is_alive(), "the server died"
    finally:
        stopped.set()
        thread.join(10)


@pytest.fixture
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('s')}/p"


@contextmanager
def raw(kind: int, endpoint: str, *, bind: bool = False) -> Iterator[sockets.Zmq]:
    made = sockets.open_socket(kind, hwm=1000)
    (sockets.bind if bind else sockets.connect)(made, endpoint)
    try:
        yield made
    finally:
        made.close()


def exchanged(dealer: sockets.Zmq, frames: Sequence[bytes]) -> Message:
    assert dealer.poll(PATIENCE_MS, zmq.POLLOUT)
    dealer.send_multipart(frames)
    assert dealer.poll(PATIENCE_MS, zmq.POLLIN), "no answer at all"
    return decode(dealer.recv_multipart(), ActionChunk, PolicyError)[1]


def still_answers(endpoint: str) -> None:
    with closing(PolicyClient(endpoint, Origin("good"))) as client:
        answer = client.call(question(7), deadline_s=5)
        assert isinstance(answer, ActionChunk)
        assert answer.tick == 7


def test_a_live_server_answers_every_malformed_question(endpoint: str) -> None:
    """Each one is read or refused with what is wrong, and counted; the next good question is answered."""
    whole = frames_of(question())

    with serving(endpoint) as server, raw(zmq.DEALER, endpoint) as dealer:
        told: set[str] = set()

        @fuzz
        @given(mutated(whole))
        def ask(frames: Frames) -> None:
            read, refused = server.counts.received, server.counts.malformed
            answer = exchanged(dealer, frames)
            news = (server.counts.received - read, server.counts.malformed - refused)
            if isinstance(answer, PolicyError) and answer.code == "refused":
                assert news == (0, 1)
                assert len(answer.detail) > 10
                told.add(":".join(answer.detail.split(":")[:2]))
            else:
                assert news == (1, 0)

        ask()
        assert server.counts.malformed > 50
        assert len(told) > 5, told
        still_answers(endpoint)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"payload.observation.state_rad.dtype": "object"},
            "state_rad: .*dtype 'object' is refused; valid: bool",
        ),
        ({"payload.observation.state_rad.shape": [0, 2**70]}, "state_rad: "),
        ({"payload.observation.state_rad.shape": [7]}, r"frame 0 has 24 bytes; float32\[7\] needs 28"),
        ({"payload.observation.tick": 1.5}, "observation.tick: Input should be a valid integer"),
        ({"payload.deadline_ms": 1e308}, "deadline_ms: Input should be less than or equal to 600000"),
        ({"payload.observation.request": "x" * 3000}, "request: String should have at most 2000 characters"),
        ({"envelope.version": "2.0"}, "version 2.0 is refused; here it is 1"),
        ({"envelope.type": "job"}, "'job' is not accepted here; valid: policy_request"),
        ({"envelope.seq": 10**400}, r"envelope.seq: .*must be less than 2\*\*63"),
    ],
)
def test_a_refusal_names_the_field_and_the_limit(endpoint: str, change: dict[str, Any], said: str) -> None:
    """The sender of a wrong field reads which one it is and what would be right."""
    frames = frames_of(question())
    header = json.loads(frames[1])
    for path, value in change.items():
        *above, key = path.split(".")
        holder = header
        for step in above:
            holder = holder[step]
        holder[key] = value
    with serving(endpoint), raw(zmq.DEALER, endpoint) as dealer:
        answer = exchanged(dealer, [frames[0], json.dumps(header).encode(), *frames[2:]])
    assert isinstance(answer, PolicyError)
    assert answer.code == "refused"
    assert re.search(said, answer.detail), answer.detail


@pytest.mark.parametrize("deadline_ms", [1e308, 1e-308])
def test_a_deadline_out_of_all_bounds_ends_nothing(endpoint: str, deadline_ms: float) -> None:
    """A deadline that no clock can reach, or that has passed at once, is answered like any other."""
    frames = frames_of(question())
    header = json.loads(frames[1])
    header["envelope"]["deadline_ms"] = deadline_ms
    with serving(endpoint), raw(zmq.DEALER, endpoint) as dealer:
        answer = exchanged(dealer, [frames[0], json.dumps(header).encode(), *frames[2:]])
        expired = isinstance(answer, PolicyError) and answer.code == "expired"
        assert expired == (deadline_ms < 1)
        still_answers(endpoint)


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_bytes_that_are_no_zeromq_end_only_their_connection(kind: str, endpoint: str) -> None:
    """Whoever speaks another protocol is cut off, and the others are served."""
    with serving(endpoint if kind == "ipc" else "tcp://127.0.0.1:*") as server:
        address = server.router.endpoint

        @few
        @given(
            st.one_of(
                st.binary(max_size=300),
                st.binary(max_size=200).map(lambda rest: b"\xff" + bytes(8) + b"\x7f" + rest),
            )
        )
        def shout(noise: bytes) -> None:
            with _stream(address) as stream:
                stream.sendall(noise)

        shout()
        still_answers(address)


def _stream(address: str) -> socket.socket:
    if address.startswith("ipc://"):
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(address.removeprefix("ipc://"))
        return stream
    host, port = address.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), 5)


def test_a_subscriber_counts_what_it_cannot_read(endpoint: str, eventually: Eventually) -> None:
    """Malformed states are counted and never handed out; the next good one is."""
    whole = frames_of(state(0))
    with (
        raw(zmq.XPUB, endpoint, bind=True) as publisher,
        closing(Subscriber(endpoint, RobotState)) as listener,
    ):
        eventually(lambda: publisher.poll(10, zmq.POLLIN))

        @fuzz
        @given(mutated(whole))
        def hear(frames: Frames) -> None:
            seen = _seen(listener)
            sent_s = time.monotonic()
            publisher.send_multipart([whole[0], *frames[1:]])  # a subscriber is sent only what it asked for
            got = listener.receive(0.002)
            while _seen(listener) == seen:
                assert (time.monotonic() - sent_s) < 5, "neither read nor counted"
                got = listener.receive(0.002)
            assert got is None or isinstance(got[1], RobotState)

        hear()
        assert listener.counts.malformed > 50
        publisher.send_multipart(frames_of(state(123), origin=Origin("robot")))
        heard = listener.receive(5)
        assert heard is not None
        assert heard[1].seq == 123


def _seen(listener: Subscriber[RobotState]) -> int:
    counts = listener.counts
    return counts.malformed + counts.received + counts.repeated + counts.torn + counts.unattached


def test_a_publisher_survives_what_listeners_send(endpoint: str, eventually: Eventually) -> None:
    """Noise where subscriptions are expected disturbs nobody: a good listener hears every later state."""
    with (
        closing(Publisher(endpoint, Origin("robot"), RobotState)) as publisher,
        raw(zmq.XSUB, endpoint) as stranger,
        closing(Subscriber(endpoint, RobotState)) as listener,
    ):
        eventually(lambda: publisher.publish(state(0)) or listener.receive(0.05))
        noise = st.one_of(
            st.binary(max_size=80), st.binary(max_size=30).map(lambda rest: b"\1robot_state" + rest)
        )

        @few
        @given(st.lists(noise, min_size=1, max_size=5))
        def disturb(frames: Frames) -> None:
            assert stranger.poll(PATIENCE_MS, zmq.POLLOUT)
            stranger.send_multipart(frames)
            publisher.publish(state(1))
            heard = listener.receive(5)
            assert heard is not None

        disturb()
        assert (listener.counts.malformed, listener.counts.gaps) == (0, 0)


def test_a_client_counts_answers_that_it_cannot_read(endpoint: str, eventually: Eventually) -> None:
    """A malformed answer is counted and never handed out; the good answer to the next question is."""
    with (
        raw(zmq.ROUTER, endpoint, bind=True) as server,
        closing(PolicyClient(endpoint, Origin("c"))) as client,
    ):
        asked: list[Any] = []
        eventually(lambda: asked.append(client.ask(question())) or asked[-1])
        assert server.poll(PATIENCE_MS, zmq.POLLIN)
        peer, *frames = server.recv_multipart()
        envelope, _ = decode(frames, PolicyRequest)
        whole = frames_of(chunk(question()), cause=envelope)

        @fuzz
        @given(mutated(whole))
        def answer(frames: Frames) -> None:
            counts = client.counts
            seen = counts.malformed + counts.late + counts.answered
            sent_s = time.monotonic()
            server.send_multipart([peer, *frames])
            while counts.malformed + counts.late + counts.answered == seen:
                assert (time.monotonic() - sent_s) < 5, "neither read nor counted"
                reply = client.poll(0.002)
                assert reply is None or isinstance(reply.message, ActionChunk | PolicyError)

        answer()
        assert client.counts.malformed > 50
        identity = client.ask(question(9))
        assert server.poll(PATIENCE_MS, zmq.POLLIN)
        peer, *frames = server.recv_multipart()
        envelope, _ = decode(frames, PolicyRequest)
        server.send_multipart([peer, *frames_of(chunk(question(9)), cause=envelope)])
        reply = client.poll(5)
        assert reply is not None
        assert reply.request_id == identity


deep = st.integers(1, 10_000).map(lambda depth: b"[" * depth)
texts = st.one_of(
    edited(
        Job(stage="train", key="bad", spec={"steps": 3}, inputs={"dataset": ("sha256:0",)})
        .model_dump_json()
        .encode()
    ),
    flipped(Job(stage="train", key="bad").model_dump_json().encode()),
    st.binary(max_size=100),
    deep,
    st.just(b'{"stage":"train","key":"' + b"x" * 40_000 + b'"}'),
)


def test_a_malformed_job_is_a_dead_letter_and_the_queue_flows(redis: Redis) -> None:
    """What stands in the queue is run, or dead at once with its reason; the good job behind it runs."""
    jobs = Jobs(redis)
    good, bad = Job(stage="train", key="good"), Job(stage="train", key="bad").job_id
    outcomes = {"failed": 0, "done": 0}

    @few
    @given(texts)
    def put(text: bytes) -> None:
        redis.flushall()
        jobs.submit(Job(stage="train", key="bad"))
        redis.hset(f"job:{bad}", "job", text)
        jobs.submit(good)
        ran = []
        while claim := jobs.claim("train", "w", block_s=0):
            ran.append(claim.job_id)
            assert jobs.complete(claim, JobResult())
        assert good.job_id in ran
        record = jobs.get(bad)
        assert record.state == ("done" if bad in ran else "failed")
        outcomes[record.state] += 1
        dead = {one.job_id: one for one in jobs.dead()}
        assert (bad in dead) == (bad not in ran)
        if bad in dead:
            assert dead[bad].error is not None
            assert dead[bad].error.message.startswith(f"job {bad} cannot be read: ")
        assert jobs.outstanding("train") == 0
        assert {one.job_id for one in jobs.list()} == {bad, good.job_id}
        assert jobs.figures("train").dead_letters == len(dead)

    put()
    assert outcomes["failed"] > 10, outcomes


def test_entries_that_name_no_job_are_cleared_away(redis: Redis) -> None:
    """What somebody else put into the stream, or a job whose question is gone, stops nobody."""
    jobs = Jobs(redis)
    lost = jobs.submit(Job(stage="train", key="lost")).job_id
    redis.hdel(f"job:{lost}", "job")
    for fields in ({"id": "nobody"}, {"x": b"\xff\xfe"}, {"a": "1", "b": "2"}):
        redis.xadd("jobs:train:normal", fields)  # type: ignore[arg-type]
    jobs.submit(Job(stage="train", key="good"))
    claim = jobs.claim("train", "w", block_s=0)
    assert claim is not None
    assert claim.job.key == "good"
    assert jobs.complete(claim, JobResult())
    assert jobs.get(lost).state == "failed"
    assert jobs.claim("train", "w", block_s=0) is None


def test_malformed_events_are_counted_and_passed_over(redis: Redis) -> None:
    """A reader of the record gets every event that can be read, whatever stands between them."""
    events, jobs = Events(redis), Jobs(redis)

    @few
    @given(
        st.dictionaries(
            st.sampled_from(["kind", "run_id", "attempt", "detail", "job_id", "other"]),
            st.one_of(
                st.binary(max_size=40), st.integers(1, 5000).map(lambda n: b"[" * n), st.just(b"x" * 300)
            ),
            min_size=1,
        )
    )
    def tell(fields: dict[str, bytes]) -> None:
        redis.flushall()
        jobs.submit(Job(stage="train", key="before"))
        redis.xadd("events", fields)  # type: ignore[arg-type]
        jobs.submit(Job(stage="train", key="after"))
        before = events.malformed
        kinds = [event.kind for event in events.read()]
        assert len(kinds) + events.malformed - before == 3
        assert (kinds[0], kinds[-1]) == ("job.submitted", "job.submitted")
        assert [event.kind for event in islice(events.follow(timeout_s=5), len(kinds))] == kinds
        first = events.read(count=1)
        assert len(events.read(first[-1].id, count=1)) == 1

    tell()
    assert events.malformed > 10
