"""The configuration of the dataset stage."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from sim2or.messages.message import Spec


class DatasetSpec(Spec):
    """How parts become one dataset.

    Attributes:
        name: The dataset's name, used in its card.
        robot: Robot profile the dataset must fit.
        task: Task profile the dataset must fit.
        validation_fraction: Share of parent demonstrations held out of training.
        split_seed: Chooses which.
        min_episodes: Fewer kept episodes are refused.
    """

    name: str = Field(default="handover", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    robot: str = "so101"
    task: str = "handover"
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    split_seed: NonNegativeInt = 0
    min_episodes: PositiveInt = 1
