"""The one table of what is said, by whom, on which road, how often, and what happens when it is late.

Sockets take their high-water marks from it; liveness alarms, the catalogue and tests derive from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sim2or.errors import ConfigError, choices
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.event import Event
from sim2or.messages.job import Job
from sim2or.messages.joint_command import JointCommand
from sim2or.messages.message import Message
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.robot_request import RobotReport, RobotRequest
from sim2or.messages.robot_state import RobotState

Road = Literal["jobs", "events", "rpc", "pubsub"]
Policy = Literal["durable", "newest-wins", "answered", "newest-only", "never-late"]


@dataclass(frozen=True)
class Topic:
    """One kind of message on its road.

    Attributes:
        name: First frame on the wire; the message's type name.
        message: Its type.
        road: ``jobs`` and ``events``: Redis streams; ``rpc``: ROUTER/DEALER; ``pubsub``: PUB/SUB.
        publisher: Who sends it.
        consumers: Who receives it.
        rate_hz: How often it is expected [Hz]; None: when something happens.
        max_age_s: Older is never used [s]; None: any age.
        hwm: Messages that may queue in a socket, per peer.
        policy: What is promised. ``durable``: recorded exactly once; ``newest-wins``: an older request of
            the same session is answered "expired"; ``answered``: answered or timed out; ``newest-only``:
            older ones are skipped, losses counted; ``never-late``: dropped when too old.
        recorded: Whether it is kept after the run.
    """

    name: str
    message: type[Message]
    road: Road
    publisher: str
    consumers: tuple[str, ...]
    rate_hz: float | None
    max_age_s: float | None
    hwm: int
    policy: Policy
    recorded: bool


_STAGES = ("sim", "dataset", "trainer", "evaluator", "exporter", "bridge")
_ROWS: tuple[
    tuple[type[Message], Road, str, tuple[str, ...], float | None, float | None, int, Policy, bool], ...
] = (
    # message, road, publisher, consumers, rate_hz, max_age_s, hwm, policy, recorded
    (Job, "jobs", "cli", _STAGES, None, None, 0, "durable", True),
    (Event, "events", "any", ("cli", "console"), None, None, 0, "durable", True),
    (PolicyRequest, "rpc", "bridge", ("policy",), 6.0, 0.3, 4, "newest-wins", False),
    (ActionChunk, "rpc", "policy", ("bridge", "sim"), 6.0, 0.3, 4, "never-late", False),
    (PolicyError, "rpc", "policy", ("bridge", "sim"), None, 0.3, 4, "answered", False),
    (RobotRequest, "rpc", "bridge", ("robot",), None, None, 4, "answered", False),
    (RobotReport, "rpc", "robot", ("bridge",), None, None, 4, "answered", False),
    (JointCommand, "rpc", "bridge", ("robot",), 30.0, 0.1, 4, "never-late", True),
    (RobotState, "pubsub", "robot", ("bridge", "console"), 30.0, 0.1, 4, "newest-only", False),
)

TOPICS: dict[str, Topic] = {
    row[0].type_name: Topic(row[0].type_name, *row) for row in _ROWS
}  # fmt: skip


def topic(name: str) -> Topic:
    """Returns a row of the table; raises ``ConfigError`` listing the valid names."""
    if name not in TOPICS:
        raise ConfigError(f"topic {name!r}; {choices(name, TOPICS)}")
    return TOPICS[name]


def high_water_mark(*messages: type[Message]) -> int:
    """Returns how many messages may queue in a socket that carries these types."""
    return max(topic(message.type_name).hwm for message in messages)
