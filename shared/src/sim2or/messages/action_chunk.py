"""What a policy answers: joint targets for the next control periods."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from sim2or.messages.array import JointSequence
from sim2or.messages.message import Message
from sim2or.messages.observation import Count, Name


class ActionChunk(Message):
    """Joint targets; action k belongs to time ``captured_ns + k × period``.

    Attributes:
        episode: The observation's episode, returned.
        tick: The observation's tick, returned.
        actions_rad: Shape (steps, 6), float32: joint position targets [rad].
        period_s: Time between actions [s].
        captured_ns: The observation's capture time, returned [ns].
        inference_s: Time spent in the network [s].
        artifact: Digest of the model that answered.
    """

    type_name: ClassVar[str] = "action_chunk"

    episode: Name
    tick: Count
    actions_rad: JointSequence
    period_s: Annotated[float, Field(gt=0)]
    captured_ns: int
    inference_s: Annotated[float, Field(ge=0)]
    artifact: Name
