"""One hand-over in real time: sense, ask the policy, decide and command at the robot's beat."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from sim2or.clock import now_ns
from sim2or.contracts.scenario import Scenario
from sim2or.counts import LATENCY_BOUNDS_S, LIVE, Distribution
from sim2or.errors import HardwareError
from sim2or.messages.joint_command import JointCommand
from sim2or.rollout.control import Command, ControlStep
from sim2or.rollout.episode import Episode
from sim2or.rollout.loop import observe
from sim2or.rollout.policy import PolicyLink
from sim2or.worlds.remote_robot import RemoteRobot
from sim2or.worlds.world import Sensed

from sim2or_bridge.pacer import Pacer

ACT_SHARE = 0.75
"""An answer that arrives within this share of a period still makes it into the period's command."""

FIRST_STATE_S = 2.0
STOP_TIMEOUT_S = 1.0

HEARTBEAT_NS = 250_000_000
"""How often a hand-over asks whether it may go on; the kernel holds the arm without an answer for 0.5 s."""


@dataclass
class Timing:
    """How the ticks of an episode kept time.

    Attributes:
        ticks: Control ticks of the robot that passed.
        misses: Ticks for which no command left before the deadline.
        work_ms: From the beginning of each tick to the command's departure, waits included [ms].
        slack_ms: From the command's departure to the deadline; negative when missed [ms].
    """

    ticks: int = 0
    misses: int = 0
    work_ms: list[float] = field(default_factory=list)
    slack_ms: list[float] = field(default_factory=list)

    def add(self, *, skipped: int, began_ns: int, left_ns: int, deadline_ns: int) -> None:
        """Adds one beat of the loop, and the ticks that passed before it without one."""
        self.ticks += 1 + skipped
        self.misses += skipped + (left_ns > deadline_ns)
        self.work_ms.append((left_ns - began_ns) / 1e6)
        self.slack_ms.append((deadline_ns - left_ns) / 1e6)


@dataclass
class ControlCounts:
    """How the control loop did, over all hand-overs of this process.

    Attributes:
        ticks: Control ticks of the robot that passed.
        deadline_misses: Ticks for which no command left in time.
        holds: Commands that held the arm instead of following the policy.
        stale_executed: Commands older than allowed that the robot executed, by its own log.
        violations: Commands beyond a limit that the robot executed, by its own log.
        period_s: Time between two beats of the loop.
        work_s: From the beginning of a beat to the command's departure, waits included.
    """

    ticks: int = 0
    deadline_misses: int = 0
    holds: int = 0
    stale_executed: int = 0
    violations: int = 0
    period_s: Distribution = field(default_factory=lambda: Distribution(LATENCY_BOUNDS_S))
    work_s: Distribution = field(default_factory=lambda: Distribution(LATENCY_BOUNDS_S))
    _began_ns: int = field(default=0, init=False)

    def begin(self) -> None:
        """Starts a hand-over: the time since the last one is no period."""
        self._began_ns = 0

    def beat(self, *, ticks: int, misses: int, held: bool, began_ns: int, left_ns: int) -> None:
        """Adds one beat of the loop.

        Args:
            ticks: Ticks that passed with it.
            misses: How many of these had no command in time.
            held: Whether its command holds the arm.
            began_ns: When it began [ns].
            left_ns: When its command left [ns].
        """
        self.ticks += ticks
        self.deadline_misses += misses
        self.holds += held
        self.work_s.add((left_ns - began_ns) / 1e9)
        if self._began_ns:
            self.period_s.add((began_ns - self._began_ns) / 1e9)
        self._began_ns = began_ns


class HandOver:
    """Runs hand-overs of one model on one robot.

    Args:
        robot: The connected robot.
        link: The policy.
        step: Executor and safety kernel.
        artifact: Digest of the model, written on every command.
        max_ticks: An episode that the robot has not ended by then is given up.
        may_go_on: The heartbeat: asked several times a second, raises when the job must stop.
    """

    def __init__(
        self,
        robot: RemoteRobot,
        link: PolicyLink,
        step: ControlStep,
        *,
        artifact: str,
        max_ticks: int,
        may_go_on: Callable[[], None],
    ) -> None:
        self._robot, self._link, self._step = robot, link, step
        self._may_go_on = may_go_on
        self._heartbeat_ns = self._seq = 0
        self._sensed: Sensed | None = None
        self._artifact, self._max_ticks = artifact, max_ticks
        self._period_ns = step.executor.period_ns
        self.counts = ControlCounts()
        LIVE.watch(self, self.counts)

    def run(self, scenario: Scenario, *, reset_timeout_s: float) -> tuple[Episode, Timing]:
        """Runs one hand-over; the robot's watchdog holds the arm afterwards.

        Raises:
            HardwareError: The robot fell silent or refused.
            Cancelled: ``may_go_on`` said so; call ``stop``.
        """
        self._sensed, self._seq = None, 0
        self._robot.reset(scenario, timeout_s=reset_timeout_s)
        session = self._robot.session
        self._step.reset(session)
        self._link.forget()
        episode, timing, pacer = Episode(session), Timing(), Pacer(self._period_ns)
        pacer.lock(self._robot.sense(timeout_s=FIRST_STATE_S).time_ns)
        self._ask_permission()
        self.counts.begin()
        gc.collect()
        gc.disable()  # a collection takes longer than the slack of a tick
        try:
            for tick in range(self._max_ticks):
                deadline_ns = self._beat(tick, scenario.request, pacer, episode, timing)
                if self._robot.phase == "done" or self._link.refusal:
                    break
                if now_ns() - self._heartbeat_ns >= HEARTBEAT_NS:
                    self._ask_permission()
                time.sleep(max(0.0, (deadline_ns - now_ns()) / 1e9))
        finally:
            gc.enable()
        episode.chunks = Counter(self._step.executor.counts)
        return episode, timing

    def stop(self, reason: str) -> None:
        """Trips the emergency stop and tells the robot to hold; only a person resets the latch.

        It returns when the robot has taken the hold, or has not answered for a second: then its own watchdog
        holds the arm.
        """
        self._step.kernel.emergency_stop(reason)
        sensed = self._sensed
        if sensed is None:
            return
        at_ns = now_ns() + self._period_ns
        self._send(self._step.decide(sensed.position_rad, measured_ns=sensed.time_ns, at_ns=at_ns))
        with suppress(HardwareError):
            self._robot.status(timeout_s=STOP_TIMEOUT_S)

    def _ask_permission(self) -> None:
        self._may_go_on()
        self._heartbeat_ns = now_ns()

    def _beat(self, tick: int, request: str, pacer: Pacer, episode: Episode, timing: Timing) -> int:
        """One control tick; returns its deadline [ns]."""
        began_ns = now_ns()
        deadline_ns, skipped = pacer.next(began_ns)
        act_ns = deadline_ns - int((1 - ACT_SHARE) * self._period_ns)
        self._sensed = sensed = self._robot.sense(timeout_s=max(0.0, (act_ns - began_ns) / 1e9))
        if not episode.time_ns or sensed.time_ns != episode.time_ns[-1]:
            pacer.lock(sensed.time_ns)
            self._ask(sensed, request, episode.session, tick)
        else:
            self._step.withdraw()  # no new state: the robot's tick is late, the last command still waits
        for chunk in self._link.answers(act_ns if self._link.waiting else 0):
            self._step.accept(chunk, now_ns())
        command = self._step.decide(
            sensed.position_rad,
            measured_ns=sensed.time_ns,
            at_ns=deadline_ns,
            heartbeat_ns=self._heartbeat_ns,
        )
        if now_ns() <= deadline_ns:
            self._send(command)
        else:
            self._step.withdraw()
        left_ns = now_ns()
        timing.add(skipped=skipped, began_ns=began_ns, left_ns=left_ns, deadline_ns=deadline_ns)
        self.counts.beat(
            ticks=1 + skipped,
            misses=skipped + (left_ns > deadline_ns),
            held=command.decision.hold,
            began_ns=began_ns,
            left_ns=left_ns,
        )
        episode.add(sensed, command, deadline_ns)
        return deadline_ns

    def _ask(self, sensed: Sensed, request: str, session: str, tick: int) -> None:
        """Sends the observation when the executor wants one; ages count from the robot's capture."""
        if self._step.executor.wants(sensed.time_ns):
            self._step.executor.requested(sensed.time_ns)
            self._link.ask(observe(sensed, self._robot.spec, request, session, tick))

    def _send(self, command: Command) -> None:
        decision, seq = command.decision, self._seq
        self._seq += 1
        if decision.target_rad is None:
            return
        self._robot.command(
            JointCommand(
                session=self._robot.session,
                seq=seq,
                tick=seq,
                target_rad=np.asarray(decision.target_rad, dtype=np.float32),
                issued_ns=now_ns(),
                captured_ns=command.captured_ns,
                hold=decision.hold,
                torque_scale=decision.torque_scale,
                artifact="" if decision.hold else self._artifact,
            )
        )
