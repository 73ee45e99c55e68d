"""The configuration of the import stage."""

from __future__ import annotations

from pydantic import Field

from sim2or.messages.message import Spec


class ImportSpec(Spec):
    """How the demonstrations of another recorder become episodes.

    Attributes:
        robot: Robot profile of the recorded arm.
        task: Task profile that the recording must fit: rate, cameras, instruments.
        articulation: The arm's name in the recording's states.
        joints: Joint names in the recording's order; empty: what it says, else the profile's order.
        cameras: The task's camera to its name among the recording's observations; others have the same name.
        instrument: The instrument that is handed over; empty: the one that lies on the tray at the start.
        unjudged_succeeded: Whether demonstrations without a verdict count as successes; refused otherwise.
    """

    robot: str = "so101"
    task: str = "handover"
    articulation: str = Field(default="robot", min_length=1)
    joints: tuple[str, ...] = ()
    cameras: dict[str, str] = Field(default_factory=dict)
    instrument: str = ""
    unjudged_succeeded: bool = False
