"""What a robot is asked between episodes, and what it answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sim2or.messages.array import ArraySpec
from sim2or.messages.message import Message
from sim2or.messages.observation import Count, Name
from sim2or.messages.robot_state import Status

Text = Annotated[NDArray[np.uint8], ArraySpec("uint8", (None,))]
"""UTF-8 bytes."""


class RobotRequest(Message):
    """Asks a robot to start an episode or to report.

    Attributes:
        action: ``reset`` returns to the start and begins an episode; ``report`` only answers; ``log`` answers
            with the command log of the episode.
        session: Names the episode that a reset begins; only its commands are executed.
        scenario: The scenario that a simulator loads, as plain JSON; a real robot shows it to its operator.
    """

    type_name: ClassVar[str] = "robot_request"

    action: Literal["reset", "report", "log"]
    session: Name = ""
    scenario: Annotated[dict[str, Any], Field(max_length=100)] | None = None


class RobotReport(Message):
    """What a robot says about itself and its command log.

    Attributes:
        robot: Robot profile's name.
        task: Task profile's name.
        joints: Joint names, in the order of every joint array.
        cameras: Camera name to image shape (height, width, channels).
        control_hz: Rate of its ticks [Hz].
        session: The episode it is in; empty before the first.
        phase: ``idle``, ``running`` or ``done``.
        status: Facts about the episode, and the counts from the command log.
        log: The command log's file name to its bytes, when it was asked for; otherwise empty.
    """

    type_name: ClassVar[str] = "robot_report"

    robot: Name
    task: Name
    joints: tuple[Name, ...]
    cameras: dict[Name, tuple[Count, Count, Count]]
    control_hz: Annotated[float, Field(gt=0)]
    session: Name
    phase: Literal["idle", "running", "done"]
    status: Annotated[dict[Name, Status], Field(max_length=200)]
    log: Annotated[dict[Name, Text], Field(default_factory=dict, max_length=1)]
