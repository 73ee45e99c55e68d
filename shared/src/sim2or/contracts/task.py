"""Task profiles: the scene, its ranges, the rule of success and the scenario lists."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sim2or.contracts.geometry import Friction, Part, Positive, Vector
from sim2or.contracts.profile import Profile, load_profile
from sim2or.errors import ConfigError, choices
from sim2or.messages.message import Spec


class Failure(StrEnum):
    """Why a hand-over failed; "" while it runs or when it succeeded."""

    NONE = ""
    NOT_GRASPED = "not_grasped"
    NOT_LIFTED = "not_lifted"
    DROPPED = "dropped"
    NOT_PRESENTED = "not_presented"
    NOT_TAKEN = "not_taken"
    NOT_RELEASED = "not_released"
    NOT_RETREATED = "not_retreated"
    UNSTABLE = "unstable"


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"low {interval[0]} is above high {interval[1]}")
    return interval


Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]


class Piece(Spec):
    """One part of a mixture of uniform ranges.

    Attributes:
        weight: How often it is drawn from, relative to the others.
        between: Low and high end.
    """

    weight: Positive
    between: Interval


class Ranges(Spec):
    """What varies between episodes, each uniformly and independently.

    Attributes:
        x_m: Instrument from the tray's centre along the base's x [m].
        y_m: The same along y [m].
        yaw_rad: Turn of the instrument about the vertical, a mixture [rad].
        mass_factor: Multiplies mass and inertia of the instrument.
        grip_friction_factor: Multiplies the friction of pads and instrument.
        table_friction_factor: Multiplies the friction of tray and table.
        start_rad: Each joint's offset from home [rad].
        lag_s: Pure delay of the servo commands [s].
        gain_factor: Multiplies stiffness and damping of the servos.
        light_factor: Multiplies the brightness of all lights.
        table_hue_turns: Shift of the drape's hue, in turns of the colour circle.
        tray_hue_turns: Shift of the tray's hue, in turns of the colour circle.
        camera_shift_m: Offset of each camera along each of its axes [m].
        camera_turn_rad: Turn of each camera about each of its axes [rad].
    """

    x_m: Interval
    y_m: Interval
    yaw_rad: tuple[Piece, ...] = Field(min_length=1)
    mass_factor: Interval
    grip_friction_factor: Interval
    table_friction_factor: Interval
    start_rad: Interval
    lag_s: Interval
    light_factor: Interval
    table_hue_turns: Interval
    tray_hue_turns: Interval
    camera_shift_m: Interval
    camera_turn_rad: Interval
    gain_factor: Interval = (1.0, 1.0)


class Bounds(Spec):
    """Physical bounds: a scenario outside them is refused. Fields as in ``Ranges``."""

    x_m: Interval
    y_m: Interval
    yaw_rad: Interval
    mass_factor: Interval
    grip_friction_factor: Interval
    table_friction_factor: Interval
    start_rad: Interval
    lag_s: Interval
    light_factor: Interval
    table_hue_turns: Interval
    tray_hue_turns: Interval
    camera_shift_m: Interval
    camera_turn_rad: Interval
    gain_factor: Interval = (1.0, 1.0)


class Camera(Spec):
    """A pinhole camera.

    Attributes:
        body: The robot's body it is fixed to; "base" for one that stands still.
        at_m: Optical centre in that body [m].
        x_axis: The image's right, in that body.
        y_axis: The image's up, in that body.
        fovy_rad: Vertical field of view [rad].
    """

    body: str
    at_m: Vector
    x_axis: Vector
    y_axis: Vector
    fovy_rad: Positive


class Images(Spec):
    """Size of the images that a policy sees.

    Attributes:
        height_px: Rows.
        width_px: Columns.
    """

    height_px: int = Field(gt=0, le=2048)
    width_px: int = Field(gt=0, le=2048)


class Tray(Spec):
    """The instrument tray: a steel plate with a rim; its top is where instruments lie.

    Attributes:
        center_m: Centre of the plate's top, in the base frame [m].
        half_m: Half sizes of the plate along x and y [m].
        rim_height_m: Height of the rim above the plate [m].
        rim_half_m: Half thickness of the rim [m].
        friction: Of tray and table.
        color: Red, green, blue in 0–1.
    """

    center_m: Vector
    half_m: tuple[Positive, Positive]
    rim_height_m: Positive
    rim_half_m: Positive
    friction: Friction
    color: Vector


class Table(Spec):
    """The operating table the arm stands on; its top is z = 0.

    Attributes:
        center_m: Centre of its top, in the base frame [m].
        half_m: Half sizes along x and y [m].
        color: Of the drape, red, green, blue in 0–1.
    """

    center_m: Vector
    half_m: tuple[Positive, Positive]
    color: Vector


class Zone(Spec):
    """Where the instrument is presented.

    Attributes:
        center_m: In the base frame [m].
        radius_m: How far the grasp point may be from the centre [m].
    """

    center_m: Vector
    radius_m: Positive


class Hand(Spec):
    """The surgeon's gloved hand.

    Attributes:
        rest_m: Where the palm waits, in the base frame [m].
        from_direction: Unit vector from the zone to where the hand comes from.
        grip_offset_m: Palm from the instrument's handle when it takes it, along ``from_direction`` [m].
        approach_s: How long it takes to come [s].
    """

    rest_m: Vector
    from_direction: Vector
    grip_offset_m: float
    approach_s: Positive


class Instrument(Spec):
    """A surgical instrument. Its frame: origin at the grasp point, x toward the tip, z up when it lies.

    Attributes:
        request: What the surgeon says.
        mass_kg: Mass [kg].
        friction: Of its surface.
        handle_m: The middle of the handle, where the surgeon takes it, in its frame [m].
        rest_height_m: Height of its origin above the tray when it lies [m].
        parts: Its shape.
    """

    request: str
    mass_kg: Positive
    friction: Friction
    handle_m: Vector
    rest_height_m: Positive
    parts: tuple[Part, ...] = Field(min_length=1)


class Success(Spec):
    """When a hand-over counts.

    Attributes:
        lift_m: The instrument must have been lifted so far above its rest [m].
        still_mps: While presented, its speed stays below [m/s].
        still_s: For so long [s].
        retreat_m: Afterwards the jaws retreat so far from the instrument [m].
        keep_m: It stays so close to where the hand took it [m].
    """

    lift_m: Positive
    still_mps: Positive
    still_s: Positive
    retreat_m: Positive
    keep_m: Positive


class Executor(Spec):
    """How action chunks are executed.

    Attributes:
        horizon: Actions in a chunk.
        execute: Actions executed before the next chunk is asked for.
        max_age_s: Nothing caused by an older observation moves the robot [s].
    """

    horizon: int = Field(gt=0)
    execute: int = Field(gt=0)
    max_age_s: Positive

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.execute > self.horizon:
            raise ValueError(f"execute {self.execute} must not exceed horizon {self.horizon}")
        return self


class Safety(Spec):
    """Where the arm may be, beside the robot's own limits.

    Attributes:
        tool_low_m: Lower corner of the box for the grasp point, in the base frame [m].
        tool_high_m: Upper corner [m].
        floor_m: The grasp point's lowest height, in the base frame [m].
        watchdog_s: The robot holds when no command came for so long [s].
    """

    tool_low_m: Vector
    tool_high_m: Vector
    floor_m: float
    watchdog_s: Positive


class ScenarioList(Spec):
    """A list of scenarios by seed.

    Attributes:
        first_seed: The first seed.
        count: How many it holds.
        ranges: Which ranges they are drawn from.
        purpose: What it is for.
    """

    first_seed: int = Field(ge=0)
    count: int = Field(gt=0)
    ranges: Literal["ranges", "demo_ranges"] = "ranges"
    purpose: str

    @property
    def end_seed(self) -> int:
        """One past the last seed."""
        return self.first_seed + self.count


class TaskProfile(Profile):
    """A task.

    Attributes:
        title: Its name for people.
        robot: The robot it is written for.
        control_hz: Commands and observations per second [Hz].
        physics_hz: Physics steps per second [Hz].
        limit_s: An episode ends after [s].
        linger_steps: A demonstration goes on after success for so many control steps, so that the retreat
            is learnt.
        images: Size of what a policy sees.
        cameras: What the robot and the policy see with, by name.
        views: Cameras for people only, by name.
        table: The operating table.
        tray: The instrument tray.
        zone: Where the instrument is presented.
        hand: The surgeon's hand.
        instruments: By name; an episode's kind is ``seed % len(instruments)`` in this order.
        ranges: What varies.
        demo_ranges: What varies in demonstrations.
        bounds: What is physically possible.
        success: The rule.
        lists: Scenario lists, disjoint.
        executor: How chunks are executed.
        safety: Where the arm may be.
    """

    kind: Literal["task"]
    title: str
    robot: str
    control_hz: Positive
    physics_hz: Positive
    limit_s: Positive
    linger_steps: int = Field(ge=0)
    images: Images
    cameras: dict[str, Camera]
    views: dict[str, Camera]
    table: Table
    tray: Tray
    zone: Zone
    hand: Hand
    instruments: dict[str, Instrument]
    ranges: Ranges
    demo_ranges: Ranges
    bounds: Bounds
    success: Success
    lists: dict[str, ScenarioList]
    executor: Executor
    safety: Safety

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if abs(self.physics_hz / self.control_hz - self.substeps) > 1e-9 or self.substeps < 1:
            raise ValueError(
                f"physics_hz {self.physics_hz} must be a whole multiple of control_hz {self.control_hz}"
            )
        for name in ("ranges", "demo_ranges"):
            _inside(name, getattr(self, name), self.bounds)
        ordered = sorted(self.lists.items(), key=lambda item: item[1].first_seed)
        for (name, one), (other, two) in pairwise(ordered):
            if one.end_seed > two.first_seed:
                raise ValueError(
                    f"lists {name!r} ({one.first_seed}…{one.end_seed - 1}) and {other!r} "
                    f"(from {two.first_seed}) share scenarios; they must be disjoint"
                )
        return self

    @property
    def substeps(self) -> int:
        """Physics steps in a control period."""
        return round(self.physics_hz / self.control_hz)

    @property
    def limit_steps(self) -> int:
        """Control steps in an episode."""
        return round(self.limit_s * self.control_hz)

    @property
    def period_s(self) -> float:
        """Control period [s]."""
        return 1.0 / self.control_hz

    @property
    def requests(self) -> dict[str, str]:
        """What the surgeon says, by instrument."""
        return {name: instrument.request for name, instrument in self.instruments.items()}

    def scenario_list(self, name: str) -> ScenarioList:
        """The list of that name.

        Raises:
            ConfigError: Unknown name.
        """
        if name not in self.lists:
            raise ConfigError(
                f"task {self.name}: unknown scenario list {name!r}; {choices(name, self.lists)}"
            )
        return self.lists[name]


def _inside(name: str, ranges: Ranges, bounds: Bounds) -> None:
    for key in Ranges.model_fields:
        low, high = getattr(bounds, key)
        value = getattr(ranges, key)
        for piece in value if key == "yaw_rad" else (value,):
            lowest, highest = piece.between if isinstance(piece, Piece) else piece
            if lowest < low or highest > high:
                raise ValueError(f"{name}.{key} {lowest}…{highest} leaves the physical bounds {low}…{high}")


@lru_cache(maxsize=8)
def load_task(name: str | Path) -> TaskProfile:
    """Loads a task profile by name ("handover") or by the path of a YAML file.

    Raises:
        ConfigError: Unknown name, missing file, or a wrong key or value.
    """
    return load_profile(TaskProfile, "task", name)
