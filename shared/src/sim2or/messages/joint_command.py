"""What a robot is told to do in one control period."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from sim2or.messages.array import Joints
from sim2or.messages.message import Message
from sim2or.messages.observation import Count, Name


class JointCommand(Message):
    """One joint position target, after the safety kernel.

    Attributes:
        session: The commander's session; another session's commands are refused while this one is alive.
        seq: Grows by one with each command of the session.
        tick: Control period within the episode.
        target_rad: Shape (6,), float32: joint position targets [rad].
        issued_ns: Commander's monotonic clock when it was issued [ns].
        captured_ns: Capture time of the observation that caused it [ns]; None for a hold.
        hold: Whether this holds the arm instead of following a policy.
        torque_scale: Share of the servos' torque that may be used, 0 to 1.
        artifact: Digest of the model it follows; empty when none.
    """

    type_name: ClassVar[str] = "joint_command"

    session: Name
    seq: Count
    tick: Count
    target_rad: Joints
    issued_ns: int
    captured_ns: int | None
    hold: bool
    torque_scale: Annotated[float, Field(ge=0, le=1)] = 1.0
    artifact: Name = ""
