from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import zmq
from sim2or.bus import sockets
from sim2or.bus.rpc import Client, PolicyClient, PolicyServerLoop, Router
from sim2or.clock import now_ns
from sim2or.errors import ConfigError, TransientError
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.codec import decode, encode
from sim2or.messages.envelope import Origin
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest

Eventually = Callable[..., None]


def request(tick: int = 0, deadline_ms: float = 5000.0, artifact: str = "sha256:1") -> PolicyRequest:
    return PolicyRequest(
        artifact=artifact,
        deadline_ms=deadline_ms,
        observation=Observation(
            robot="so101",
            task="handover",
            request="Hand me the scalpel",
            episode="e",
            tick=tick,
            state_rad=np.full(6, tick, np.float32),
            images={"wrist": np.zeros((96, 96, 3), np.uint8)},
            captured_ns=1000 + tick,
        ),
    )


def chunk(question: PolicyRequest) -> ActionChunk:
    seen = question.observation
    return ActionChunk(
        episode=seen.episode,
        tick=seen.tick,
        actions_rad=np.tile(seen.state_rad, (20, 1)),
        period_s=1 / 30,
        captured_ns=seen.captured_ns,
        inference_s=0.0,
        artifact=question.artifact,
    )


class Policy:
    """A handler that can be held back, and remembers what it was asked."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.asked: list[list[int]] = []

    def __call__(self, questions: list[PolicyRequest]) -> Sequence[ActionChunk | PolicyError]:
        self.asked.append([question.observation.tick for question in questions])
        assert self.free.wait(10)
        if any(question.artifact == "broken" for question in questions):
            raise RuntimeError("out of memory")
        return [chunk(question) for question in questions]


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


@pytest.fixture
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('s')}/p"


@pytest.fixture
def policy() -> Policy:
    return Policy()


@contextmanager
def asking(endpoint: str, session: str = "") -> Iterator[PolicyClient]:
    client = PolicyClient(endpoint, Origin("bridge", session=session))
    try:
        yield client
    finally:
        client.close()


def ask(client: PolicyClient, eventually: Eventually, tick: int = 0, **options: float) -> object:
    """Sends as soon as the connection stands and returns the question's id."""
    sent: list[object] = []
    eventually(lambda: sent.append(client.ask(request(tick, **options))) or sent[-1])
    return sent[-1]


def test_a_question_is_answered(endpoint: str, policy: Policy) -> None:
    """The answer belongs to the question: episode, tick and capture time come back."""
    with serving(endpoint, policy) as server, asking(endpoint) as client:
        answer = client.call(request(7), deadline_s=5)
        assert isinstance(answer, ActionChunk)
        assert (answer.tick, answer.captured_ns) == (7, 1007)
        np.testing.assert_array_equal(answer.actions_rad, np.full((20, 6), 7, np.float32))
        assert (client.counts.sent, client.counts.answered, server.counts.answered) == (1, 1, 1)


def test_a_control_loop_asks_without_waiting(endpoint: str, policy: Policy, eventually: Eventually) -> None:
    """``ask`` and ``poll`` return at once; the answer names its question and how long it took."""
    policy.free.clear()
    with serving(endpoint, policy), asking(endpoint) as client:
        identity = ask(client, eventually, tick=3)
        assert client.poll() is None
        policy.free.set()
        reply = client.poll(5)
        assert reply is not None
        assert reply.request_id == identity
        assert isinstance(reply.message, ActionChunk)
        assert 0 < reply.waited_s < 5


def test_the_newest_observation_of_a_session_wins(
    endpoint: str, policy: Policy, eventually: Eventually
) -> None:
    """Older waiting questions of a session are answered "expired" and never computed."""
    policy.free.clear()
    with serving(endpoint, policy) as server, asking(endpoint) as client:
        ask(client, eventually, tick=0)
        eventually(lambda: policy.asked == [[0]])
        for tick in (1, 2, 3):
            ask(client, eventually, tick=tick)
            eventually(lambda count=tick: server.counts.received == count + 1)
        for _ in (1, 2):
            reply = client.poll(5)
            assert reply is not None
            assert isinstance(reply.message, PolicyError)
            assert reply.message.code == "expired"
        policy.free.set()
        ticks = [reply.message.tick for _ in range(2) if (reply := client.poll(5))]  # type: ignore[union-attr]
        assert ticks == [0, 3]
        assert policy.asked == [[0], [3]]
        assert server.counts.superseded == 2


def test_sessions_are_answered_in_one_batch(endpoint: str, policy: Policy, eventually: Eventually) -> None:
    """Questions of different sessions that wait together go to the network together, none lost."""
    policy.free.clear()
    with (
        serving(endpoint, policy) as server,
        asking(endpoint) as a,
        asking(endpoint) as b,
        asking(endpoint) as c,
    ):
        ask(a, eventually, tick=0)
        eventually(lambda: policy.asked == [[0]])
        ask(b, eventually, tick=1)
        ask(c, eventually, tick=2)
        eventually(lambda: server.counts.received == 3)
        policy.free.set()
        for client, tick in ((a, 0), (b, 1), (c, 2)):
            reply = client.poll(5)
            assert reply is not None
            assert reply.message.tick == tick  # type: ignore[union-attr]
        assert sorted(policy.asked[1]) == [1, 2]


def test_too_many_sessions_hear_busy(endpoint: str, policy: Policy, eventually: Eventually) -> None:
    """A session beyond the limit is refused at once instead of waiting."""
    policy.free.clear()
    with (
        serving(endpoint, policy, max_waiting=1) as server,
        asking(endpoint) as a,
        asking(endpoint) as b,
        asking(endpoint) as c,
    ):
        ask(a, eventually)
        eventually(lambda: policy.asked == [[0]])
        ask(b, eventually, tick=1)
        eventually(lambda: server.counts.received == 2)
        answer = c.call(request(2), deadline_s=5)
        assert isinstance(answer, PolicyError)
        assert answer.code == "busy"
        assert server.counts.busy == 1


def test_what_waited_past_its_deadline_is_not_computed(
    endpoint: str, policy: Policy, eventually: Eventually
) -> None:
    """A question that expires in the queue is answered so, and its late answer is not handed out."""
    policy.free.clear()
    with serving(endpoint, policy) as server, asking(endpoint) as a, asking(endpoint) as b:
        ask(a, eventually)
        eventually(lambda: policy.asked == [[0]])
        ask(b, eventually, tick=1, deadline_ms=30.0)
        assert b.poll(0.1) is None
        assert b.counts.expired == 1
        policy.free.set()
        eventually(lambda: server.counts.expired == 1)
        eventually(lambda: b.poll() is None and b.counts.late == 1)
        assert policy.asked == [[0]]


def test_a_call_never_outlasts_its_deadline(endpoint: str, policy: Policy) -> None:
    """No server, or a server that does not answer: a TransientError in time, naming the endpoint."""
    with asking(endpoint) as client:
        with pytest.raises(TransientError, match=f"no server at {endpoint} within 0.1 s"):
            client.call(request(), deadline_s=0.1)
        assert client.ask(request()) is None
        assert client.counts.unsent == 1
        policy.free.clear()
        with serving(endpoint, policy), pytest.raises(TransientError, match="no answer from"):
            client.call(request(), deadline_s=1.0)


def test_a_client_survives_a_restart_of_its_server(endpoint: str, eventually: Eventually) -> None:
    """The same client is answered by the next server; a question lost with the old one times out."""
    with asking(endpoint) as client:

        def answered(tick: int) -> bool:
            try:
                answer = client.call(request(tick), deadline_s=1)
            except TransientError:
                return False
            return isinstance(answer, ActionChunk) and answer.tick == tick

        for tick in range(3):
            with serving(endpoint, Policy()):
                eventually(lambda now=tick: answered(now))


def test_a_failing_handler_is_told_and_survived(endpoint: str, policy: Policy) -> None:
    """The client hears "failed" with the reason, and the next question is answered."""
    with serving(endpoint, policy) as server, asking(endpoint) as client:
        failed = client.call(request(artifact="broken"), deadline_s=5)
        assert isinstance(failed, PolicyError)
        assert (failed.code, failed.detail) == ("failed", "RuntimeError: out of memory")
        assert isinstance(client.call(request(), deadline_s=5), ActionChunk)
        assert server.counts.failed == 1


def test_a_malformed_question_is_refused_with_its_reason(endpoint: str, policy: Policy) -> None:
    """The sender learns which field was wrong, the message is counted, and the server goes on."""
    origin = Origin("stranger")
    with serving(endpoint, policy) as server, asking(endpoint) as client:
        raw = sockets.open_socket(zmq.DEALER, hwm=10)
        sockets.connect(raw, endpoint)
        assert raw.poll(5000, zmq.POLLOUT)
        question = request()
        envelope = origin.envelope(question)
        frames = [bytes(frame) for frame in encode(question, envelope)]
        header = json.loads(frames[1])
        header["payload"]["observation"]["tick"] = -3
        for wrong in (
            [b"x"],
            [b"x", b"{}"],
            [b"", b"", b""],
            [frames[0], json.dumps(header).encode(), *frames[2:]],
        ):
            raw.send_multipart(wrong)
            assert raw.poll(5000, zmq.POLLIN)
            reply_envelope, reply = decode(raw.recv_multipart(), PolicyError)
            assert reply.code == "refused"
        assert "observation.tick: Input should be greater than or equal to 0" in reply.detail
        assert reply_envelope.causation_id == envelope.id
        raw.close()
        assert isinstance(client.call(question, deadline_s=5), ActionChunk)
        assert server.counts.malformed == 4


def test_an_answer_to_a_client_that_left_is_counted(endpoint: str, eventually: Eventually) -> None:
    """The server goes on when nobody is there to read an answer."""
    router = Router(endpoint, Origin("policy"), PolicyRequest)
    client = PolicyClient(endpoint, Origin("bridge"))
    ask(client, eventually)
    question = router.receive(5)
    assert question is not None
    client.close()
    eventually(lambda: not router.answer(question, chunk(question.message)))
    assert router.counts.unroutable == 1
    router.close()


def test_an_answer_of_the_wrong_type_is_not_handed_out(endpoint: str, policy: Policy) -> None:
    """A client that expects something else counts the answer as malformed and times out."""
    with serving(endpoint, policy):
        client = Client(endpoint, Origin("x"), PolicyError)
        with pytest.raises(TransientError, match="no answer"):
            client.call(request(), deadline_s=0.5)
        assert client.counts.malformed == 1
        client.close()


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("tcp://0.0.0.0:5555", "leaves this host without encryption"),
        ("tcp://*:5555", "leaves this host"),
        ("tcp://192.168.1.4:5555", "leaves this host"),
        ("tcp://[::]:5555", "leaves this host"),
        ("tcp://localhost.example.org:5555", "leaves this host"),
        ("tcp://:5555", "leaves this host"),
        ("udp://127.0.0.1:1", "valid are ipc"),
        ("127.0.0.1:5555", "valid are ipc"),
        ("ipc://" + "x" * 108, "1 to 107 bytes"),
        ("ipc://", "1 to 107 bytes"),
        ("ipc:///no/such/directory/p", "cannot bind"),
    ],
)
def test_unsafe_and_impossible_endpoints_are_refused(endpoint: str, said: str) -> None:
    """Only ipc, inproc and loopback addresses are served; the error says what is valid."""
    with pytest.raises(ConfigError, match=said):
        Router(endpoint, Origin("policy"), PolicyRequest)


def test_loopback_tcp_works(policy: Policy) -> None:
    """The same exchange runs over tcp on the loopback interface."""
    with serving("tcp://127.0.0.1:*", policy) as server, asking(server.router.endpoint) as client:
        assert isinstance(client.call(request(), deadline_s=5), ActionChunk)


def test_a_client_that_does_not_read_survives_a_flood(endpoint: str, eventually: Eventually) -> None:
    """Answers that pile up past the heartbeat timeout are read in order afterwards (libzmq issue 3937)."""
    router = Router(endpoint, Origin("policy"), PolicyRequest)
    with asking(endpoint) as client:
        ask(client, eventually)
        question = router.receive(5)
        assert question is not None
        end_ns = now_ns() + 2 * sockets.HEARTBEAT_TIMEOUT_MS * 1_000_000
        answered = 0
        while now_ns() < end_ns:
            answered += router.answer(question, chunk(question.message))
        reply = client.poll(5)
        assert reply is not None
        assert reply.message.tick == 0  # type: ignore[union-attr]
        eventually(lambda: client.poll() is None and client.counts.late == answered - 1)
    router.close()


def test_a_server_that_does_not_read_survives_a_flood(endpoint: str, eventually: Eventually) -> None:
    """Questions beyond the queue are refused at the sender, and the server goes on when it reads again."""
    router = Router(endpoint, Origin("policy"), PolicyRequest)
    with asking(endpoint) as client:
        ask(client, eventually)
        end_ns = now_ns() + 2 * sockets.HEARTBEAT_TIMEOUT_MS * 1_000_000
        while now_ns() < end_ns:
            client.ask(request(1))
        assert client.counts.unsent > 0
        while router.receive(0.3):
            pass
        ask(client, eventually, tick=9)
        last = router.receive(5)
        assert last is not None
        assert last.message.observation.tick == 9
    router.close()


def test_closing_does_not_wait_for_the_handler(endpoint: str, policy: Policy, eventually: Eventually) -> None:
    """A server that is told to stop while its handler works stops before the handler does."""
    loop = PolicyServerLoop(endpoint, policy)
    stopped = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stopped.is_set,))
    policy.free.clear()
    thread.start()
    try:
        with asking(endpoint) as client:
            ask(client, eventually)
            eventually(lambda: policy.asked)
            stopped.set()
            thread.join(5)
            assert not thread.is_alive()
    finally:
        policy.free.set()


def test_a_handler_that_answers_too_few_is_told(endpoint: str) -> None:
    """A batch with a missing answer fails as a whole, with both numbers; the server goes on."""
    answers: list[ActionChunk] = []
    loop = PolicyServerLoop(endpoint, lambda _: answers)
    stopped = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stopped.is_set,))
    thread.start()
    try:
        with asking(endpoint) as client:
            failed = client.call(request(), deadline_s=5)
            assert isinstance(failed, PolicyError)
            assert failed.detail == "ValueError: handler gave 0 answers to 1 questions"
            answers.append(chunk(request(3)))
            assert isinstance(client.call(request(3), deadline_s=5), ActionChunk)
    finally:
        stopped.set()
        thread.join(10)


def test_a_process_ends_although_its_handler_was_never_closed() -> None:
    """The handler's thread keeps no process alive."""
    program = "from sim2or.bus.handler import HandlerThread; HandlerThread(lambda batch: batch).begin([1])"
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == 0


def test_both_ends_count_bytes(endpoint: str, policy: Policy) -> None:
    """What one end sent the other received, to the byte."""
    with serving(endpoint, policy) as server, asking(endpoint) as client:
        assert isinstance(client.call(request(), deadline_s=5), ActionChunk)
        sent, received = client.counts.sent_bytes, client.counts.received_bytes
        assert sent > 96 * 96 * 3
        assert (server.counts.received_bytes, server.counts.sent_bytes) == (sent, received)
