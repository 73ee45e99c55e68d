"""The safety kernel: the last thing between any actor and any robot, simulated or real.

Every command passes, in this order: emergency stop and torque stage → watchdogs → finite → fresh →
joint range, distance from the measured pose, velocity, acceleration, step → workspace. What is refused
becomes a *hold*: the position measured when the hold took effect, kept until motion starts again from there.
The kernel is pure (time is an argument), it never raises into the control loop, and what it did is judged
elsewhere, from the robot's own log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from sim2or.safety.limits import SafetyLimits
from sim2or.safety.motion import Vector, limited_velocity
from sim2or.safety.stop import StopLatch, TorqueStage

NOTICEABLE_RAD = 1e-4
"""A change of a target smaller than this is rounding, and is not counted as a limit in force."""


class Reason(StrEnum):
    """Why the kernel held or changed a command."""

    STOPPED = "stopped"
    LOCKED = "locked"
    NO_MEASUREMENT = "no_measurement"
    OLD_MEASUREMENT = "old_measurement"
    NO_HEARTBEAT = "no_heartbeat"
    NO_TARGET = "no_target"
    INVALID = "invalid"
    STALE = "stale"
    FUTURE = "future"
    WORKSPACE = "workspace"
    RANGE = "range"
    TRACKING = "tracking"
    MOTION = "motion"
    BLEND = "blend"


@dataclass(frozen=True)
class Decision:
    """What the robot is to be told at this tick.

    Attributes:
        target_rad: Shape (n_joints,), float32, [rad]; None only while no valid measurement was ever seen,
            when nothing may be sent and the robot's own watchdog holds it.
        hold: Whether the arm is held instead of following the actor.
        reasons: Why it was held or changed; empty for a command passed as it came.
        torque_scale: Fraction of the servo's torque to allow.
    """

    target_rad: NDArray[np.float32] | None
    hold: bool
    reasons: tuple[Reason, ...]
    torque_scale: float


class SafetyKernel:
    """Filters joint position targets for one arm.

    Args:
        limits: What the arm may do.
        grasp_position: Forward kinematics: joints (n_joints,) [rad] to the grasp point (3,) in the base [m].
        period_s: Length of a control tick [s].
        latch: The emergency stop and torque stage in force.
    """

    def __init__(
        self,
        limits: SafetyLimits,
        grasp_position: Callable[[Vector], Vector],
        period_s: float,
        latch: StopLatch,
    ) -> None:
        self.limits = limits
        self.latch = latch
        self.counts: Counter[Reason] = Counter()
        self._grasp_position = grasp_position
        self._period_s = period_s
        self.reset()

    def reset(self) -> None:
        """Starts an episode: forgets the motion, keeps the latch, the stage and the limits."""
        self.counts = Counter()
        self._measured: Vector | None = None
        self._measured_ns = 0
        self._last_ns: int | None = None
        self._forget_motion()

    def _forget_motion(self) -> None:
        """The next motion starts slowly, from the measured pose."""
        self._before: tuple[Vector | None, int | None, Vector | None, Vector, float, bool] | None = None
        self._held: Vector | None = None
        self._hold_begins_ns: int | None = None
        self._previous: Vector | None = None
        self._velocity: Vector = np.zeros_like(self.limits.lower_rad)
        self._blended_s = 0.0
        self._blending = True

    def emergency_stop(self, reason: str) -> None:
        """Latches the stop: the arm holds from the next tick on."""
        self.latch.trip(reason)

    def filter(
        self,
        target_rad: object,
        measured_rad: object,
        captured_ns: object,
        now_ns: int,
        *,
        measured_ns: int,
        heartbeat_ns: int | None = None,
    ) -> Decision:
        """Decides this tick's command; any input is answered, none raises.

        Args:
            target_rad: What the actor wants, shape (n_joints,), [rad], or None when it has nothing.
            measured_rad: The newest measured joint positions, shape (n_joints,), [rad].
            captured_ns: When the observation behind the target was captured [ns].
            now_ns: The time at which the command takes effect [ns].
            measured_ns: When the joints were measured [ns].
            heartbeat_ns: The supervisor's last heartbeat [ns]; None where none is expected.

        Returns:
            The decision; its target is always within every limit.
        """
        if self._last_ns is not None and now_ns - self._last_ns > self.limits.silence_ns:
            self._forget_motion()
        self._last_ns = now_ns
        self._remember()
        measured = self._vector(measured_rad)
        if measured is not None:
            self._measured = measured = np.clip(measured, self.limits.lower_rad, self.limits.upper_rad)
            self._measured_ns = measured_ns
            self._settle_hold(measured)
        trouble = self._trouble(now_ns, measured_ns, heartbeat_ns)
        if trouble is not None:
            return self._hold(trouble, now_ns)
        if measured is None:
            return self._hold(Reason.NO_MEASUREMENT, now_ns)
        if target_rad is None:
            return self._hold(Reason.NO_TARGET, now_ns)
        wanted = self._vector(target_rad)
        if wanted is None:
            return self._hold(Reason.INVALID, now_ns)
        refusal = self._age_trouble(captured_ns, now_ns)
        return self._move(wanted, measured, now_ns) if refusal is None else self._hold(refusal, now_ns)

    def withdraw(self) -> None:
        """Takes the newest decision back, which was not executed: motion goes on from the one before.

        Without this a missed tick would become a step of twice the size at the next.
        """
        if self._before is None:
            return
        (
            self._held,
            self._hold_begins_ns,
            self._previous,
            self._velocity,
            self._blended_s,
            self._blending,
        ) = self._before
        self._before = None

    def _remember(self) -> None:
        self._before = (
            self._held,
            self._hold_begins_ns,
            self._previous,
            self._velocity,
            self._blended_s,
            self._blending,
        )

    def _trouble(self, now_ns: int, measured_ns: int, heartbeat_ns: int | None) -> Reason | None:
        """The reason why nothing may move, whatever the actor wants."""
        if self.latch.tripped:
            return Reason.STOPPED
        if self.latch.stage is TorqueStage.LOCKED:
            return Reason.LOCKED
        if not 0 <= now_ns - measured_ns <= self.limits.observation_timeout_ns:
            return Reason.OLD_MEASUREMENT
        if heartbeat_ns is not None and now_ns - heartbeat_ns > self.limits.heartbeat_timeout_ns:
            return Reason.NO_HEARTBEAT
        return None

    def _age_trouble(self, captured_ns: object, now_ns: int) -> Reason | None:
        """The reason why the age of the observation behind a target forbids to follow it."""
        if not isinstance(captured_ns, int):
            return Reason.INVALID
        if captured_ns > now_ns:
            return Reason.FUTURE
        return Reason.STALE if now_ns - captured_ns > self.limits.max_age_ns else None

    def _settle_hold(self, measured: Vector) -> None:
        """Takes the pose measured at the tick at which a hold took effect: the one that a robot keeps."""
        if self._hold_begins_ns is not None and self._measured_by(self._hold_begins_ns):
            self._held = self._previous = measured
            self._hold_begins_ns = None

    def _measured_by(self, tick_ns: int) -> bool:
        """Whether the newest measurement is that of a tick or later (half a period of jitter allowed)."""
        return tick_ns - self._measured_ns <= self._period_s * 5e8

    def _hold(self, reason: Reason, now_ns: int) -> Decision:
        """Keeps the newest measured position, then the one measured when the hold took effect."""
        self.counts[reason] += 1
        scale = self.latch.stage.scale
        if self._measured is None:
            return Decision(None, True, (reason,), scale)
        if self._held is None:
            self._held = self._measured
            self._hold_begins_ns = None if self._measured_by(now_ns) else now_ns
        self._previous, self._velocity = self._held, np.zeros_like(self._held)
        self._blending, self._blended_s = True, 0.0
        return Decision(self._held.astype(np.float32), True, (reason,), scale)

    def _move(self, wanted: Vector, measured: Vector, now_ns: int) -> Decision:
        """Goes toward the target as far as every limit allows."""
        limits = self.limits
        start = measured if self._previous is None else self._previous
        inside = np.clip(wanted, limits.lower_rad, limits.upper_rad)
        near = np.clip(inside, measured - limits.tracking_rad, measured + limits.tracking_rad)
        velocity = limited_velocity(
            (near - start) / self._period_s,
            self._velocity,
            top_radps=self._top_radps(),
            acceleration_radps2=limits.acceleration_radps2,
            room_below_rad=start - limits.lower_rad,
            room_above_rad=limits.upper_rad - start,
            period_s=self._period_s,
        )
        output = np.clip(start + velocity * self._period_s, limits.lower_rad, limits.upper_rad)
        if not self._may_go(output, measured):
            return self._hold(Reason.WORKSPACE, now_ns)
        reasons = self._changes(wanted, inside, near, output)
        self.counts.update(reasons)
        self._velocity = (output - start) / self._period_s
        self._previous, self._held, self._hold_begins_ns = output, None, None
        return Decision(output.astype(np.float32), False, reasons, self.latch.stage.scale)

    def _may_go(self, output: Vector, measured: Vector) -> bool:
        """Whether a pose is inside the workspace, or no further outside than the arm already is."""
        outside = self._outside_m(output)
        return outside == 0.0 or (isfinite(outside) and outside <= self._outside_m(measured))

    def _top_radps(self) -> Vector:
        """The greatest speed now; after a hold it grows from a crawl to the limit within ``blend_s``."""
        top = np.minimum(self.limits.velocity_radps, self.limits.step_rad / self._period_s)
        if not self._blending:
            return top
        self._blended_s += self._period_s
        return np.asarray(top * min(1.0, self._blended_s / self.limits.blend_s))

    def _changes(self, wanted: Vector, inside: Vector, near: Vector, output: Vector) -> tuple[Reason, ...]:
        """Names the limits that changed the command, and ends the blend once the target is caught up with."""
        limited = Reason.BLEND if self._blending else Reason.MOTION
        steps = ((Reason.RANGE, wanted, inside), (Reason.TRACKING, inside, near), (limited, near, output))
        reasons = tuple(why for why, before, after in steps if np.abs(after - before).max() > NOTICEABLE_RAD)
        self._blending = self._blending and limited in reasons and self._blended_s < self.limits.blend_s
        return reasons

    def _outside_m(self, joints_rad: Vector) -> float:
        """How far the tool is outside the workspace [m]; zero inside, infinite where kinematics fail."""
        return self.limits.outside_m(self._grasp_position(joints_rad))

    def _vector(self, values: object) -> Vector | None:
        """One finite number per joint, or None."""
        try:
            vector = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            return None
        if vector.shape != self.limits.lower_rad.shape or not np.isfinite(vector).all():
            return None
        return vector
