"""What a robot senses at one instant, as a policy receives it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from sim2or.messages.array import Image, Joints
from sim2or.messages.message import Message

Name = Annotated[str, Field(max_length=200)]
Count = Annotated[int, Field(ge=0)]


class Observation(Message):
    """Images, joint state and request of one instant.

    Attributes:
        robot: Robot profile's name.
        task: Task profile's name.
        request: What the surgeon asked for, in words.
        episode: Names the episode; a policy forgets its past when this changes.
        tick: Control period within the episode, from 0.
        state_rad: Shape (6,), float32: joint positions [rad].
        images: Camera name to uint8 (height, width, 3) RGB.
        captured_ns: Monotonic clock of the robot's host at capture [ns].
    """

    type_name: ClassVar[str] = "observation"

    robot: Name
    task: Name
    request: Annotated[str, Field(max_length=2000)]
    episode: Name
    tick: Count
    state_rad: Joints
    images: Annotated[dict[Name, Image], Field(max_length=16)]
    captured_ns: int
