"""Model cards: what a policy takes, gives and was trained for. No framework needed to read one.

A card always describes the served interface: joint radians and 8-bit camera images in, joint radians out,
whatever units the checkpoint uses inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from sim2or.errors import ConfigError
from sim2or.messages.message import Spec

CARD_FILE = "card.json"
MODEL_FILE = "model.onnx"
SELF_TEST_FILE = "selftest.npz"
"""Inputs and the answer to them at export, which a server compares with its own."""

STATE = "observation.state"
IMAGE_PREFIX = "observation.images."
CHANNEL_PREFIX = "observation.environment_state."
"""Before the names of further numbers that whoever asks must send: a target, the newest command, a pose."""
PRIVILEGED_PREFIX = "observation.privileged."
ACTION = "action"


class TensorSpec(Spec):
    """One input or output of a model.

    Attributes:
        name: The tensor's name in the graph, LeRobot's key.
        dtype: Element type.
        shape: Without the leading batch dimension, which is dynamic.
        unit: For example ``"rad"``, or ``"level"`` for 0–255 colour levels.
        names: What the last axis holds, in order.
    """

    name: str
    dtype: Literal["float32", "uint8"]
    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    unit: str
    names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_fit(self) -> TensorSpec:
        if self.names and len(self.names) != self.shape[-1]:
            raise ValueError(f"{self.name}: {len(self.names)} names for {self.shape[-1]} values")
        return self


class ModelCard(Spec):
    """What a policy takes, gives and was trained for.

    Attributes:
        policy: LeRobot's policy type, for example ``"compact_act"``.
        robot: Robot profile it was trained on.
        task: Task profile it was trained on.
        calibration_id: Calibration of the robot's joint zeros and ranges.
        requests: Every language instruction in its training data.
        control_hz: Rate at which the actions of a chunk follow one another.
        privileged: An input is simulator truth: for checks in simulation, never for a robot.
        inputs: In graph order.
        outputs: In graph order.
        sources: Role to the digests it was made from.
        figures: Measured at training or export: parity, latency, steps.
    """

    policy: str
    robot: str
    task: str
    calibration_id: str
    requests: Annotated[tuple[str, ...], Field(min_length=1)]
    control_hz: PositiveFloat
    privileged: bool
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    sources: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    figures: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_what_it_needs(self) -> ModelCard:
        names = [tensor.name for tensor in self.inputs]
        if len(set(names)) != len(names):
            raise ValueError(f"an input is listed twice: {', '.join(names)}")
        told = (IMAGE_PREFIX, CHANNEL_PREFIX)
        hidden = [name for name in names if name != STATE and not name.startswith(told)]
        if hidden and not self.privileged:
            raise ValueError(
                f"inputs {', '.join(hidden)} are no sensor of the robot, yet privileged is false"
            )
        return self

    @property
    def joints(self) -> tuple[str, ...]:
        """Joint names in the order of the state and of the actions."""
        return self.input(STATE).names

    @property
    def cameras(self) -> dict[str, tuple[int, ...]]:
        """Camera name to image shape (height_px, width_px, 3)."""
        return {
            tensor.name.removeprefix(IMAGE_PREFIX): tensor.shape
            for tensor in self.inputs
            if tensor.name.startswith(IMAGE_PREFIX)
        }

    @property
    def channels(self) -> dict[str, TensorSpec]:
        """What is sent beside joints and images, by name."""
        return {
            tensor.name.removeprefix(CHANNEL_PREFIX): tensor
            for tensor in self.inputs
            if tensor.name.startswith(CHANNEL_PREFIX)
        }

    @property
    def horizon(self) -> int:
        """Actions in a chunk."""
        return next(tensor for tensor in self.outputs if tensor.name == ACTION).shape[0]

    @property
    def period_s(self) -> float:
        """Time between two actions of a chunk [s]."""
        return 1.0 / self.control_hz

    def input(self, name: str) -> TensorSpec:
        """The input of that name.

        Raises:
            ConfigError: The model has no such input.
        """
        for tensor in self.inputs:
            if tensor.name == name:
                return tensor
        valid = ", ".join(tensor.name for tensor in self.inputs)
        raise ConfigError(f"the model has no input {name!r}; it has {valid}")

    def write(self, directory: Path) -> None:
        """Writes ``card.json`` into a directory."""
        (directory / CARD_FILE).write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> ModelCard:
        """Reads ``card.json`` from a directory.

        Raises:
            ConfigError: It is missing or does not describe a model.
        """
        path = directory / CARD_FILE
        if not path.exists():
            raise ConfigError(
                f"{path} is missing; a model without a card is not used: export or train it again"
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ConfigError(f"{path} is no model card: {error}") from error


def state_spec(joints: tuple[str, ...]) -> TensorSpec:
    """The joint positions as every served policy takes them."""
    return TensorSpec(name=STATE, dtype="float32", shape=(len(joints),), unit="rad", names=joints)


def image_spec(camera: str, *, height_px: int, width_px: int) -> TensorSpec:
    """A camera image as every served policy takes it."""
    return TensorSpec(
        name=IMAGE_PREFIX + camera,
        dtype="uint8",
        shape=(height_px, width_px, 3),
        unit="level",
        names=("red", "green", "blue"),
    )


def channel_spec(name: str, *, unit: str, names: tuple[str, ...]) -> TensorSpec:
    """Further numbers that a served policy takes."""
    return TensorSpec(
        name=CHANNEL_PREFIX + name, dtype="float32", shape=(len(names),), unit=unit, names=names
    )


def action_spec(joints: tuple[str, ...], *, horizon: int) -> TensorSpec:
    """The action chunk as every served policy gives it: joint position targets."""
    return TensorSpec(name=ACTION, dtype="float32", shape=(horizon, len(joints)), unit="rad", names=joints)
