"""The rule of the hand-over in every engine: what the surgeon's hand does and what counts as success."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.task import Failure, TaskProfile

Vector3 = NDArray[np.float64]

_FALLEN_M = 0.02  # an instrument that was lifted and is again this close to its rest has been dropped
_OFF_TABLE_M = -0.05  # below the table's top by this much it lies on the floor


@dataclass(frozen=True)
class Reading:
    """What the rule looks at, once each control period.

    Attributes:
        time_s: Since reset [s].
        instrument_m: Shape (3,), the instrument's origin in the base frame [m].
        tip_axis: Shape (3,), unit vector toward its tip, in the base frame.
        handle_m: Shape (3,), the middle of its handle in the base frame [m].
        speed_mps: Its linear speed [m/s].
        fixed_pad: Whether the fixed jaw's pad touches it.
        moving_pad: Whether the moving jaw's pad touches it.
        grasp_m: Shape (3,), the point between the pads in the base frame [m].
        gripper_rad: The gripper joint's position [rad].
    """

    time_s: float
    instrument_m: Vector3
    tip_axis: Vector3
    handle_m: Vector3
    speed_mps: float
    fixed_pad: bool
    moving_pad: bool
    grasp_m: Vector3
    gripper_rad: float


class HandState(Enum):
    """What the surgeon's hand is doing."""

    RESTING = auto()
    COMING = auto()
    HOLDING = auto()


class Handover:
    """One episode of the hand-over: feed it a ``Reading`` each control period.

    Attributes:
        palm_m: Shape (3,), where the palm is, in the base frame [m].
        state: What the hand is doing.
        success: Whether the hand-over succeeded.
        failure: Why it failed.
        facts: Figures of the episode so far.
    """

    def __init__(self, task: TaskProfile, rest_height_m: float, released_rad: float) -> None:
        """Starts an episode.

        Args:
            task: The task.
            rest_height_m: Height of the instrument's origin when it lies on the tray, in the base frame [m].
            released_rad: The gripper counts as open beyond this joint position [rad].
        """
        self._task = task
        self._rest_m = rest_height_m
        self._released_rad = released_rad
        self._still_steps = round(task.success.still_s * task.control_hz)
        self._zone_m = np.array(task.zone.center_m)
        self._from = np.array(task.hand.from_direction) / np.linalg.norm(task.hand.from_direction)
        self._come = 0.0
        self._still = 0
        self._grasped = self._lifted = self._presented = self._released = False
        self._taken_at_m: Vector3 | None = None
        self.palm_m: Vector3 = np.array(task.hand.rest_m, dtype=float)
        self.state = HandState.RESTING
        self.success = False
        self.failure = Failure.NONE
        self.facts: dict[str, float] = {"dropped": 0.0, "lift_max_m": 0.0}

    @property
    def taken(self) -> bool:
        """Whether the hand holds the instrument."""
        return self.state is HandState.HOLDING

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return self.success or self.failure is not Failure.NONE

    def update(self, reading: Reading) -> None:
        """Moves the hand and judges one control period."""
        if self.done:
            return
        self._measure(reading)
        if self.taken:
            self._watch_release(reading)
        else:
            self._watch_presentation(reading)
        if not self.done and reading.time_s >= self._task.limit_s - 0.5 / self._task.control_hz:
            self.failure = self._timeout_cause()

    def abort(self) -> None:
        """The physics became unstable: the episode failed."""
        if not self.done:
            self.failure = Failure.UNSTABLE

    def _measure(self, reading: Reading) -> None:
        lift_m = float(reading.instrument_m[2]) - self._rest_m
        distance_m = float(np.linalg.norm(reading.instrument_m - self._zone_m))
        grasped = reading.fixed_pad and reading.moving_pad
        self._grasped |= grasped
        self._lifted |= grasped and lift_m >= self._task.success.lift_m
        self.facts["time_s"] = reading.time_s
        self.facts["lift_max_m"] = max(self.facts["lift_max_m"], lift_m)
        self.facts["zone_distance_min_m"] = min(self.facts.get("zone_distance_min_m", np.inf), distance_m)

    def _watch_presentation(self, reading: Reading) -> None:
        if self._dropped(reading):
            self._drop()
            return
        distance_m = float(np.linalg.norm(reading.instrument_m - self._zone_m))
        presented = (
            self._lifted
            and reading.fixed_pad
            and reading.moving_pad
            and distance_m <= self._task.zone.radius_m
            and reading.speed_mps < self._task.success.still_mps
        )
        self._still = self._still + 1 if presented else 0
        if presented:
            fastest = max(self.facts.get("presented_speed_max_mps", 0.0), reading.speed_mps)
            self.facts["presented_speed_max_mps"] = fastest
        if self._still >= self._still_steps:
            self._presented = True
        self._move_hand(reading)
        if self._come >= 1.0 and self._still >= self._still_steps:
            self._take(reading, distance_m)

    def _dropped(self, reading: Reading) -> bool:
        height_m = float(reading.instrument_m[2])
        free = not (reading.fixed_pad or reading.moving_pad)
        return height_m < _OFF_TABLE_M or (self._lifted and free and height_m < self._rest_m + _FALLEN_M)

    def _drop(self) -> None:
        self.failure = Failure.DROPPED
        self.facts["dropped"] = 1.0

    def _move_hand(self, reading: Reading) -> None:
        """The hand comes while the instrument is held still, and withdraws when it is not."""
        step = self._task.period_s / self._task.hand.approach_s
        coming = self._still >= self._still_steps
        self._come = float(np.clip(self._come + (step if coming else -step), 0.0, 1.0))
        self.state = HandState.COMING if self._come > 0 else HandState.RESTING
        rest_m = np.array(self._task.hand.rest_m)
        goal_m = reading.handle_m + self._task.hand.grip_offset_m * self._from
        share = self._come * self._come * (3 - 2 * self._come)
        self.palm_m = rest_m + share * (goal_m - rest_m)

    def _take(self, reading: Reading, distance_m: float) -> None:
        self.state = HandState.HOLDING
        self._taken_at_m = reading.instrument_m.copy()
        cosine = float(np.clip(np.dot(-reading.tip_axis, self._from), -1.0, 1.0))
        self.facts.update(
            taken_s=reading.time_s, handle_angle_rad=float(np.arccos(cosine)), taken_distance_m=distance_m
        )

    def _watch_release(self, reading: Reading) -> None:
        assert self._taken_at_m is not None
        if float(np.linalg.norm(reading.instrument_m - self._taken_at_m)) > self._task.success.keep_m:
            self._drop()
            return
        touching = reading.fixed_pad or reading.moving_pad
        if not touching and reading.gripper_rad >= self._released_rad:
            self._released = True
            self.facts.setdefault("released_s", reading.time_s)
        retreat_m = float(np.linalg.norm(reading.grasp_m - reading.instrument_m))
        self.facts["retreat_m"] = retreat_m
        if self._released and not touching and retreat_m > self._task.success.retreat_m:
            self.success = True

    def _timeout_cause(self) -> Failure:
        if self.taken:
            return Failure.NOT_RETREATED if self._released else Failure.NOT_RELEASED
        if self._presented:
            return Failure.NOT_TAKEN
        if self._lifted:
            return Failure.NOT_PRESENTED
        return Failure.NOT_LIFTED if self._grasped else Failure.NOT_GRASPED
