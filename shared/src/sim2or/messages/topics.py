"""The one table of what is said, by whom, on which road, how often, and what happens when it is late.

Sockets take their high-water marks from it; liveness alarms, the catalogue, allow-lists and tests derive from
it. ``sim2or bus topics`` prints it, ``sim2or bus check`` verifies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sim2or.errors import ConfigError, choices
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.event import Event
from sim2or.messages.job import Job, JobFailure, JobRecord, JobResult, Progress
from sim2or.messages.joint_command import JointCommand
from sim2or.messages.message import Message
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.robot_request import RobotReport, RobotRequest
from sim2or.messages.robot_state import RobotState
from sim2or.messages.upload import (
    UploadChunk,
    UploadError,
    UploadFile,
    UploadGrant,
    UploadOffer,
    UploadStored,
)

Road = Literal["jobs", "events", "rpc", "pubsub"]
Policy = Literal["durable", "newest-wins", "answered", "newest-only", "never-late"]


@dataclass(frozen=True)
class Topic:
    """One kind of message on its road.

    Attributes:
        message: Its type.
        road: ``jobs`` and ``events``: Redis; ``rpc``: ROUTER/DEALER; ``pubsub``: PUB/SUB.
        publishers: Who sends it.
        consumers: Who receives it.
        rate_hz: How often it is expected [Hz]; None: when something happens.
        max_age_s: Older is never used [s]; None: any age.
        hwm: Messages that may queue in a socket, per peer.
        policy: What is promised. ``durable``: recorded exactly once; ``newest-wins``: an older request of
            the same session is answered "expired"; ``answered``: answered or timed out; ``newest-only``:
            older ones are skipped, losses counted; ``never-late``: dropped when too old.
        recorded: Whether it is kept after the run.
        answers: What may come back to a question, from each of its consumers to each of its publishers.
    """

    message: type[Message]
    road: Road
    publishers: tuple[str, ...]
    consumers: tuple[str, ...]
    rate_hz: float | None
    max_age_s: float | None
    hwm: int
    policy: Policy
    recorded: bool
    answers: tuple[type[Message], ...] = ()

    @property
    def name(self) -> str:
        """First frame on the wire; the message's type name."""
        return self.message.type_name


_STAGES = ("sim", "sim-isaaclab", "rl", "dataset", "trainer", "evaluator", "exporter", "bridge")
_ACTORS = ("bridge", "sim", "sim-isaaclab")
"""Who asks a policy: the robot's side, and rollouts in simulation."""

_CHUNKS = (ActionChunk, PolicyError)
_REPORTS = (RobotReport, PolicyError)
_UPLOADS = (UploadGrant, UploadStored, UploadError)

_ROWS = (
    # message, road, publishers, consumers, rate_hz, max_age_s, hwm, policy, recorded, answers
    Topic(Job, "jobs", ("cli",), _STAGES, None, None, 0, "durable", True),
    Topic(Progress, "jobs", _STAGES, ("cli", "console"), 2.0, None, 0, "newest-only", False),
    Topic(JobResult, "jobs", _STAGES, ("cli", "console"), None, None, 0, "durable", True),
    Topic(JobFailure, "jobs", _STAGES, ("cli", "console"), None, None, 0, "durable", True),
    Topic(JobRecord, "jobs", ("cli", *_STAGES), ("cli", "console"), None, None, 0, "durable", True),
    Topic(Event, "events", ("cli", *_STAGES), ("cli", "console"), None, None, 0, "durable", True),
    Topic(PolicyRequest, "rpc", _ACTORS, ("policy",), 6.0, 0.3, 4, "newest-wins", False, _CHUNKS),
    Topic(ActionChunk, "rpc", ("policy",), _ACTORS, 6.0, 0.3, 4, "never-late", False),
    Topic(PolicyError, "rpc", ("policy", "robot"), _ACTORS, None, 0.3, 4, "answered", False),
    Topic(RobotRequest, "rpc", ("bridge",), ("robot",), None, None, 4, "answered", False, _REPORTS),
    Topic(RobotReport, "rpc", ("robot",), ("bridge",), None, None, 4, "answered", False),
    Topic(JointCommand, "rpc", ("bridge",), ("robot",), 30.0, 0.1, 4, "never-late", True, (PolicyError,)),
    Topic(RobotState, "pubsub", ("robot",), ("bridge", "console"), 30.0, 0.1, 4, "newest-only", False),
    Topic(UploadOffer, "rpc", _STAGES, ("dataset",), None, None, 16, "durable", True, _UPLOADS),
    Topic(UploadChunk, "rpc", _STAGES, ("dataset",), None, None, 16, "durable", True, _UPLOADS),
    Topic(UploadFile, "rpc", _STAGES, ("dataset",), None, None, 16, "durable", True, _UPLOADS),
    Topic(UploadGrant, "rpc", ("dataset",), _STAGES, None, None, 16, "answered", False),
    Topic(UploadStored, "rpc", ("dataset",), _STAGES, None, None, 16, "answered", False),
    Topic(UploadError, "rpc", ("dataset",), _STAGES, None, None, 16, "answered", False),
)

TOPICS: dict[str, Topic] = {row.name: row for row in _ROWS}


def topic(name: str) -> Topic:
    """Returns a row of the table; raises ``ConfigError`` listing the valid names."""
    if name not in TOPICS:
        raise ConfigError(f"topic {name!r}; {choices(name, TOPICS)}")
    return TOPICS[name]


def high_water_mark(*messages: type[Message]) -> int:
    """Returns how many messages may queue in a socket that carries these types."""
    return max(topic(message.type_name).hwm for message in messages)
