"""What every road of the live plane promises: ipc, tcp on the loopback interface, inproc within a process.

Three promises do not hold on inproc: docs/decisions/0011 says which, and what a single process uses instead.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count

import numpy as np
import pytest
import zmq
from sim2or.bus import sockets
from sim2or.bus.pubsub import Publisher, Subscriber
from sim2or.bus.rpc import PolicyClient, PolicyServerLoop, Router
from sim2or.errors import TransientError
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.codec import decode, encode
from sim2or.messages.envelope import Origin
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.robot_state import RobotState

Eventually = Callable[..., None]
ROADS = ("ipc", "tcp", "inproc")
NAMES = count()

within_a_life = pytest.mark.parametrize("road", ROADS, indirect=True)
"""Holds on every road while the server lives."""

between_processes = pytest.mark.parametrize("road", ROADS[:2], indirect=True)
"""Holds where libzmq keeps a connection of its own: it sees that a peer is there, and finds the next one."""


def request(tick: int = 0, deadline_ms: float = 5000.0) -> PolicyRequest:
    return PolicyRequest(
        artifact="sha256:1",
        deadline_ms=deadline_ms,
        observation=Observation(
            robot="so101",
            task="handover",
            request="Hand me the scalpel",
            episode="e",
            tick=tick,
            state_rad=np.full(6, tick, np.float32),
            images={"wrist": np.full((96, 96, 3), 7, np.uint8)},
            captured_ns=1000 + tick,
        ),
    )


def chunk(question: PolicyRequest) -> ActionChunk:
    seen = question.observation
    return ActionChunk(
        episode=seen.episode,
        tick=seen.tick,
        actions_rad=np.tile(seen.state_rad, (20, 1)) + seen.images["wrist"][0, 0, 0],
        period_s=1 / 30,
        captured_ns=seen.captured_ns,
        inference_s=0.0,
        artifact=question.artifact,
    )


def state(seq: int) -> RobotState:
    still = np.zeros(6, np.float32)
    return RobotState(seq=seq, captured_ns=seq, position_rad=still, velocity_radps=still)


class Policy:
    """A handler that can be held back, and remembers what it was asked."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.asked: list[list[int]] = []

    def __call__(self, questions: list[PolicyRequest]) -> Sequence[ActionChunk]:
        self.asked.append([question.observation.tick for question in questions])
        assert self.free.wait(10)
        return [chunk(question) for question in questions]


@pytest.fixture
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A free endpoint of a kind."""
    if request.param == "ipc":
        return f"ipc://{tmp_path_factory.mktemp('s')}/p"
    if request.param == "inproc":
        return f"inproc://road-{next(NAMES)}"
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def serving(endpoint: str, policy: Policy, **options: int) -> Iterator[PolicyServerLoop]:
    loop = PolicyServerLoop(endpoint, policy, **options)
    stopped = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stopped.is_set,))
    thread.start()
    try:
        yield loop
    finally:
        stopped.set()
        policy.free.set()
        thread.join(10)
        assert not thread.is_alive()


def asking(endpoint: str) -> closing[PolicyClient]:
    return closing(PolicyClient(endpoint, Origin("bridge")))


def released(endpoint: str, eventually: Eventually) -> None:
    """Waits until libzmq's own thread has let go of a tcp port that was closed here a moment ago."""
    if not endpoint.startswith("tcp://"):
        return
    host, port = endpoint.removeprefix("tcp://").split(":")

    def free() -> bool:
        try:
            socket.create_server((host, int(port))).close()
        except OSError:
            return False
        return True

    eventually(free)


def ask(client: PolicyClient, eventually: Eventually, tick: int = 0) -> object:
    """Sends as soon as the connection stands and returns the question's id."""
    sent: list[object] = []
    eventually(lambda: sent.append(client.ask(request(tick))) or sent[-1])
    return sent[-1]


@within_a_life
def test_a_question_is_answered(road: str) -> None:
    """The answer belongs to its question, and arrays arrive as they were sent, in both directions."""
    with serving(road, Policy()) as server, asking(road) as client:
        for tick in range(3):
            answer = client.call(request(tick), deadline_s=5)
            assert isinstance(answer, ActionChunk)
            assert (answer.tick, answer.captured_ns) == (tick, 1000 + tick)
            np.testing.assert_array_equal(answer.actions_rad, np.full((20, 6), tick + 7, np.float32))
        assert (client.counts.answered, server.counts.answered) == (3, 3)


@within_a_life
def test_a_client_may_come_before_its_server(road: str) -> None:
    """Who connects first waits for the other, within the deadline."""
    with asking(road) as client, serving(road, Policy()):
        assert isinstance(client.call(request(), deadline_s=5), ActionChunk)


@within_a_life
def test_the_newest_observation_of_a_session_wins(road: str, eventually: Eventually) -> None:
    """Older waiting questions of a session are answered "expired" and never computed."""
    policy = Policy()
    policy.free.clear()
    with serving(road, policy) as server, asking(road) as client:
        ask(client, eventually, 0)
        eventually(lambda: policy.asked == [[0]])
        for tick in (1, 2):
            ask(client, eventually, tick)
            eventually(lambda count=tick: server.counts.received == count + 1)
        reply = client.poll(5)
        assert reply is not None
        assert isinstance(reply.message, PolicyError)
        assert reply.message.code == "expired"
        policy.free.set()
        ticks = [reply.message.tick for _ in range(2) if (reply := client.poll(5))]  # type: ignore[union-attr]
        assert (ticks, policy.asked) == ([0, 2], [[0], [2]])


@within_a_life
def test_too_many_sessions_hear_busy(road: str, eventually: Eventually) -> None:
    """A session beyond the limit is refused at once instead of waiting."""
    policy = Policy()
    policy.free.clear()
    with (
        serving(road, policy, max_waiting=1) as server,
        asking(road) as a,
        asking(road) as b,
        asking(road) as c,
    ):
        ask(a, eventually)
        eventually(lambda: policy.asked == [[0]])
        ask(b, eventually)
        eventually(lambda: server.counts.received == 2)
        answer = c.call(request(), deadline_s=5)
        assert isinstance(answer, PolicyError)
        assert answer.code == "busy"


@within_a_life
def test_a_call_never_outlasts_its_deadline(road: str) -> None:
    """A server that does not answer, or none at all: a TransientError that names the endpoint."""
    with asking(road) as client, pytest.raises(TransientError, match=road):
        client.call(request(), deadline_s=0.1)


@within_a_life
def test_a_malformed_question_is_refused_with_its_reason(road: str) -> None:
    """The sender learns which field was wrong, the message is counted, and the server goes on."""
    question = request()
    frames = [bytes(frame) for frame in encode(question, Origin("stranger").envelope(question))]
    header = json.loads(frames[1])
    header["payload"]["observation"]["tick"] = -3
    with serving(road, Policy()) as server, closing(sockets.open_socket(zmq.DEALER, hwm=10)) as raw:
        sockets.connect(raw, road)
        assert raw.poll(5000, zmq.POLLOUT)
        raw.send_multipart([frames[0], json.dumps(header).encode(), *frames[2:]])
        assert raw.poll(5000, zmq.POLLIN)
        _, reply = decode(raw.recv_multipart(), PolicyError)
        assert "observation.tick: Input should be greater than or equal to 0" in reply.detail
        assert server.counts.malformed == 1
        with asking(road) as client:
            assert isinstance(client.call(question, deadline_s=5), ActionChunk)


@within_a_life
def test_an_answer_to_a_client_that_left_is_counted(road: str, eventually: Eventually) -> None:
    """The server goes on when nobody is there to read an answer."""
    with closing(Router(road, Origin("policy"), PolicyRequest)) as router:
        with asking(road) as client:
            ask(client, eventually)
            question = router.receive(5)
            assert question is not None
        eventually(lambda: not router.answer(question, chunk(question.message)))
        assert router.counts.unroutable == 1


@within_a_life
def test_a_server_that_does_not_read_is_not_buried(road: str, eventually: Eventually) -> None:
    """Questions beyond the queue are refused at the sender, and the server goes on when it reads again."""
    with closing(Router(road, Origin("policy"), PolicyRequest)) as router, asking(road) as client:
        ask(client, eventually)
        eventually(lambda: client.ask(request(1)) is None, 30.0)
        assert client.counts.unsent > 0
        while router.receive(0.3):
            pass
        ask(client, eventually, tick=9)
        last = router.receive(5)
        assert last is not None
        assert last.message.observation.tick == 9


@between_processes
def test_nothing_is_sent_while_nobody_listens(road: str) -> None:
    """A question without a server is refused at once, so that it cannot be answered late."""
    with asking(road) as client:
        assert client.ask(request()) is None
        assert client.counts.unsent == 1


@between_processes
def test_a_client_survives_a_restart_of_its_server(road: str, eventually: Eventually) -> None:
    """The same client is answered by the next server."""
    with asking(road) as client:

        def answered(tick: int) -> bool:
            try:
                answer = client.call(request(tick), deadline_s=1)
            except TransientError:
                return False
            return isinstance(answer, ActionChunk) and answer.tick == tick

        for tick in range(2):
            released(road, eventually)
            with serving(road, Policy()):
                eventually(lambda now=tick: answered(now))


@within_a_life
def test_the_newest_state_is_used_and_losses_are_counted(road: str, eventually: Eventually) -> None:
    """A reader that comes late gets the newest state, and knows how many it lost."""
    with (
        closing(Publisher(road, Origin("robot"), RobotState)) as publisher,
        closing(Subscriber(road, RobotState)) as subscriber,
    ):
        _hear(publisher, subscriber, eventually)
        before, total = subscriber.counts.received, 20_000  # more than any kernel buffers
        for seq in range(total):
            publisher.publish(state(seq))
        while subscriber.newest(0.2):
            pass
        publisher.publish(state(total))
        last = subscriber.newest(5)
        assert last is not None
        assert last[1].seq == total
        received = subscriber.counts.received - before
        assert subscriber.counts.gaps == total + 1 - received > 0


@between_processes
def test_a_restarted_publisher_is_a_new_stream(road: str, eventually: Eventually) -> None:
    """After a restart the same subscriber hears the next publisher, without a gap or a repetition."""
    with closing(Subscriber(road, RobotState)) as subscriber:
        for _ in range(2):
            released(road, eventually)
            with closing(Publisher(road, Origin("robot"), RobotState)) as publisher:
                _hear(publisher, subscriber, eventually)
        assert (subscriber.counts.gaps, subscriber.counts.repeated) == (0, 0)


def _hear(publisher: Publisher, subscriber: Subscriber[RobotState], eventually: Eventually) -> None:
    """Publishes until the subscriber hears, and empties its queue."""

    def heard() -> object:
        publisher.publish(state(0))
        return subscriber.receive(0.05)

    eventually(heard)
    while subscriber.receive(0.05):
        pass
