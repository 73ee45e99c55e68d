"""The observation contract: what a learnt policy is given and gives, written beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from sim2or.errors import ConfigError
from sim2or.messages.message import Spec

CONTRACT_FILE = "contract.json"


class Channel(Spec):
    """One part of the observation vector.

    Attributes:
        name: What it is, with its unit.
        unit: ``rad``, ``m`` or ``1``.
        frame: ``joint`` or the frame that its coordinates are in: ``base`` or ``tool``.
        names: Its numbers in order.
    """

    name: str
    unit: Literal["rad", "m", "1"]
    frame: Literal["joint", "base", "tool"]
    names: Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return len(self.names)


class ActionContract(Spec):
    """Actions in −1…1 move the targets of some joints, in every control period, inside the joints' ranges.

    Attributes:
        joints: The joints that move, in the order of the actions; the others keep their target.
        delta_max_rad: How far a target moves in a control period at an action of one [rad].
        lead_max_rad: How far a target may be from where its joint is [rad].
        lower_rad: Lower ends of the ranges, in the order of the actions [rad].
        upper_rad: Upper ends [rad].
    """

    joints: Annotated[tuple[str, ...], Field(min_length=1)]
    delta_max_rad: PositiveFloat
    lead_max_rad: PositiveFloat
    lower_rad: tuple[float, ...]
    upper_rad: tuple[float, ...]

    @model_validator(mode="after")
    def _fits(self) -> ActionContract:
        sizes = {len(self.joints), len(self.lower_rad), len(self.upper_rad)}
        if len(sizes) > 1:
            raise ValueError(f"joints, lower_rad and upper_rad have different lengths: {sorted(sizes)}")
        return self


class Contract(Spec):
    """What a learnt policy is given and gives.

    Attributes:
        version: Of this format.
        task: ``reach`` or ``grasp``.
        robot: Robot profile.
        calibration_id: Calibration of the robot's joint zeros and ranges.
        control_hz: Decisions per second.
        episode_steps: Decisions in an episode.
        observation: The channels in order.
        normalisation: How the network scales its observation; the figures are inside the model.
        action: What its outputs mean.
        success: When an episode counts, by name.
    """

    version: Literal[1] = 1
    task: Literal["reach", "grasp"]
    robot: str
    calibration_id: str
    control_hz: PositiveFloat
    episode_steps: PositiveInt
    observation: Annotated[tuple[Channel, ...], Field(min_length=1)]
    normalisation: Literal["running mean and standard deviation, inside the model"] = (
        "running mean and standard deviation, inside the model"
    )
    action: ActionContract
    success: Mapping[str, float]

    @property
    def size(self) -> int:
        """Numbers in an observation."""
        return sum(channel.size for channel in self.observation)

    def write(self, directory: Path) -> None:
        """Writes ``contract.json`` into a directory."""
        (directory / CONTRACT_FILE).write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Contract:
        """Reads ``contract.json`` from a directory.

        Raises:
            ConfigError: It is missing or no contract.
        """
        path = directory / CONTRACT_FILE
        if not path.exists():
            raise ConfigError(f"{path} is missing: a policy without its contract is not used; train it again")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ConfigError(f"{path} is no observation contract: {error}") from error
