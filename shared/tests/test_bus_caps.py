from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from sim2or.bus import sockets
from sim2or.bus.events import Events
from sim2or.bus.jobs import Jobs
from sim2or.bus.rpc import Router
from sim2or.errors import MessageError
from sim2or.messages.array import Frames
from sim2or.messages.codec import MAX_HEADER_BYTES, decode, encode
from sim2or.messages.envelope import Origin
from sim2or.messages.job import MAX_DEPTH, MAX_PAYLOAD_BYTES, Job, JobResult, depth
from sim2or.messages.policy_request import PolicyError
from sim2or.messages.robot_request import RobotRequest
from zmq import DEALER

Eventually = Callable[..., None]

DEEP = ["[" * 100_000, '{"a":' * 40_000, '{"envelope":' * 20_000]


def nested(levels: int) -> dict[str, Any]:
    """A mapping that nests so deep."""
    inner: dict[str, Any] = {}
    for _ in range(levels - 1):
        inner = {"a": inner}
    return inner


def job(spec: dict[str, Any], key: str = "k") -> Job:
    return Job(stage="train", key=key, spec=spec)


@pytest.mark.parametrize("header", DEEP, ids=["lists", "objects", "envelopes"])
def test_a_bottomless_header_is_refused(header: str) -> None:
    """Nesting beyond the parser's limit is an error, not a fallen stack, within the size of a header."""
    assert len(header) <= MAX_HEADER_BYTES
    with pytest.raises(MessageError, match="recursion limit exceeded"):
        decode([b"robot_request", header.encode()], RobotRequest)


def test_a_number_without_end_is_refused() -> None:
    """A number of a hundred thousand digits is refused before anybody computes with it."""
    with pytest.raises(MessageError, match="number out of range"):
        decode([b"robot_request", b'{"envelope":' + b"9" * 100_000 + b"}"], RobotRequest)


def test_a_server_survives_bottomless_questions(
    tmp_path_factory: pytest.TempPathFactory, eventually: Eventually
) -> None:
    """Each is counted and answered with the reason, and the next question is served."""
    endpoint = f"ipc://{tmp_path_factory.mktemp('s')}/r"
    router = Router(endpoint, Origin("robot"), RobotRequest)
    socket = sockets.open_socket(DEALER, hwm=16, identity=b"hostile")
    sockets.connect(socket, endpoint)
    for header in DEEP:
        eventually(lambda text=header: sockets.send(socket, [b"robot_request", text.encode()]))
    deep = RobotRequest(action="reset", session="s", scenario=nested(230))
    assert sockets.send(socket, encode(deep, Origin("bridge").envelope(deep)))
    good = RobotRequest(action="report")
    assert sockets.send(socket, encode(good, Origin("bridge").envelope(good)))
    request = router.receive(5)
    assert request is not None
    assert request.message == good
    assert router.counts.malformed == len(DEEP) + 1
    replies: list[PolicyError] = []
    for _ in range(len(DEEP) + 1):
        assert socket.poll(5000)
        frames = sockets.receive(socket)
        assert frames is not None
        replies.append(decode(frames, PolicyError)[1])
    assert {reply.code for reply in replies} == {"refused"}
    assert all("recursion limit" in reply.detail for reply in replies)
    socket.close()
    router.close()


@pytest.mark.parametrize(
    "shape", [[0, 2**62], [0, 10**30], [2**40, 2**40], [10**4000] * 8, [-1], [True], [1] * 9, "1", None]
)
def test_an_impossible_shape_is_refused(shape: object) -> None:
    """A shape that no array has is an error for its message, whatever the numbers."""
    with pytest.raises(ValueError, match=r"shape|needs|dimension|too big|limit"):
        Frames([b""]).get({"frame": 0, "dtype": "float32", "shape": shape})


def test_a_bottomless_job_is_refused_at_the_sender(redis: Redis) -> None:
    """Job, result and summary may nest so deep and no deeper; what is refused leaves nothing behind."""
    jobs = Jobs(redis)
    fits = MAX_DEPTH - 1
    assert not jobs.submit(job(nested(fits))).existing
    for levels in (fits + 1, 150, 230, 400, 5_000):
        with pytest.raises(MessageError, match=f"job.*at most {MAX_DEPTH} levels|at most {MAX_DEPTH} are"):
            jobs.submit(job(nested(levels), "deep"))
    claim = jobs.claim("train", "w")
    assert claim is not None
    assert claim.job.spec == nested(fits)
    with pytest.raises(MessageError, match=f"at most {MAX_DEPTH}"):
        jobs.complete(claim, JobResult(summary=nested(fits + 1)))
    assert jobs.complete(claim, JobResult(summary=nested(fits)))
    assert [record.state for record in jobs.list()] == ["done"]


def test_a_huge_job_is_refused_at_the_sender(redis: Redis) -> None:
    """More bytes than a job may have are refused with both numbers."""
    jobs = Jobs(redis)
    with pytest.raises(MessageError, match=f"job has .* bytes; at most {MAX_PAYLOAD_BYTES} are accepted"):
        jobs.submit(job({"text": "x" * MAX_PAYLOAD_BYTES}))
    assert jobs.list() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"stage":"train","key":"k","spec":' + '{"a":' * 150 + "1" + "}" * 151, "levels deep"),
        ('{"stage":"train","key":"k","spec":' + "[" * 20_000, "levels deep"),
        (json.dumps({"stage": "train", "key": "k", "spec": {"x": "y" * 5_000_000}}), "bytes; at most"),
        ('"' + '\\"' * 15_000, "cannot be read"),
    ],
    ids=["deep", "bottomless", "huge", "endless text"],
)
def test_a_hostile_job_in_the_queue_is_a_dead_letter(redis: Redis, text: str, said: str) -> None:
    """A worker that finds one in Redis refuses it with the reason, and takes the next."""
    jobs = Jobs(redis)
    poisoned = jobs.submit(job({}, "poisoned")).job_id
    redis.hset(f"job:{poisoned}", "job", text)
    good = jobs.submit(job({}, "good")).job_id
    claim = jobs.claim("train", "w")
    assert claim is not None
    assert claim.job_id == good
    assert redis.hget(f"job:{poisoned}", "state") == "failed"
    assert said in str(redis.hget(f"job:{poisoned}", "error"))
    assert "job.failed" in [event.kind for event in Events(redis).read()]


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("1", 0),
        ('"[[["', 0),
        ('{"a":[{"}}]]":"\\"[[["}]}', 3),
        ("[" * 500, 500),
        ('"' + '\\"' * 500, 0),
        ("[]" * 500, 1),
    ],
)
def test_depth_counts_what_nests(text: str, levels: int) -> None:
    """Brackets in texts do not count, and a text without an end is no trap."""
    assert depth(text) == levels
