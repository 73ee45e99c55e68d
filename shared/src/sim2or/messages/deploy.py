"""What the deploy stage is asked for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim2or.messages.message import Spec


class DeploySpec(Spec):
    """Real-time trials of one verified model on one robot.

    Attributes:
        robot: Robot profile.
        task: Task profile.
        list: The task's scenario list; a simulated robot loads the scenarios, a real one asks its operator.
        trials: How many hand-overs.
        offset: How many scenarios of the list to leave out at the beginning.
        gate_lower95: The verdict's lower bound of success must reach this, or nothing moves.
        gate_scenarios: The scenario list on which the verdict must have been reached.
        torque_stage: Share of the servos' torque that this evidence has earned.
        max_age_s: Oldest observation that may move the arm [s]; None: what the task says. It may only be
            stricter.
        policy_deadline_ms: An answer that takes longer is useless [ms].
        start_timeout_s: How long robot and policy may take to answer at the beginning [s].
    """

    robot: str = "so101"
    task: str = "handover"
    list: Literal["train", "validation", "deploy", "heldout"] = "deploy"
    trials: Annotated[int, Field(ge=1)] = 20
    offset: Annotated[int, Field(ge=0)] = 0
    gate_lower95: Annotated[float, Field(ge=0, le=1)] = 0.90
    gate_scenarios: Literal["train", "validation", "deploy", "heldout"] = "heldout"
    torque_stage: Literal["locked", "25%", "50%", "100%"] = "100%"
    max_age_s: Annotated[float, Field(gt=0)] | None = None
    policy_deadline_ms: Annotated[float, Field(gt=0, le=60_000)] = 300.0
    start_timeout_s: Annotated[float, Field(gt=0, le=600)] = 60.0
