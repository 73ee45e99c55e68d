"""The rule of the hand-over in every engine: what the surgeon's hand does and what counts as success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from math import isnan

import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.task import Failure, TaskProfile

Floats = NDArray[np.float64]
Rows = NDArray[np.bool_]
"""Which rows of a batch, shape (batch,)."""

RELEASED_RAD = 0.05  # the jaws count as open beyond this
_FALLEN_M = 0.02  # an instrument that was lifted and is again this close to its rest has been dropped
_OFF_TABLE_M = -0.05  # below the table's top by this much it lies on the floor
_FAILURES = list(Failure)
_any = np.count_nonzero  # of few rows it costs a tenth of any()
_FACTS = (
    "dropped",
    "lift_max_m",
    "time_s",
    "zone_distance_min_m",
    "grasped_s",
    "lifted_s",
    "presented_speed_max_mps",
    "taken_s",
    "handle_angle_rad",
    "taken_distance_m",
    "released_s",
    "retreat_m",
)


@dataclass(frozen=True)
class Reading:
    """What the rule looks at, once each control period, a row for each world.

    Attributes:
        time_s: Shape (batch,), since reset [s].
        instrument_m: Shape (batch, 3), the instrument's origin in the base frame [m].
        tip_axis: Shape (batch, 3), unit vector toward its tip, in the base frame.
        handle_m: Shape (batch, 3), the middle of its handle in the base frame [m].
        speed_mps: Shape (batch,), its linear speed [m/s].
        fixed_pad: Shape (batch,), whether the fixed jaw's pad touches it.
        moving_pad: Shape (batch,), whether the moving jaw's pad touches it.
        grasp_m: Shape (batch, 3), the point between the pads in the base frame [m].
        gripper_rad: Shape (batch,), the gripper joint's position [rad].
    """

    time_s: NDArray[np.floating]
    instrument_m: Floats
    tip_axis: Floats
    handle_m: Floats
    speed_mps: Floats
    fixed_pad: Rows
    moving_pad: Rows
    grasp_m: Floats
    gripper_rad: Floats


class HandState(Enum):
    """What the surgeon's hand is doing."""

    RESTING = auto()
    COMING = auto()
    HOLDING = auto()


class Handovers:
    """A batch of hand-overs, each with its own beginning and end: feed it a ``Reading`` each control period.

    Args:
        task: The task.
        batch: How many.
        released_rad: The gripper counts as open beyond this joint position [rad].

    Attributes:
        palm_m: Shape (batch, 3), where the palms are, in the base frame [m].
        taken: Shape (batch,), whether the hand holds the instrument.
        success: Shape (batch,), whether the hand-over succeeded.
        moved: Shape (batch,), whether the last update moved the palm.
        took: Shape (batch,), whether in the last update the hand took the instrument.
    """

    def __init__(self, task: TaskProfile, batch: int, released_rad: float = RELEASED_RAD) -> None:
        self._task, self._released_rad = task, released_rad
        self._still_steps = round(task.success.still_s * task.control_hz)
        self._late_s = task.limit_s - 0.5 / task.control_hz
        self._come_step = task.period_s / task.hand.approach_s
        self._zone_m, self._waits_m = np.array(task.zone.center_m), np.array(task.hand.rest_m)
        self._from = np.array(task.hand.from_direction) / np.linalg.norm(task.hand.from_direction)
        self._rest_m, self._come, self._still = np.zeros(batch), np.zeros(batch), np.zeros(batch, dtype=int)
        self._grasped, self._lifted, self._presented, self._released = np.zeros((4, batch), dtype=bool)
        self._taken_at_m, self.palm_m = np.zeros((batch, 3)), np.tile(self._waits_m, (batch, 1))
        self.taken, self.success, self._none = np.zeros((3, batch), dtype=bool)
        self.moved = self.took = self._none
        self._failure = np.zeros(batch, dtype=int)
        self._figures = np.full((len(_FACTS), batch), np.nan)
        self._fact = dict(zip(_FACTS, self._figures, strict=True))

    def begin(self, ids: Sequence[int] | NDArray[np.int_], rest_height_m: Floats) -> None:
        """Starts episodes anew; nothing of those before is left.

        Args:
            ids: Which hand-overs.
            rest_height_m: Shape (len(ids),), height of each instrument's origin when it lies on the tray, in
                the base frame [m].
        """
        self._rest_m[ids], self._come[ids], self._still[ids], self._failure[ids] = rest_height_m, 0.0, 0, 0
        for flags in (self._grasped, self._lifted, self._presented, self._released, self.taken, self.success):
            flags[ids] = False
        self.palm_m[ids] = self._waits_m
        self._figures[:, ids] = np.nan
        self._fact["dropped"][ids] = self._fact["lift_max_m"][ids] = 0.0

    @property
    def failed(self) -> Rows:
        """Shape (batch,), whether the hand-over failed."""
        return self._failure > 0

    @property
    def done(self) -> Rows:
        """Shape (batch,), whether the episode has ended."""
        return self.success | (self._failure > 0)

    def failure(self, index: int) -> Failure:
        """Why one of them failed."""
        failure: Failure = _FAILURES[self._failure[index]]
        return failure

    def facts(self, index: int) -> dict[str, float]:
        """Figures of one episode so far; what has not happened is left out."""
        return {
            name: value
            for name, value in zip(_FACTS, self._figures[:, index].tolist(), strict=True)
            if not isnan(value)
        }

    def state(self, index: int) -> HandState:
        """What the surgeon's hand is doing in one of them."""
        if self.taken[index]:
            return HandState.HOLDING
        return HandState.COMING if self._come[index] > 0 else HandState.RESTING

    def update(self, reading: Reading, among: Rows | None = None) -> None:
        """Moves the hands and judges one control period.

        Args:
            reading: One row for each hand-over.
            among: Which of them go on (default: all); those that have ended stay as they are.
        """
        self.moved = self.took = self._none
        live = ~self.done if among is None else among & ~self.done
        both = live & reading.fixed_pad & reading.moving_pad
        distance_m = _length(reading.instrument_m - self._zone_m)
        self._measure(reading, live, both, distance_m)
        held = live & self.taken
        waiting = live ^ held
        if _any(held):
            self._watch_release(reading, held)
        if _any(waiting):
            self._watch_presentation(reading, waiting, both, distance_m)
        late = live & (reading.time_s >= self._late_s)
        if _any(late):
            self._time_out(late & ~self.done)

    def abort(self, rows: Rows) -> None:
        """The physics became unstable: these failed, unless they had ended."""
        self._failure[rows & ~self.done] = _FAILURES.index(Failure.UNSTABLE)

    def _measure(self, reading: Reading, live: Rows, both: Rows, distance_m: Floats) -> None:
        fact, lift_m = self._fact, reading.instrument_m[:, 2] - self._rest_m
        np.copyto(fact["time_s"], reading.time_s, where=live)
        np.fmax(fact["lift_max_m"], lift_m, out=fact["lift_max_m"], where=live)
        nearest_m = fact["zone_distance_min_m"]
        np.fmin(nearest_m, distance_m, out=nearest_m, where=live)
        lifting = both > self._lifted
        if _any(lifting):
            self._note("grasped_s", lifting, reading)
            self._grasped |= lifting
            lifted = lifting & (lift_m >= self._task.success.lift_m)
            self._note("lifted_s", lifted, reading)
            self._lifted |= lifted

    def _note(self, name: str, rows: Rows, reading: Reading) -> None:
        """When something happened for the first time."""
        first_s = self._fact[name]
        np.copyto(first_s, reading.time_s, where=rows & np.isnan(first_s))

    def _watch_presentation(self, reading: Reading, waiting: Rows, both: Rows, distance_m: Floats) -> None:
        dropped = waiting & self._dropped(reading)
        if _any(dropped):
            self._drop(dropped)
            waiting = waiting ^ dropped
        lifted = waiting & self._lifted
        if not _any(lifted):  # nothing can be presented, so every hand rests
            return
        presented = lifted & both & (distance_m <= self._task.zone.radius_m)
        presented &= reading.speed_mps < self._task.success.still_mps
        np.copyto(self._still, (self._still + 1) * presented, where=waiting)
        fastest_mps = self._fact["presented_speed_max_mps"]
        np.fmax(fastest_mps, reading.speed_mps, out=fastest_mps, where=presented)
        coming = waiting & (self._still >= self._still_steps)
        self._presented |= coming
        self.moved = coming | (waiting & (self._come > 0))
        if _any(self.moved):
            self._move_hands(reading, self.moved, coming)
            self.took = coming & (self._come >= 1.0)
            self._take(reading, self.took, distance_m)

    def _dropped(self, reading: Reading) -> Rows:
        height_m = reading.instrument_m[:, 2]
        dropped: Rows = height_m < _OFF_TABLE_M
        if _any(self._lifted):
            fallen = self._lifted & (height_m < self._rest_m + _FALLEN_M)
            free = np.logical_not(reading.fixed_pad | reading.moving_pad)
            dropped |= fallen & free
        return dropped

    def _drop(self, rows: Rows) -> None:
        self._failure[rows] = _FAILURES.index(Failure.DROPPED)
        self._fact["dropped"][rows] = 1.0

    def _move_hands(self, reading: Reading, moving: Rows, coming: Rows) -> None:
        """A hand comes while the instrument is held still, and withdraws when it is not."""
        step = np.where(coming[moving], self._come_step, -self._come_step)
        come = self._come[moving] = np.clip(self._come[moving] + step, 0.0, 1.0)
        goal_m = reading.handle_m[moving] + self._task.hand.grip_offset_m * self._from
        share = (come * come * (3 - 2 * come))[:, None]
        self.palm_m[moving] = self._waits_m + share * (goal_m - self._waits_m)

    def _take(self, reading: Reading, taking: Rows, distance_m: Floats) -> None:
        self.taken |= taking
        self._taken_at_m[taking] = reading.instrument_m[taking]
        cosine = np.clip((-reading.tip_axis[taking] * self._from).sum(axis=1), -1.0, 1.0)
        self._note("taken_s", taking, reading)
        self._fact["handle_angle_rad"][taking] = np.arccos(cosine)
        self._fact["taken_distance_m"][taking] = distance_m[taking]

    def _watch_release(self, reading: Reading, held: Rows) -> None:
        torn = held & (_length(reading.instrument_m - self._taken_at_m) > self._task.success.keep_m)
        self._drop(torn)
        free = held & ~(torn | reading.fixed_pad | reading.moving_pad)
        released = free & (reading.gripper_rad >= self._released_rad)
        self._released |= released
        self._note("released_s", released, reading)
        retreat_m = _length(reading.grasp_m - reading.instrument_m)
        np.copyto(self._fact["retreat_m"], retreat_m, where=held & ~torn)
        self.success |= free & self._released & (retreat_m > self._task.success.retreat_m)

    def _time_out(self, rows: Rows) -> None:
        for index in np.flatnonzero(rows):
            self._failure[index] = _FAILURES.index(self._timeout_cause(index))

    def _timeout_cause(self, index: int | np.intp) -> Failure:
        if self.taken[index]:
            return Failure.NOT_RETREATED if self._released[index] else Failure.NOT_RELEASED
        if self._presented[index]:
            return Failure.NOT_TAKEN
        if self._lifted[index]:
            return Failure.NOT_PRESENTED
        return Failure.NOT_LIFTED if self._grasped[index] else Failure.NOT_GRASPED


def _length(vectors: Floats) -> Floats:
    """Shape (batch,), of vectors (batch, 3)."""
    lengths: Floats = np.sqrt(np.vecdot(vectors, vectors))
    return lengths
