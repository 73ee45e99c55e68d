"""What is random about learning episodes, as arrays over a batch; lists of seeds, disjoint by purpose."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import Interval, TaskProfile
from sim2or.errors import ConfigError, choices

from sim2or_sim.rl import reach

Floats = NDArray[np.float64]

SEEDS = {"train": (0, 7_000_000), "validation": (7_100_000, 100_000), "heldout": (7_200_000, 100_000)}
"""First seed and length of each list. Training's is drawn from by the generator of the run's seed."""
_STREAM = 17
_GRASP_START_RAD = 0.05


@dataclass(frozen=True)
class Starts:
    """How n episodes begin.

    Attributes:
        start_rad: Shape (n, n_joints), joint positions [rad].
        target_m: Shape (n, 3), where the tool point shall go, in the base frame [m].
        instrument: Shape (n, 3): the instrument from the tray's centre along x and y [m], and its yaw [rad].
        lag_s: Shape (n,), pure delay of the servo commands [s].
    """

    start_rad: Floats
    target_m: Floats
    instrument: Floats
    lag_s: Floats

    def __len__(self) -> int:
        return len(self.lag_s)

    def rows(self, ids: NDArray[np.intp]) -> Starts:
        """Some of them."""
        return Starts(*(getattr(self, field.name)[ids] for field in fields(self)))

    def mixed(self, other: Starts, where: NDArray[np.bool_]) -> Starts:
        """The other's rows where told so, shape (n,), and otherwise these."""
        rows = where[:, None]
        return Starts(
            np.where(rows, other.start_rad, self.start_rad),
            np.where(rows, other.target_m, self.target_m),
            np.where(rows, other.instrument, self.instrument),
            np.where(where, other.lag_s, self.lag_s),
        )

    @classmethod
    def joined(cls, parts: list[Starts]) -> Self:
        """Several one after another."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def draw_starts(
    name: Literal["reach", "grasp"],
    robot: RobotProfile,
    task: TaskProfile,
    rng: np.random.Generator,
    count: int,
) -> Starts:
    """Draws episodes.

    Args:
        name: The learning task.
        robot: Its joints and home.
        task: The operating room and its ranges.
        rng: Where chance comes from.
        count: How many.
    """
    joints, ranges = len(robot.joints), task.ranges
    spread = np.full(joints, reach.START_RAD if name == reach.NAME else _GRASP_START_RAD)
    spread[reach.ACTION_JOINTS :] *= name != reach.NAME
    start = np.array(robot.home_rad) + rng.uniform(-1.0, 1.0, (count, joints)) * spread
    yaw = [piece.between for piece in ranges.yaw_rad]
    return Starts(
        start_rad=np.clip(start, robot.lower_rad, robot.upper_rad),
        target_m=rng.uniform(reach.TARGET_LOW_M, reach.TARGET_HIGH_M, (count, 3)),
        instrument=np.stack(
            [
                _uniform(rng, ranges.x_m, count),
                _uniform(rng, ranges.y_m, count),
                _uniform(rng, (min(low for low, _ in yaw), max(high for _, high in yaw)), count),
            ],
            axis=-1,
        ),
        lag_s=_uniform(rng, ranges.lag_s, count),
    )


def listed_starts(
    name: Literal["reach", "grasp"], robot: RobotProfile, task: TaskProfile, listed: str, count: int
) -> Starts:
    """The first episodes of a list of seeds; equal seeds give equal episodes.

    Raises:
        ConfigError: Unknown list, or more than it holds.
    """
    if listed not in SEEDS:
        raise ConfigError(f"list: {listed!r}; {choices(listed, SEEDS)}")
    first, held = SEEDS[listed]
    if not 1 <= count <= held:
        raise ConfigError(f"list {listed!r}: {count} episodes asked for; valid: 1…{held}")
    rngs = (np.random.default_rng([seed, _STREAM]) for seed in range(first, first + count))
    return Starts.joined([draw_starts(name, robot, task, rng, 1) for rng in rngs])


def _uniform(rng: np.random.Generator, interval: Interval, count: int) -> Floats:
    return rng.uniform(*interval, count)
