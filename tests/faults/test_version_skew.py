"""F20, version skew: a service one version older or newer works with today's, in both directions.

The older peer is the first commit's code; the newer one has an optional field more in every message. Each
runs in its own process and talks to today's code over real sockets and a real Redis.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import version_peer
from redis import Redis
from sim2or.bus.events import Events
from sim2or.bus.jobs import Jobs
from sim2or.bus.pubsub import Publisher, Subscriber
from sim2or.bus.rpc import Client, PolicyClient, PolicyServerLoop
from sim2or.bus.server import PrivateRedis
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.envelope import Origin
from sim2or.messages.job import Job, JobResult, Progress
from sim2or.messages.message import Message
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.robot_state import RobotState

pytestmark = pytest.mark.faults("F20")

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("version_peer.py")
DEADLINE_S = 30.0

Eventually = Callable[..., None]


@dataclass
class Peer:
    """How to start a peer of another version.

    Attributes:
        version: What its messages are: ``plain``, ``minor`` or ``major``.
        source: Where its code is; today's when empty.
        running: Those that were started.
    """

    version: str
    source: Path | None = None
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, role: str, address: str) -> subprocess.Popen[str]:
        """Starts a peer in one of its roles."""
        path = {"PYTHONPATH": str(self.source)} if self.source else {}
        environment = os.environ | path | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), role, address, self.version],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> list[dict[str, Any]]:
        """Closes a peer's input, waits for its end and returns what it said."""
        said, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        first, *lines = map(json.loads, said.splitlines())
        source = self.source or ROOT / "shared" / "src"
        assert Path(first["code"]).is_relative_to(source)
        return lines

    def close(self) -> None:
        """Ends what is left."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=DEADLINE_S)


@pytest.fixture(scope="session")
def first_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared code of the first commit."""
    roots = _git("rev-list", "--max-parents=0", "HEAD").decode().split()
    archive = _git("archive", roots[-1], "shared/src/sim2or")
    directory = tmp_path_factory.mktemp("first")
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(directory, filter="data")
    return directory / "shared" / "src"


def _git(*arguments: str) -> bytes:
    ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, timeout=60, check=False)
    if ran.returncode or b"shallow" in ran.stderr:
        pytest.skip(f"no git history here: {ran.stderr.decode().strip()}")
    return ran.stdout


@pytest.fixture(params=["older", "newer"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A peer of a version that today's code must get on with."""
    older = request.param == "older"
    made = Peer("plain", request.getfixturevalue("first_code")) if older else Peer("minor")
    yield made
    made.close()


@pytest.fixture
def stranger() -> Iterator[Peer]:
    """A peer of another major version."""
    made = Peer("major")
    yield made
    made.close()


@pytest.fixture
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A socket with a short path."""
    return f"ipc://{tmp_path_factory.mktemp('s')}/x"


def refusal(kind: type[Message]) -> str:
    """What a peer of another major version is told."""
    return f"{kind.type_name} version 2.0 is refused; here it is {kind.schema_version}"


def answer(questions: Sequence[PolicyRequest]) -> list[ActionChunk | PolicyError]:
    return [version_peer.chunk("plain", question) for question in questions]  # type: ignore[misc]


@contextmanager
def serving(endpoint: str) -> Iterator[PolicyServerLoop]:
    """Today's policy server in a thread."""
    loop = PolicyServerLoop(endpoint, answer)
    stopped = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stopped.is_set,))
    thread.start()
    try:
        yield loop
    finally:
        stopped.set()
        thread.join(10)
        assert not thread.is_alive()


def ask(client: Client[Any], tick: int) -> Any:
    question = version_peer.question("plain", tick)
    assert isinstance(question, PolicyRequest)
    return client.call(question, deadline_s=DEADLINE_S)


def test_questions_of_another_version_are_answered(peer: Peer, endpoint: str) -> None:
    """An older or newer bridge is answered by today's policy server, pictures included."""
    with serving(endpoint) as server:
        said = peer.end(peer.start("ask", endpoint))
        assert [(line["type"], line["tick"]) for line in said] == [
            ("action_chunk", tick) for tick in range(3)
        ]
        assert (server.counts.answered, server.counts.malformed) == (3, 0)


def test_answers_of_another_version_are_read(peer: Peer, endpoint: str) -> None:
    """Today's bridge is answered by an older or newer policy server, pictures included."""
    process = peer.start("serve", endpoint)
    client = PolicyClient(endpoint, Origin("bridge"))
    for tick in range(3):
        chunk = ask(client, tick)
        assert isinstance(chunk, ActionChunk)
        assert chunk.tick == tick
        np.testing.assert_array_equal(chunk.actions_rad, np.full((2, 6), tick, np.float32))
    assert client.counts.malformed == 0
    client.close()
    peer.end(process)


def test_states_of_another_version_are_heard(peer: Peer, endpoint: str) -> None:
    """Today's subscriber hears an older or newer robot, without a gap that it did not have."""
    process = peer.start("publish", endpoint)
    subscriber = Subscriber(endpoint, RobotState)
    for _ in range(3):
        received = subscriber.receive(DEADLINE_S)
        assert received is not None
        np.testing.assert_array_equal(received[1].images["wrist"], version_peer.PICTURE)
        assert float(received[1].position_rad[0]) == received[1].seq
    assert subscriber.counts.malformed == 0
    subscriber.close()
    peer.end(process)


def test_our_states_are_heard_by_another_version(peer: Peer, endpoint: str, eventually: Eventually) -> None:
    """An older or newer subscriber hears today's robot, and every picture is whole."""
    publisher = Publisher(endpoint, Origin("robot"), RobotState)
    process = peer.start("listen", endpoint)
    seq = iter(range(1_000_000))

    def done() -> bool:
        publisher.publish(version_peer.state("plain", next(seq)))
        return process.poll() is not None

    eventually(done, timeout_s=DEADLINE_S)
    publisher.close()
    said = peer.end(process)
    assert len(said) == 3
    assert all(line["whole"] and line["version"] == RobotState.schema_version for line in said)


def test_jobs_of_another_version_are_done(peer: Peer, redis: Redis, redis_server: PrivateRedis) -> None:
    """Today's worker does what an older or newer runner asks for, and that one reads the result."""
    process = peer.start("submit", redis_server.url)
    jobs = Jobs(redis)
    claim = jobs.claim("train", "today", block_s=DEADLINE_S)
    assert claim is not None
    assert (claim.job.spec, claim.job.run_id) == ({"steps": 3}, "skew")
    assert jobs.progress(claim, Progress(done=1.0, total=2.0))
    assert jobs.complete(claim, JobResult(outputs={"checkpoint": "sha256:1"}))
    (said,) = peer.end(process)
    assert (said["state"], said["attempts"]) == ("done", "1")
    assert json.loads(said["result"])["outputs"] == {"checkpoint": "sha256:1"}


def test_our_jobs_are_done_by_another_version(peer: Peer, redis: Redis, redis_server: PrivateRedis) -> None:
    """An older or newer worker does what today's runner asks for, and today's runner reads its result."""
    jobs = Jobs(redis)
    job = Job(stage="train", key="ours", spec={"steps": 5}, name="train-seed0")
    submitted = jobs.submit(job)
    (said,) = peer.end(peer.start("work", redis_server.url))
    assert said["recorded"]
    assert (said["name"], said["spec"]) == ("train-seed0", {"steps": 5})
    record = jobs.get(submitted.job_id)
    assert (record.state, record.attempts, record.job) == ("done", 1, job)
    assert record.result is not None
    assert record.result.outputs == {"checkpoint": "sha256:2"}
    assert [event.kind for event in Events(redis).read()][-1] == "job.done"


def test_a_question_of_another_major_version_is_refused(stranger: Peer, endpoint: str) -> None:
    """Its sender hears both versions, it is counted, and the server goes on answering others."""
    with serving(endpoint) as server:
        said = stranger.end(stranger.start("ask", endpoint))
        told = [("refused", refusal(PolicyRequest))] * 3
        assert [(line["code"], line["detail"]) for line in said] == told
        assert (server.counts.malformed, server.counts.answered) == (3, 0)
        client = PolicyClient(endpoint, Origin("bridge"))
        assert isinstance(ask(client, 1), ActionChunk)
        client.close()


def test_an_answer_of_another_major_version_is_not_used(
    stranger: Peer, endpoint: str, eventually: Eventually
) -> None:
    """The client counts it, says both versions, and never hands it out."""
    process = stranger.start("serve", endpoint)
    client = PolicyClient(endpoint, Origin("bridge"))
    question = version_peer.question("plain", 1)
    with structlog.testing.capture_logs() as logs:
        eventually(lambda: client.send(question, deadline_s=DEADLINE_S), timeout_s=DEADLINE_S)
        eventually(lambda: client.poll(0.05) is None and client.counts.malformed == 1, timeout_s=DEADLINE_S)
    assert client.counts.answered == 0
    assert any(refusal(ActionChunk) in line.get("reason", "") for line in logs)
    client.close()
    stranger.end(process)


def test_states_of_another_major_version_are_not_used(
    stranger: Peer, endpoint: str, eventually: Eventually
) -> None:
    """The subscriber counts them, says both versions and hands none out."""
    process = stranger.start("publish", endpoint)
    subscriber = Subscriber(endpoint, RobotState)
    with structlog.testing.capture_logs() as logs:
        eventually(
            lambda: subscriber.receive(0.05) is None and subscriber.counts.malformed >= 3,
            timeout_s=DEADLINE_S,
        )
    assert subscriber.counts.received == 0
    assert any(refusal(RobotState) in line.get("reason", "") for line in logs)
    subscriber.close()
    stranger.end(process)


def test_a_job_of_another_major_version_is_a_dead_letter(
    stranger: Peer, redis: Redis, redis_server: PrivateRedis, eventually: Eventually
) -> None:
    """Its sender reads both versions in the failure, it is listed, and the next job is done."""
    jobs = Jobs(redis)
    process = stranger.start("submit", redis_server.url)
    eventually(lambda: jobs.outstanding("train") == 1, timeout_s=DEADLINE_S)
    assert jobs.claim("train", "today", block_s=0.1) is None
    (said,) = stranger.end(process)
    error = json.loads(said["error"])
    assert (said["state"], error["kind"]) == ("failed", "permanent")
    assert refusal(Job) in error["message"]
    jobs.submit(Job(stage="train", key="next"))
    claim = jobs.claim("train", "today", block_s=DEADLINE_S)
    assert claim is not None
    assert jobs.complete(claim, JobResult())
    (letter,) = jobs.dead()
    assert letter.error is not None
    assert refusal(Job) in letter.error.message
    assert {record.state for record in jobs.list()} == {"done", "failed"}
