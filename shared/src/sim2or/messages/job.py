"""Jobs: what a stage is asked to do, how far it is, and what came of it."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticSerializationError

from sim2or.errors import MessageError
from sim2or.messages.message import Message
from sim2or.messages.observation import Count, Name

MAX_PAYLOAD_BYTES = 32 * 1024
"""Of a job or a result in Redis; what is larger goes to the artifact store."""

MAX_DEPTH = 64
"""How deep the objects and lists of a job or a result may nest; pydantic's reader gives up at 200."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]')  # a string without an end matches too: no backtracking

StageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Traceparent = Annotated[str, Field(pattern=r"^(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?$")]
"""Source: W3C Trace Context, section 3.2, version 00; empty where nothing is traced."""
SchemaVersion = Annotated[str, Field(pattern=r"^\d{1,6}\.\d{1,6}$")]
Priority = Literal["high", "normal", "low"]
JobState = Literal["queued", "running", "done", "failed", "cancelled", "dead"]
FINAL_STATES: frozenset[str] = frozenset({"done", "failed", "cancelled", "dead"})


class Job(Message):
    """A question to a stage.

    Attributes:
        stage: The stage that answers, for example ``"collect"``.
        key: Result key: digest of code, lock, inputs, config and seed. The same key is the same job.
        spec: The stage's configuration, as JSON.
        inputs: Role to the digests of that role's artifacts, in order.
        shard: This job's number, 0 ≤ shard < shards.
        shards: How many jobs share the stage.
        run_id: The run that asked first.
        name: For people, for example ``"train-seed0"``.
        traceparent: W3C trace context of that run; the stage finds it in ``TRACEPARENT``.
        code: Digest of the answering service's code, as the key has it; other code refuses the job.
        version: The sender's version of this message, as jobs travel without an envelope. Another major
            version is refused.
    """

    type_name: ClassVar[str] = "job"
    schema_version: ClassVar[str] = "1.1"

    stage: StageName
    key: Annotated[str, Field(min_length=1, max_length=200)]
    spec: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[Name, tuple[Name, ...]] = Field(default_factory=dict)
    shard: Count = 0
    shards: Annotated[int, Field(ge=1)] = 1
    run_id: Name = ""
    name: Name = ""
    traceparent: Traceparent = ""
    code: Annotated[str, Field(max_length=100)] = ""
    version: SchemaVersion = Field(default_factory=lambda: Job.schema_version)

    @field_validator("version")
    @classmethod
    def _same_major(cls, version: str) -> str:
        if version.partition(".")[0] != cls.schema_version.partition(".")[0]:
            raise ValueError(f"job version {version} is refused; here it is {cls.schema_version}")
        return version

    @model_validator(mode="after")
    def _shard_exists(self) -> Job:
        if self.shard >= self.shards:
            raise ValueError(f"shard {self.shard} does not exist; there are {self.shards}, from 0")
        return self

    @property
    def job_id(self) -> str:
        """Names the job by its question, so that a resubmission finds the same work directory."""
        question = json.dumps([self.stage, self.key, self.shard, self.shards])
        return f"{self.stage}-{hashlib.sha256(question.encode()).hexdigest()[:16]}"


class Progress(Message):
    """How far a job is.

    Attributes:
        done: Units done.
        total: Units there are.
        unit: What is counted, for example ``"episodes"``.
        eta_s: Expected time to the end [s].
        metrics: Figures of the moment, for example a loss.
    """

    type_name: ClassVar[str] = "progress"

    done: Annotated[float, Field(ge=0)]
    total: Annotated[float, Field(ge=0)]
    unit: Name = ""
    eta_s: Annotated[float, Field(ge=0)] | None = None
    metrics: Annotated[dict[Name, float], Field(default_factory=dict, max_length=100)]


class JobResult(Message):
    """What a job made.

    Attributes:
        outputs: Role to the digest of the artifact.
        kinds: Role to the artifact's kind.
        summary: JSON-able figures.
    """

    type_name: ClassVar[str] = "job_result"

    outputs: dict[Name, Name] = Field(default_factory=dict)
    kinds: dict[Name, Name] = Field(default_factory=dict)
    summary: dict[str, Any] = Field(default_factory=dict)


class JobFailure(Message):
    """Why a job failed.

    Attributes:
        kind: ``permanent``: trying again gives the same; ``transient``: tried again later; ``crashed``: the
            process died, tried again soon.
        message: The error, for people.
        traceback: Where it happened.
    """

    type_name: ClassVar[str] = "job_failure"

    kind: Literal["permanent", "transient", "crashed"]
    message: str
    traceback: str = ""


class JobRecord(Message):
    """All that is known about a job. Times are Redis's clock, in milliseconds since 1970.

    Attributes:
        job_id: Names the job.
        job: The question.
        state: Where it is.
        priority: Which of its stage's queues it is in.
        attempts: How often it was started.
        strikes: How many of these counted as failures.
        owner: The worker that has it, or had it last.
        cancelling: Cancelled, but its worker has not stopped yet.
        progress: Last progress of the current attempt.
        result: When done.
        error: Last failure.
        submitted_ms: When it was queued first.
        started_ms: Start of the last attempt.
        finished_ms: When it reached a final state.
        due_ms: When a delayed retry is due.
        progress_ms: When the last progress came.
    """

    type_name: ClassVar[str] = "job_record"
    schema_version: ClassVar[str] = "1.1"

    job_id: Name
    job: Job
    state: JobState
    priority: Priority = "normal"
    attempts: Count = 0
    strikes: Count = 0
    owner: str = ""
    cancelling: bool = False
    progress: Progress | None = None
    result: JobResult | None = None
    error: JobFailure | None = None
    submitted_ms: int | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    due_ms: int | None = None
    progress_ms: int | None = None

    @property
    def final(self) -> bool:
        """Whether nothing more happens to it unless someone submits or retries it."""
        return self.state in FINAL_STATES


def bounded(message: Message) -> str:
    """Writes a job or a result as JSON; raises ``MessageError`` when it is too large or deep for the bus."""
    try:
        text = message.model_dump_json()
    except PydanticSerializationError as error:
        raise MessageError(
            f"{message.type_name}: {error}; at most {MAX_DEPTH} levels are accepted"
        ) from error
    check_payload(message.type_name, text)
    return text


def check_payload(name: str, text: str) -> None:
    """Refuses the JSON of a job or a result that is larger or deeper than the bus carries.

    Raises:
        MessageError: With the size or depth, and the limit.
    """
    size = len(text.encode())
    if size > MAX_PAYLOAD_BYTES:
        raise MessageError(
            f"{name} has {size} bytes; at most {MAX_PAYLOAD_BYTES} are accepted: "
            "store it as an artifact and send its digest"
        )
    if text.count("{") + text.count("[") > MAX_DEPTH < (levels := depth(text)):
        raise MessageError(f"{name} nests {levels} levels deep; at most {MAX_DEPTH} are accepted")


def depth(text: str) -> int:
    """How deep the objects and lists of a JSON text nest."""
    steps = {"{": 1, "[": 1, "}": -1, "]": -1}
    return max(accumulate(steps.get(token, 0) for token in _TOKEN.findall(text)), default=0)
