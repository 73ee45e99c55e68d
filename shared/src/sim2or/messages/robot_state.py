"""What a robot publishes about itself."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from sim2or.messages.array import Image, Joints
from sim2or.messages.message import Message
from sim2or.messages.observation import Count, Name

Status = str | int | float | bool | None


class RobotState(Message):
    """Joint state, and images when the robot has new ones.

    Attributes:
        seq: Grows by one with each state; a gap means that states were lost.
        captured_ns: Monotonic clock of the robot's host at capture [ns].
        position_rad: Shape (6,), float32: measured joint positions [rad].
        velocity_radps: Shape (6,), float32: measured joint velocities [rad/s].
        images: Camera name to uint8 (height, width, 3) RGB; empty when none are new.
        episode: The episode it is in; empty between episodes.
        phase: What it is doing, for example ``"running"``.
        status: Facts about the episode and the robot.
    """

    type_name: ClassVar[str] = "robot_state"

    seq: Count
    captured_ns: int
    position_rad: Joints
    velocity_radps: Joints
    images: Annotated[dict[Name, Image], Field(default_factory=dict, max_length=16)]
    episode: Name = ""
    phase: Name = ""
    status: Annotated[dict[Name, Status], Field(default_factory=dict, max_length=100)]
