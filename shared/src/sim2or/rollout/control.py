"""One control tick, the same in simulation and on a robot: the due action, through the safety kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from sim2or.rollout.actor import Chunk
from sim2or.rollout.chunk import ChunkExecutor
from sim2or.safety.kernel import Decision, SafetyKernel
from sim2or.safety.limits import limits_of
from sim2or.safety.stop import StopLatch


@dataclass(frozen=True)
class Command:
    """A tick's decision and where it came from.

    Attributes:
        decision: The safety kernel's decision.
        captured_ns: The observation behind the followed action [ns]; None for a hold.
        index: The action's place in its chunk; -1 for a hold.
    """

    decision: Decision
    captured_ns: int | None
    index: int


class ControlStep:
    """Chunk executor and safety kernel in a row; it knows neither a clock nor a socket.

    Args:
        executor: Chooses the action that is due.
        kernel: Has the last word.
    """

    def __init__(self, executor: ChunkExecutor, kernel: SafetyKernel) -> None:
        self.executor = executor
        self.kernel = kernel

    def reset(self, session: str) -> None:
        """Starts an episode."""
        self.executor.reset(session)
        self.kernel.reset()

    def accept(self, chunk: Chunk, now_ns: int) -> bool:
        """Takes an actor's answer that arrived at ``now_ns``; returns whether it is used."""
        return self.executor.accept(chunk.actions_rad, chunk.captured_ns, now_ns, chunk.session)

    def withdraw(self) -> None:
        """Takes the newest decision back: the robot did not execute it at its tick."""
        self.kernel.withdraw()

    def decide(
        self,
        measured_rad: NDArray[np.float32],
        *,
        measured_ns: int,
        at_ns: int,
        heartbeat_ns: int | None = None,
    ) -> Command:
        """Decides the command that takes effect at ``at_ns``.

        Args:
            measured_rad: The newest measured joint positions, shape (n_joints,), [rad].
            measured_ns: When they were measured [ns].
            at_ns: When the robot will apply the command [ns]: now in simulation, its next tick on a robot.
            heartbeat_ns: The supervisor's last heartbeat [ns]; None where none is expected.
        """
        due = self.executor.target(at_ns)
        decision = self.kernel.filter(
            None if due is None else due.target_rad,
            measured_rad,
            None if due is None else due.captured_ns,
            at_ns,
            measured_ns=measured_ns,
            heartbeat_ns=heartbeat_ns,
        )
        if due is None or decision.hold:
            return Command(decision, None, -1)
        return Command(decision, due.captured_ns, due.index)


def control_step(
    robot: RobotProfile,
    task: TaskProfile,
    latch: StopLatch,
    *,
    horizon: int,
    max_age_s: float | None = None,
    reserve_periods: float = 0.0,
) -> ControlStep:
    """Executor and kernel as the profiles set them.

    Args:
        robot: Gives joint range, speed, acceleration and kinematics.
        task: Gives rate, workspace and ages.
        latch: The emergency stop and torque stage in force.
        horizon: Actions per chunk.
        max_age_s: Oldest observation that may move the arm [s]; it can only be stricter than the task's.
        reserve_periods: Kept back from that age, for a beat that the robot executes late [control periods].
    """
    period_ns = round(task.period_s * 1e9)
    age_s = min(max_age_s or task.executor.max_age_s, task.executor.max_age_s)
    executor = ChunkExecutor(
        horizon=horizon,
        execute=min(task.executor.execute, horizon),
        period_ns=period_ns,
        max_age_ns=round(age_s * 1e9 - reserve_periods * period_ns),
    )
    kernel = SafetyKernel(limits_of(robot, task), Kinematics(robot).grasp_position, task.period_s, latch)
    return ControlStep(executor, kernel)
