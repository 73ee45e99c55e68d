"""A peer of another version, in a process of its own; it uses only what the first released code had, too.

``python version_peer.py ROLE ADDRESS VERSION`` with VERSION ``plain`` (the code's own messages), ``minor``
(every message has one more optional field) or ``major`` (the same names, other fields, version 2.0). It
prints one JSON object a line, and ends when its work is done or its standard input closes.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import sim2or
from numpy.typing import NDArray
from pydantic import Field
from sim2or.bus.jobs import Jobs
from sim2or.bus.pubsub import Publisher, Subscriber
from sim2or.bus.rpc import Client, ServerLoop
from sim2or.bus.server import connect
from sim2or.errors import TransientError
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.array import ArraySpec
from sim2or.messages.envelope import Origin
from sim2or.messages.job import Job, JobResult, Progress
from sim2or.messages.message import Message
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.robot_state import RobotState

DEADLINE_S = 20.0
PICTURE = np.arange(240 * 320 * 3, dtype=np.uint8).reshape(240, 320, 3)
QUESTIONS = 3


def next_minor(kind: type[Message]) -> str:
    """The version after a message's own."""
    major, minor = kind.schema_version.split(".")
    return f"{major}.{int(minor) + 1}"


class MinorObservation(Observation):
    """An observation that also says how bright it is."""

    schema_version: ClassVar[str] = next_minor(Observation)
    light_lux: float = 300.0


class MinorRequest(PolicyRequest):
    """A question that also says whether it is urgent."""

    schema_version: ClassVar[str] = next_minor(PolicyRequest)
    observation: MinorObservation
    urgent: bool = False


class MinorChunk(ActionChunk):
    """Actions with a confidence for each."""

    schema_version: ClassVar[str] = next_minor(ActionChunk)
    confidence: Annotated[NDArray[np.float32], ArraySpec("float32", (None,))] | None = None


class MinorError(PolicyError):
    """A refusal that says when to ask again."""

    schema_version: ClassVar[str] = next_minor(PolicyError)
    again_ms: float | None = None


class MinorState(RobotState):
    """A state with servo temperatures."""

    schema_version: ClassVar[str] = next_minor(RobotState)
    temperatures_k: Annotated[NDArray[np.float32], ArraySpec("float32", (6,))] | None = None


class MinorJob(Job):
    """A job with a budget."""

    schema_version: ClassVar[str] = next_minor(Job)
    budget_s: Annotated[float, Field(gt=0)] | None = None


class MinorProgress(Progress):
    """Progress that names its phase."""

    schema_version: ClassVar[str] = next_minor(Progress)
    phase: str = ""


class MinorResult(JobResult):
    """A result with its cost."""

    schema_version: ClassVar[str] = next_minor(JobResult)
    energy_j: float = 0.0


class MajorRequest(Message):
    """A question whose fields are others."""

    type_name: ClassVar[str] = "policy_request"
    schema_version: ClassVar[str] = "2.0"
    model: str
    state_rad: tuple[float, ...]


class MajorChunk(Message):
    """Actions whose fields are others."""

    type_name: ClassVar[str] = "action_chunk"
    schema_version: ClassVar[str] = "2.0"
    torques_nm: tuple[float, ...]


class MajorState(Message):
    """A state whose fields are others."""

    type_name: ClassVar[str] = "robot_state"
    schema_version: ClassVar[str] = "2.0"
    number: int


class MajorJob(Job):
    """A job that means something else."""

    schema_version: ClassVar[str] = "2.0"


def say(**content: Any) -> None:
    """Prints one line for the test."""
    print(json.dumps(content), flush=True)


def left() -> bool:
    """Whether the test has closed our standard input."""
    return bool(select.select([sys.stdin], [], [], 0)[0]) and not sys.stdin.read(1)


def observation(kind: type[Observation], tick: int, **more: Any) -> Observation:
    """An observation with a picture that is large enough for any special road."""
    return kind(
        robot="so101",
        task="handover",
        request="Hand me the scalpel",
        episode="e",
        tick=tick,
        state_rad=np.full(6, tick, np.float32),
        images={"wrist": PICTURE},
        captured_ns=1000 + tick,
        **more,
    )


def question(version: str, tick: int) -> Message:
    """The question of one tick."""
    if version == "major":
        return MajorRequest(model="sha256:1", state_rad=(0.0,) * 6)
    if version == "minor":
        seen = observation(MinorObservation, tick, light_lux=80.0)
        return MinorRequest(artifact="sha256:1", observation=seen, deadline_ms=5000.0, urgent=True)
    return PolicyRequest(artifact="sha256:1", observation=observation(Observation, tick), deadline_ms=5000.0)


def chunk(version: str, asked: PolicyRequest) -> Message:
    """The answer to a question, if its picture came whole."""
    seen = asked.observation
    if not np.array_equal(seen.images["wrist"], PICTURE):
        return PolicyError(code="refused", detail="the picture is another one")
    if version == "major":
        return MajorChunk(torques_nm=(0.0,) * 6)
    kind, more = (
        (MinorChunk, {"confidence": np.ones(2, np.float32)}) if version == "minor" else (ActionChunk, {})
    )
    return kind(
        episode=seen.episode,
        tick=seen.tick,
        actions_rad=np.tile(seen.state_rad, (2, 1)),
        period_s=1 / 30,
        captured_ns=seen.captured_ns,
        inference_s=0.0,
        artifact=asked.artifact,
        **more,
    )


def state(version: str, seq: int) -> Message:
    """One state of a robot."""
    if version == "major":
        return MajorState(number=seq)
    kind, more = (
        (MinorState, {"temperatures_k": np.full(6, 300, np.float32)})
        if version == "minor"
        else (RobotState, {})
    )
    return kind(
        seq=seq,
        captured_ns=seq,
        position_rad=np.full(6, seq, np.float32),
        velocity_radps=np.zeros(6, np.float32),
        images={"wrist": PICTURE},
        **more,
    )


def ask(address: str, version: str) -> None:
    """Asks some questions and prints the answers."""
    kinds: tuple[type[Message], ...] = (ActionChunk, PolicyError)
    if version == "minor":
        kinds = (MinorChunk, MinorError)
    client: Client[Any] = Client(address, Origin("bridge"), *kinds)
    for tick in range(QUESTIONS):
        answer = client.call(question(version, tick), deadline_s=DEADLINE_S)
        say(**answer.model_dump(mode="python", exclude={"actions_rad", "confidence"}), type=answer.type_name)
    client.close()


def serve(address: str, version: str) -> None:
    """Answers questions until standard input closes."""
    kind = MinorRequest if version == "minor" else PolicyRequest

    def handler(asked: Sequence[PolicyRequest]) -> list[Message]:
        return [chunk(version, one) for one in asked]

    loop: ServerLoop[Any, Any] = ServerLoop(address, handler, kind, origin=Origin("policy"))
    loop.run(left)


def publish(address: str, version: str) -> None:
    """Publishes a state fifty times a second until standard input closes."""
    kind = type(state(version, 0))
    publisher = Publisher(address, Origin("robot"), kind)
    seq = 0
    while not left():
        publisher.publish(state(version, seq))
        seq += 1
        time.sleep(0.02)
    publisher.close()


def listen(address: str, version: str) -> None:
    """Prints some states."""
    kind = MinorState if version == "minor" else RobotState
    subscriber: Subscriber[Any] = Subscriber(address, kind)
    deadline_s = time.monotonic() + DEADLINE_S
    heard = 0
    while heard < QUESTIONS and time.monotonic() < deadline_s:
        received = subscriber.receive(1.0)
        if received:
            heard += 1
            whole = bool(np.array_equal(received[1].images["wrist"], PICTURE))
            say(seq=received[1].seq, whole=whole, version=received[0].version)
    subscriber.close()


def submit(address: str, version: str) -> None:
    """Submits a job, waits for its end and prints what is known of it."""
    redis = connect(address)
    fields: dict[str, Any] = {"stage": "train", "key": version, "spec": {"steps": 3}, "run_id": "skew"}
    job = {
        "plain": lambda: Job(**fields),
        "minor": lambda: MinorJob(**fields, budget_s=60.0),
        "major": lambda: MajorJob(**fields, version="2.0"),
    }[version]()
    submitted = Jobs(redis).submit(job)
    deadline_s = time.monotonic() + DEADLINE_S
    while redis.hget(f"job:{submitted.job_id}", "state") not in ("done", "failed", "dead"):
        if time.monotonic() > deadline_s:
            raise TransientError(f"{submitted.job_id} did not end within {DEADLINE_S:g} s")
        time.sleep(0.02)
    record: Any = redis.hgetall(f"job:{submitted.job_id}")
    say(**{name: record.get(name) for name in ("state", "result", "error", "attempts")})


def work(address: str, version: str) -> None:
    """Takes one job, reports progress, completes it, and prints what it was."""
    redis = connect(address)
    jobs = Jobs(redis)
    claim = jobs.claim("train", f"{version}-peer", block_s=DEADLINE_S)
    if claim is None:
        raise TransientError(f"no job within {DEADLINE_S:g} s")
    text: Any = redis.hget(f"job:{claim.job_id}", "job")
    kind = MinorJob if version == "minor" else Job
    job = kind.model_validate_json(text, extra="ignore")
    if version == "minor":
        jobs.progress(claim, MinorProgress(done=1.0, total=2.0, phase="warm-up"))
        recorded = jobs.complete(claim, MinorResult(outputs={"checkpoint": "sha256:2"}, energy_j=5.0))
    else:
        jobs.progress(claim, Progress(done=1.0, total=2.0))
        recorded = jobs.complete(claim, JobResult(outputs={"checkpoint": "sha256:2"}))
    say(recorded=recorded, **job.model_dump(mode="json"))


ROLES = {"ask": ask, "serve": serve, "publish": publish, "listen": listen, "submit": submit, "work": work}

if __name__ == "__main__":
    say(code=sim2or.__file__)
    ROLES[sys.argv[1]](sys.argv[2], sys.argv[3])
