"""Questions, answers and states in the ring: the same as without it, whoever can use it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zmq
from sim2or.bus import ring, sockets
from sim2or.bus.pubsub import Publisher, Subscriber
from sim2or.bus.ring import Where
from sim2or.bus.rpc import PolicyClient, PolicyServerLoop, Router
from sim2or.clock import now_ns
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.codec import decode
from sim2or.messages.envelope import Envelope, Origin
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.robot_state import RobotState

sys.path.insert(0, str(Path(__file__).parent))
from ring_messages import SIDE_PX, answer, ask, image, note, request, serving

Eventually = Callable[..., None]


@pytest.fixture
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('s')}/p"


@pytest.fixture
def client(endpoint: str) -> Iterator[PolicyClient]:
    made = PolicyClient(endpoint, Origin("bridge"))
    yield made
    made.close()


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
