"""Admission: a model answers only what it was trained for."""

from __future__ import annotations

from sim2or.errors import MessageError, choices
from sim2or.messages.observation import Observation
from sim2or.model_card import ModelCard


def admit(observation: Observation, card: ModelCard) -> None:
    """Refuses an observation that the model was not trained for.

    Raises:
        MessageError: Names every key that does not fit, its value and what would be accepted.
    """
    problems = [
        *_names(observation, card),
        *_joints(observation, card),
        *_cameras(observation, card),
        *_channels(observation, card),
    ]
    if problems:
        raise MessageError("; ".join(problems))


def _names(observation: Observation, card: ModelCard) -> list[str]:
    facts = [
        ("robot", observation.robot, (card.robot,)),
        ("task", observation.task, (card.task,)),
        ("request", observation.request, card.requests),
    ]
    return [f"{key} {value!r}: {choices(value, valid)}" for key, value, valid in facts if value not in valid]


def _joints(observation: Observation, card: ModelCard) -> list[str]:
    found, expected = len(observation.state_rad), len(card.joints)
    return (
        []
        if found == expected
        else [f"state_rad has {found} joints: valid: {expected}, {', '.join(card.joints)}"]
    )


def _cameras(observation: Observation, card: ModelCard) -> list[str]:
    given, expected = observation.images, card.cameras
    unknown = [f"camera {name!r}: {choices(name, expected)}" for name in sorted(set(given) - set(expected))]
    missing = [f"camera {name!r} is missing" for name in sorted(set(expected) - set(given))]
    shapes = [
        f"camera {name!r} has shape {given[name].shape}: valid: {shape}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    return [*unknown, *missing, *shapes]


def _channels(observation: Observation, card: ModelCard) -> list[str]:
    given, expected = observation.channels, card.channels
    unknown = [f"channel {name!r}: {choices(name, expected)}" for name in sorted(set(given) - set(expected))]
    missing = [
        f"channel {name!r} is missing: {tensor.shape[0]} numbers [{tensor.unit}]: {', '.join(tensor.names)}"
        for name, tensor in expected.items()
        if name not in given
    ]
    units = [
        f"channel {name!r} is in {given[name].unit!r}: valid: {tensor.unit!r}"
        for name, tensor in expected.items()
        if name in given and given[name].unit != tensor.unit
    ]
    sizes = [
        f"channel {name!r} has {len(given[name].values)} numbers: valid: {tensor.shape[0]}, "
        f"{', '.join(tensor.names)}"
        for name, tensor in expected.items()
        if name in given and given[name].values.shape != tensor.shape
    ]
    return [*unknown, *missing, *units, *sizes]
