"""How far the motions of one scenario in two engines are apart, tick by tick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.kinematics import Kinematics
from sim2or.errors import JobError
from sim2or.messages.gap import Error
from sim2or.rollout.motion import Motion, motion_path, read

from sim2or_evaluator.gap_pairs import Pair

Floats = NDArray[np.float64]

CLOCK_S = 1e-6
"""Times closer than this are the same one [s]."""

SAME_COMMAND_RAD = 1e-5
"""Commands further apart than this are not the same ones [rad]."""


@dataclass(frozen=True)
class Apart:
    """The distance of two motions at each tick that both have; other minus reference where it has a sign.

    Attributes:
        pair: The trials.
        time_s: Shape (T,), since reset [s].
        joints_rad: Shape (T, n_joints), signed [rad].
        tool_m: Shape (T,), between the grasp points [m].
        instrument_m: Shape (T,), between the instruments' origins [m].
        instrument_rad: Shape (T,), between the instruments' tip axes [rad].
        free: Shape (T,), whether the pads held the instrument in neither engine yet.
    """

    pair: Pair
    time_s: Floats
    joints_rad: Floats
    tool_m: Floats
    instrument_m: Floats
    instrument_rad: Floats
    free: NDArray[np.bool_]

    @property
    def ticks(self) -> int:
        """How many ticks both have."""
        return len(self.time_s)


def apart(pair: Pair, kinematics: Kinematics) -> Apart:
    """Compares the motions of two replays of the same commands.

    Raises:
        JobError: A motion is missing, their clocks differ, or they were told different things.
    """
    seed = pair.reference.trial.seed
    one = read(motion_path(pair.reference.directory, seed))
    two = read(motion_path(pair.other.directory, seed))
    ticks = min(len(one), len(two))
    one, two = one[:ticks], two[:ticks]
    _refuse_other_clock(pair, one, two)
    _refuse_other_commands(pair, one, two)
    time_s = one["time_ns"] / 1e9
    joints = [motion["measured_rad"].astype(np.float64) for motion in (one, two)]
    tool = [kinematics.grasp_position(positions) for positions in joints]
    instrument = [motion["instrument"].astype(np.float64) for motion in (one, two)]
    grasped_s = [recorded.trial.metrics.get("grasped_s", np.inf) for recorded in (pair.reference, pair.other)]
    return Apart(
        pair=pair,
        time_s=time_s,
        joints_rad=joints[1] - joints[0],
        tool_m=np.linalg.norm(tool[1] - tool[0], axis=1),
        instrument_m=np.linalg.norm(instrument[1][:, :3] - instrument[0][:, :3], axis=1),
        instrument_rad=angles_between(instrument[0][:, 3:6], instrument[1][:, 3:6]),
        free=time_s < min(grasped_s) - CLOCK_S,
    )


def angles_between(one: Floats, two: Floats) -> Floats:
    """Angles between vectors, shapes (T, 3) to (T,) [rad]; exact near zero, where the cosine is not."""
    crossed = np.linalg.norm(np.cross(one, two), axis=1)
    angles: Floats = np.arctan2(crossed, np.sum(one * two, axis=1))
    return angles


def error(values: Floats) -> Error:
    """Summarises signed or absolute errors of any shape; nothing to summarise is no error."""
    if values.size == 0:
        return Error(rms=0.0, p50=0.0, p95=0.0, worst=0.0)
    size = np.abs(values)
    p50, p95 = np.percentile(size, [50, 95])
    return Error(
        rms=float(np.sqrt(np.mean(size**2))), p50=float(p50), p95=float(p95), worst=float(size.max())
    )


def diverged_s(time_s: Floats, distance_m: Floats, limit_m: float) -> float | None:
    """When two motions were first further apart than a limit [s]; None if they never were."""
    beyond = np.flatnonzero(distance_m > limit_m)
    return float(time_s[beyond[0]]) if len(beyond) else None


def by_tick(columns: Sequence[Floats]) -> Floats:
    """Stacks scenarios of different length, shape (n_scenarios, longest, …); NaN past the end of each."""
    longest = max(len(column) for column in columns)
    table = np.full((len(columns), longest, *columns[0].shape[1:]), np.nan)
    for row, column in zip(table, columns, strict=True):
        row[: len(column)] = column
    return table


def _refuse_other_clock(pair: Pair, one: Motion, two: Motion) -> None:
    late = np.flatnonzero(one["time_ns"] != two["time_ns"])
    if len(late):
        tick = int(late[0])
        raise JobError(
            f"{pair.other.place}: seed={pair.other.trial.seed}: tick {tick} is at "
            f"{two['time_ns'][tick]} ns, in the reference at {one['time_ns'][tick]} ns: "
            "the engines ran at different control rates; roll out both with the same task profile"
        )


def _refuse_other_commands(pair: Pair, one: Motion, two: Motion) -> None:
    off_rad = np.abs(one["commanded_rad"].astype(np.float64) - two["commanded_rad"]).max(axis=1)
    other = np.flatnonzero(~(off_rad <= SAME_COMMAND_RAD))
    if len(other):
        tick, trial = int(other[0]), pair.other.trial
        raise JobError(
            f"{pair.other.place}: seed={trial.seed}: from tick {tick} on the commands differ by "
            f"{off_rad[tick]:.2g} rad from the reference's (valid: {SAME_COMMAND_RAD:g}); the safety kernel "
            f"changed them in one engine ({trial.safety or 'not in this one'}), so it is no open loop"
        )
