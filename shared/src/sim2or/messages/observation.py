"""What a robot senses at one instant, as a policy receives it."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sim2or.messages.array import ArraySpec, Image, Joints
from sim2or.messages.message import Message

Name = Annotated[str, Field(max_length=200)]
Count = Annotated[int, Field(ge=0)]


class Channel(Message):
    """Numbers beside joints and images that a policy may need: where its target is, what it last commanded.

    Attributes:
        unit: Of every number, for example ``"m"``.
        values: Shape (n,), float32.
    """

    type_name: ClassVar[str] = "channel"

    unit: Annotated[str, Field(max_length=20)]
    values: Annotated[NDArray[np.float32], ArraySpec("float32", (None,))]


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
        channels: Further numbers by name, as the model's card asks for them.
    """

    type_name: ClassVar[str] = "observation"
    schema_version: ClassVar[str] = "1.1"

    robot: Name
    task: Name
    request: Annotated[str, Field(max_length=2000)]
    episode: Name
    tick: Count
    state_rad: Joints
    images: Annotated[dict[Name, Image], Field(max_length=16)]
    captured_ns: int
    channels: Annotated[dict[Name, Channel], Field(max_length=16)] = Field(default_factory=dict)
