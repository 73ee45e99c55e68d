"""What the evaluate stage is asked for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim2or.messages.message import Spec

Probability = Annotated[float, Field(ge=0, le=1)]


class EvaluateSpec(Spec):
    """Trials to a verdict.

    Attributes:
        task: The task profile whose scenario lists and instruments the trials must follow.
        scenarios: The scenario list that every trial must come from.
        trials: How many trials per model there must be; None accepts any number.
        models: How many exported models the trials are about; the worst one gives the verdict.
        success_goal: The success rate the policy should show.
        lower_goal: What the lower bound of the success interval should reach.
        confidence: Of every interval, two-sided; the bridge asks for at least 0.95.
        videos: Most videos of successes, and most of failures.
    """

    task: str = "handover"
    scenarios: Literal["train", "validation", "deploy", "heldout"] = "heldout"
    trials: Annotated[int, Field(ge=1)] | None = None
    models: Annotated[int, Field(ge=1, le=20)] = 1
    success_goal: Probability = 0.97
    lower_goal: Probability = 0.93
    confidence: Annotated[float, Field(ge=0.9, lt=1)] = 0.95
    videos: Annotated[int, Field(ge=0, le=50)] = 6
