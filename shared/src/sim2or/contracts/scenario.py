"""Scenarios: everything random about an episode, as one serialisable value."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from sim2or.contracts.geometry import Vector
from sim2or.contracts.task import Bounds, Interval, Piece, Ranges, TaskProfile
from sim2or.errors import ConfigError, choices
from sim2or.messages.message import Spec

_GAINS = 17
"""The stream of the servo gains: drawn apart, they leave all other values of a seed as they were."""


class CameraOffset(Spec):
    """How a camera differs from its nominal pose.

    Attributes:
        shift_m: Along its right, up and backward axes [m].
        turn_rad: About its right, up and backward axes [rad].
    """

    shift_m: Vector = (0.0, 0.0, 0.0)
    turn_rad: Vector = (0.0, 0.0, 0.0)


class Visuals(Spec):
    """What only the cameras notice.

    Attributes:
        light_factor: Multiplies the brightness of all lights.
        table_hue_turns: Shift of the drape's hue, in turns of the colour circle.
        tray_hue_turns: Shift of the tray's hue, in turns of the colour circle.
        cameras: Camera name to its offset.
    """

    light_factor: float = 1.0
    table_hue_turns: float = 0.0
    tray_hue_turns: float = 0.0
    cameras: dict[str, CameraOffset] = Field(default_factory=dict)


class Scenario(Spec):
    """Everything random about an episode; the same scenario gives the same episode.

    Attributes:
        task: The task profile's name.
        seed: What it was drawn from.
        instrument: Which instrument lies on the tray.
        request: What the surgeon says; the episode's language instruction.
        x_m: Instrument's origin from the tray's centre along the base's x [m].
        y_m: The same along y [m].
        yaw_rad: Turn about the vertical; zero has the tip point along the base's -y [rad].
        mass_factor: Multiplies mass and inertia of the instrument.
        grip_friction_factor: Multiplies the friction of pads and instrument.
        table_friction_factor: Multiplies the friction of tray and table.
        start_rad: Each joint's offset from home, in joint order [rad].
        lag_s: Pure delay of the servo commands [s].
        gain_factor: Multiplies stiffness and damping of the servos.
        visuals: What only the cameras notice.
    """

    task: str
    seed: int
    instrument: str
    request: str
    x_m: float = 0.0
    y_m: float = 0.0
    yaw_rad: float = 0.0
    mass_factor: float = 1.0
    grip_friction_factor: float = 1.0
    table_friction_factor: float = 1.0
    start_rad: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    lag_s: float = 0.0
    gain_factor: float = 1.0
    visuals: Visuals = Visuals()


def sample_scenario(task: TaskProfile, seed: int, ranges: Ranges | None = None) -> Scenario:
    """Draws the scenario of a seed.

    Args:
        task: The task.
        seed: The seed; equal seeds and ranges give equal scenarios. The instrument is
            ``seed % n_instruments``.
        ranges: What to draw from; default ``task.ranges``.

    Returns:
        The scenario, within the task's physical bounds.

    Raises:
        ConfigError: The ranges leave the physical bounds.
    """
    chosen = ranges or task.ranges
    rng = np.random.default_rng([seed, 7])
    names = list(task.instruments)
    instrument = names[seed % len(names)]
    scenario = Scenario(
        task=task.name,
        seed=seed,
        instrument=instrument,
        request=task.instruments[instrument].request,
        x_m=_uniform(rng, chosen.x_m),
        y_m=_uniform(rng, chosen.y_m),
        yaw_rad=_mixture(rng, chosen.yaw_rad),
        mass_factor=_uniform(rng, chosen.mass_factor),
        grip_friction_factor=_uniform(rng, chosen.grip_friction_factor),
        table_friction_factor=_uniform(rng, chosen.table_friction_factor),
        start_rad=tuple(_uniform(rng, chosen.start_rad) for _ in range(6)),
        lag_s=_uniform(rng, chosen.lag_s),
        gain_factor=_uniform(np.random.default_rng([seed, _GAINS]), chosen.gain_factor),
        visuals=sample_visuals(task, rng, chosen),
    )
    check_scenario(task, scenario)
    return scenario


def sample_visuals(task: TaskProfile, rng: np.random.Generator, ranges: Ranges | None = None) -> Visuals:
    """Draws light, hues and camera offsets; demonstrations re-draw them for every frame."""
    chosen = ranges or task.ranges
    return Visuals(
        light_factor=_uniform(rng, chosen.light_factor),
        table_hue_turns=_uniform(rng, chosen.table_hue_turns),
        tray_hue_turns=_uniform(rng, chosen.tray_hue_turns),
        cameras={
            name: CameraOffset(
                shift_m=_vector(rng, chosen.camera_shift_m), turn_rad=_vector(rng, chosen.camera_turn_rad)
            )
            for name in task.cameras
        },
    )


def scenario_list(
    task: TaskProfile, name: str, count: int, offset: int = 0, ranges: Ranges | None = None
) -> list[Scenario]:
    """Scenarios of a named list, in the order of their seeds.

    Args:
        task: The task.
        name: The list: train, validation, deploy or heldout.
        count: How many.
        offset: How many to leave out at the beginning.
        ranges: What to draw from; default what the list declares (train: ``demo_ranges``).

    Raises:
        ConfigError: Unknown list, negative count or offset, or more than the list holds.
    """
    chosen = task.scenario_list(name)
    if count < 0 or offset < 0:
        raise ConfigError(f"scenario list {name!r}: count {count} and offset {offset} must not be negative")
    if offset + count > chosen.count:
        raise ConfigError(
            f"scenario list {name!r}: {count} from offset {offset} asked for; it holds {chosen.count} "
            f"(seeds {chosen.first_seed}…{chosen.end_seed - 1}), so that lists stay disjoint"
        )
    drawn = ranges or getattr(task, chosen.ranges)
    first = chosen.first_seed + offset
    return [sample_scenario(task, seed, drawn) for seed in range(first, first + count)]


def check_scenario(task: TaskProfile, scenario: Scenario) -> None:
    """Refuses what is physically impossible.

    Raises:
        ConfigError: Names the key, the value and the bounds or valid choices.
    """
    if scenario.task != task.name:
        raise ConfigError(f"scenario {scenario.seed}: task {scenario.task!r} given to task {task.name!r}")
    if scenario.instrument not in task.instruments:
        raise ConfigError(
            f"scenario {scenario.seed}: instrument {scenario.instrument!r}; "
            f"{choices(scenario.instrument, task.instruments)}"
        )
    if len(scenario.start_rad) != 6:
        raise ConfigError(
            f"scenario {scenario.seed}: start_rad has {len(scenario.start_rad)} values, needs 6"
        )
    for camera in scenario.visuals.cameras:
        if camera not in task.cameras:
            raise ConfigError(
                f"scenario {scenario.seed}: visuals.cameras.{camera}; {choices(camera, task.cameras)}"
            )
    for key, bound, value in _bounded(scenario):
        low, high = getattr(task.bounds, bound)
        if not low <= value <= high:
            raise ConfigError(
                f"scenario {scenario.seed}: {key} = {value:g} is impossible; bounds {low:g}…{high:g}"
            )


def _bounded(scenario: Scenario) -> list[tuple[str, str, float]]:
    """Every number of a scenario as (key, key of its bounds, value)."""
    visual = ("light_factor", "table_hue_turns", "tray_hue_turns")
    numbers = [
        (key, key, getattr(scenario, key))
        for key in Bounds.model_fields
        if key in Scenario.model_fields and key != "start_rad"
    ]
    numbers += [(f"start_rad[{i}]", "start_rad", value) for i, value in enumerate(scenario.start_rad)]
    numbers += [(f"visuals.{key}", key, getattr(scenario.visuals, key)) for key in visual]
    for name, offset in scenario.visuals.cameras.items():
        numbers += [(f"visuals.cameras.{name}.shift_m", "camera_shift_m", value) for value in offset.shift_m]
        numbers += [
            (f"visuals.cameras.{name}.turn_rad", "camera_turn_rad", value) for value in offset.turn_rad
        ]
    return numbers


def _uniform(rng: np.random.Generator, interval: Interval) -> float:
    return float(rng.uniform(*interval))


def _vector(rng: np.random.Generator, interval: Interval) -> Vector:
    return (_uniform(rng, interval), _uniform(rng, interval), _uniform(rng, interval))


def _mixture(rng: np.random.Generator, pieces: tuple[Piece, ...]) -> float:
    weights = np.array([piece.weight for piece in pieces])
    chosen = pieces[int(np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(), side="right"))]
    return _uniform(rng, chosen.between)
