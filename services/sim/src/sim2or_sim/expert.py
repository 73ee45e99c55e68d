"""The scripted expert: a state machine over waypoints; it sees what only the simulator knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.scenario import Scenario
from sim2or.contracts.task import TaskProfile
from sim2or.worlds.world import Truth, World

from sim2or_sim.backends.mujoco.reach import Reach

Joints = NDArray[np.float64]

# Peaks of a planned motion; the noise comes on top.
_SPEED_RADPS = 2.2
_ACCELERATION_RADPS2 = 16.0
# Peaks of a minimum-jerk motion of length 1 in time 1, s(t) = 10t³ − 15t⁴ + 6t⁵ (Flash and Hogan 1985).
_PEAK_SPEED, _PEAK_ACCELERATION = 1.875, 5.7735

_ABOVE_M = 0.05  # height of the approach over the grasp
_CLEARANCE_M = 0.0025  # between the pads' lower edge and the tray
_FIXED_PAD_GAP_M = 0.011  # kept between the fixed pad and the instrument until the jaws close
_LIFT_M = 0.085
_RETREAT_M = 0.075
_SLIPPED_M = 0.03  # an instrument farther than this from the grasp point was not grasped
_SETTLE_STEPS = 3

# Noise fades to this share where a millimetre counts, and back, by so much in a control step.
_FINE_NOISE, _FADE = 0.4, 0.08


class Phase(Enum):
    """What the expert is doing."""

    ABOVE = auto()
    DESCEND = auto()
    CLOSE = auto()
    LIFT = auto()
    CARRY = auto()
    PRESENT = auto()
    OPEN = auto()
    RETREAT = auto()
    STAY = auto()


_FINE_PHASES = frozenset({Phase.DESCEND, Phase.CLOSE, Phase.PRESENT, Phase.OPEN})


@dataclass(frozen=True)
class Noise:
    """Slow action noise, so that demonstrations show how to come back.

    Each joint of the arm follows ``n = rho n + sigma w`` with w standard normal; the gripper is left alone.

    Attributes:
        rho: Memory from one control step to the next.
        sigma_rad: Size of each step [rad].
    """

    rho: float = 0.97
    sigma_rad: float = 0.002


class Expert:
    """Drives one world; make one for each world of a batch."""

    def __init__(self, robot: RobotProfile, task: TaskProfile, noise: Noise | None = None) -> None:
        """Builds the arm for inverse kinematics.

        Args:
            robot: The arm.
            task: The task.
            noise: Action noise of demonstrations.
        """
        self._robot, self._task = robot, task
        self._noise_model = noise or Noise()
        self._reach = Reach(robot)
        self._lower, self._upper = robot.lower_rad, robot.upper_rad
        pad = robot.tool.pads[0]
        below_m = robot.tool.grasp_m[2] - (pad.at_m[2] - pad.half_m[2])
        self._grasp_z_m = task.tray.center_m[2] + below_m + _CLEARANCE_M
        self._begin: dict[Phase, Callable[[Truth], tuple[Joints, int]]] = {
            Phase.ABOVE: self._above,
            Phase.DESCEND: self._descend,
            Phase.CLOSE: self._close,
            Phase.LIFT: self._lift,
            Phase.CARRY: self._carry,
            Phase.OPEN: self._open,
            Phase.RETREAT: self._retreat,
        }

    def reset(self, world: World, index: int, scenario: Scenario, noise_seed: int | None = None) -> None:
        """Starts an episode.

        Args:
            world: The world, already reset to the scenario.
            index: Which world of the batch.
            scenario: Its scenario.
            noise_seed: Seed of the action noise; None for none.
        """
        self._rng = None if noise_seed is None else np.random.default_rng([noise_seed, 11])
        self._noise: Joints = np.zeros(len(self._robot.joints))
        self._gain = 1.0
        self._target = world.sense(index, cameras=False).position_rad.astype(float)
        self._turn(Phase.ABOVE, world.truth(index))

    @property
    def phase(self) -> Phase:
        """What the expert is doing."""
        return self._phase

    def act(self, world: World, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One control period.

        Returns:
            label_rad: Shape (n_joints,), what a demonstration teaches [rad].
            executed_rad: Shape (n_joints,), the same with noise, what the robot is told [rad].
        """
        self._advance(world, index)
        self._elapsed += 1
        share = min(1.0, self._elapsed / self._steps)
        self._target = self._from + minimum_jerk(share) * (self._goal - self._from)
        label = np.clip(self._target, self._lower, self._upper)
        executed = np.clip(label + self._next_noise(), self._lower, self._upper)
        return label.astype(np.float32), executed.astype(np.float32)

    def _advance(self, world: World, index: int) -> None:
        """Goes on to the next phase when this one has ended."""
        if self._phase is Phase.PRESENT:
            truth = world.truth(index)
            if truth.taken:
                self._turn(Phase.OPEN, truth)
        elif self._phase is not Phase.STAY and self._elapsed >= self._steps + self._wait:
            self._turn(self._next(world.truth(index)), world.truth(index))

    def _next(self, truth: Truth) -> Phase:
        slipped = float(np.linalg.norm(truth.instrument[6:9])) > _SLIPPED_M
        if self._phase in (Phase.LIFT, Phase.CARRY) and slipped and not truth.done:
            return Phase.ABOVE
        return list(Phase)[list(Phase).index(self._phase) + 1]

    def _turn(self, phase: Phase, truth: Truth) -> None:
        """Plans a phase: from the current target to a goal."""
        self._phase, self._elapsed = phase, 0
        self._from = self._target.copy()
        begin = self._begin.get(phase)
        goal, self._wait = begin(truth) if begin else (self._from, 0)
        self._goal: Joints = goal.copy()
        self._steps = duration_steps(self._goal - self._from, self._task.control_hz)

    def _above(self, truth: Truth) -> tuple[Joints, int]:
        """Over the instrument, jaws open across it."""
        self._at_m = truth.instrument[:3].astype(float)
        tip = truth.instrument[3:6].astype(float)
        self._heading = float(np.arctan2(tip[1], tip[0])) + np.pi / 2
        self._heading = (self._heading + np.pi) % (2 * np.pi) - np.pi
        return self._solve(self._grasp(_ABOVE_M, gap_m=_FIXED_PAD_GAP_M), self._robot.tool.open_rad), 0

    def _descend(self, truth: Truth) -> tuple[Joints, int]:
        """Down to the tray."""
        return self._solve(self._grasp(0.0, gap_m=_FIXED_PAD_GAP_M), self._robot.tool.open_rad), _SETTLE_STEPS

    def _close(self, truth: Truth) -> tuple[Joints, int]:
        """The jaws close while the arm brings the fixed pad to the instrument."""
        return self._solve(self._grasp(0.0), self._robot.tool.closed_rad), _SETTLE_STEPS

    def _lift(self, truth: Truth) -> tuple[Joints, int]:
        """Straight up."""
        return self._solve(self._grasp(_LIFT_M), self._robot.tool.closed_rad), 0

    def _carry(self, truth: Truth) -> tuple[Joints, int]:
        """To the zone, the handle toward the surgeon."""
        zone_m = np.array(self._task.zone.center_m)
        hang_m = np.array([0.0, 0.0, float(self._at_m[2]) - self._grasp_z_m])
        self._zone_grasp_m = zone_m - hang_m
        x, y, _ = self._task.hand.from_direction
        self._heading = float(np.arctan2(y, x)) - np.pi / 2
        return self._solve(self._zone_grasp_m, self._robot.tool.closed_rad), 0

    def _open(self, truth: Truth) -> tuple[Joints, int]:
        """Lets go."""
        goal = self._from.copy()
        goal[-1] = self._robot.tool.open_rad
        return goal, 1

    def _retreat(self, truth: Truth) -> tuple[Joints, int]:
        """Up and away."""
        return self._solve(
            self._zone_grasp_m + np.array([0.0, 0.0, _RETREAT_M]), self._robot.tool.open_rad
        ), 0

    def _grasp(self, over_m: float, gap_m: float = 0.0) -> NDArray[np.float64]:
        """Where the grasp point goes, ``over_m`` above the grasp and ``gap_m`` off the fixed pad."""
        across = np.array([np.cos(self._heading), np.sin(self._heading), 0.0])
        flat_m = np.array([self._at_m[0], self._at_m[1], self._grasp_z_m + over_m])
        return flat_m - gap_m * across

    def _solve(self, grasp_m: NDArray[np.float64], gripper_rad: float) -> Joints:
        guess = self._from.copy()
        guess[-1] = gripper_rad
        return self._reach.solve(grasp_m, self._heading, guess)

    def _next_noise(self) -> Joints:
        if self._rng is not None:
            model = self._noise_model
            fresh = self._rng.standard_normal(len(self._noise))
            self._noise = model.rho * self._noise + model.sigma_rad * fresh
            self._noise[-1] = 0.0
        goal = _FINE_NOISE if self._phase in _FINE_PHASES else 1.0
        self._gain += float(np.clip(goal - self._gain, -_FADE, _FADE))
        return self._gain * self._noise


def minimum_jerk(share: float) -> float:
    """How far a minimum-jerk motion has come after a share of its time. Source: Flash and Hogan 1985."""
    return share * share * share * (10.0 - 15.0 * share + 6.0 * share * share)


def duration_steps(way_rad: Joints, control_hz: float) -> int:
    """Control steps in which a minimum-jerk motion stays below the planned peaks."""
    longest = float(np.abs(way_rad).max())
    needed_s = max(
        _PEAK_SPEED * longest / _SPEED_RADPS, np.sqrt(_PEAK_ACCELERATION * longest / _ACCELERATION_RADPS2)
    )
    return max(1, int(np.ceil(needed_s * control_hz)))
