"""The simulated robot: a world that moves in ticks of real time, with a real robot's manners.

It executes the newest command of its session, holds its *own measured* position when it hears none or a hold,
never lets an old command or a command of an old observation move it, moves no faster than it may however the
commands come, and writes down everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import Scenario
from sim2or.contracts.task import TaskProfile
from sim2or.errors import ConfigError
from sim2or.messages.joint_command import JointCommand
from sim2or.messages.robot_state import RobotState, Status
from sim2or.safety.limits import limits_of
from sim2or.safety.slew import SlewLimiter
from sim2or.worlds.world import Sensed, World

from sim2or_sim.command_log import CommandLog

Phase = Literal["idle", "running", "done"]


@dataclass(frozen=True)
class _Heard:
    """A command and when it arrived [ns]."""

    command: JointCommand
    at_ns: int


class SimulatedRobot:
    """One arm in one world.

    Args:
        world: A batch of one.
        task: Its watchdog and the oldest observation that may move it.
        log: Where everything is written down.
    """

    def __init__(self, world: World, task: TaskProfile, log: CommandLog) -> None:
        self.world = world
        self.log = log
        self.session = ""
        self._watchdog_ns = round(task.safety.watchdog_s * 1e9)
        self._max_age_ns = round(task.executor.max_age_s * 1e9)
        self._sessions: set[str] = set()
        self._seq = 0
        self._heard: _Heard | None = None
        self._held: NDArray[np.float32] | None = None
        self._ended = False
        robot = load_robot(world.spec.robot)
        self._limits, self._period_s = limits_of(robot, task), task.period_s
        self._grasp_position = Kinematics(robot).grasp_position
        self._slew: SlewLimiter | None = None

    def reset(self, scenario: Scenario, session: str, now_ns: int) -> None:
        """Loads a scenario and begins an episode; commands of other sessions are refused from now on.

        Raises:
            ConfigError: An episode of that name was run before: the request was played back.
        """
        if session in self._sessions:
            raise ConfigError(
                f"reset: session {session!r} was run before; every episode needs a name of its own"
            )
        self.world.reset([scenario])
        self._sessions.add(session)
        self.session, self._heard, self._held, self._ended, self._slew = session, None, None, False, None
        self.log.begin(session, scenario.seed, now_ns)

    @property
    def phase(self) -> Phase:
        """``idle`` before the first reset, ``running``, then ``done``."""
        if not self.session:
            return "idle"
        return "done" if self._ended else "running"

    def hear(self, command: JointCommand, now_ns: int) -> bool:
        """Takes a command for the next tick, unless it is another session's, overtaken, or too old.

        Returns:
            Whether it was taken.
        """
        refused = ""
        if command.session != self.session:
            refused = "other session"
        elif self._heard is not None and command.seq <= self._heard.command.seq:
            refused = "not newer"
        elif not 0 <= now_ns - command.issued_ns <= self._max_age_ns:
            refused = "not fresh"
        self.log.received(command, now_ns, refused)
        if not refused:
            self._heard = _Heard(command, now_ns)
        return not refused

    def sense(self, now_ns: int) -> RobotState:
        """Reads joints and cameras at this instant of real time."""
        sensed = self.world.sense(0, cameras=True)
        return RobotState(
            seq=self._next_seq(),
            captured_ns=now_ns,
            position_rad=sensed.position_rad,
            velocity_radps=sensed.velocity_radps,
            images=dict(sensed.images),
            episode=self.session,
            phase=self.phase,
            status={"sim_time_s": sensed.time_ns / 1e9},
        )

    def act(self, now_ns: int) -> None:
        """Executes one control period with the newest command, or holds the measured position."""
        sensed = self.world.sense(0, cameras=False)
        hold = self._why_hold(now_ns)
        step = None if hold else self._follow(sensed, now_ns)
        if step is None:
            hold, step = hold or "workspace", (self._hold(sensed), False)
        target, limited = step
        command = self._heard.command if self._heard else None
        self.log.executed(
            session=self.session,
            seq=-1 if command is None else command.seq,
            now_ns=now_ns,
            captured_ns=None if hold or command is None else command.captured_ns,
            hold=hold,
            target_rad=target,
            measured_rad=sensed.position_rad,
            limited=limited,
        )
        self.world.step(target[None])
        self._ended = self._ended or self.world.truth(0).done

    def status(self) -> dict[str, Status]:
        """What the world knows about the episode: whether it ended, how, and its figures."""
        if not self.session:
            return {}
        truth = self.world.truth(0)
        facts = {name: float(value) for name, value in truth.facts.items() if np.isfinite(value)}
        return {
            "done": truth.done,
            "success": truth.success,
            "failure": truth.failure,
            "taken": truth.taken,
            **facts,
        }

    def _why_hold(self, now_ns: int) -> str:
        """Who holds the arm at this tick, "" when a command moves it."""
        if self._heard is None or now_ns - self._heard.at_ns > self._watchdog_ns:
            return "watchdog"
        command = self._heard.command
        if command.hold:
            return "commander"
        if command.captured_ns is None or not 0 <= now_ns - command.captured_ns <= self._max_age_ns:
            return "expired"
        return ""

    def _hold(self, sensed: Sensed) -> NDArray[np.float32]:
        """The position measured when the hold began, whoever holds; a commander's target is not followed."""
        self._held = sensed.position_rad.copy() if self._held is None else self._held
        self._limiter(sensed).hold(self._held)
        return self._held

    def _follow(self, sensed: Sensed, now_ns: int) -> tuple[NDArray[np.float32], bool] | None:
        """The target of this tick, and whether it is the robot's own limit of what was commanded.

        None: the way there leads out of the workspace.
        """
        assert self._heard is not None  # without a command the watchdog holds
        command = self._heard.command
        step = self._limiter(sensed).follow(command.target_rad, sensed.position_rad, command.seq, now_ns)
        if step:
            self._held = None
        return step

    def _limiter(self, sensed: Sensed) -> SlewLimiter:
        """The limit of this episode, which begins where the arm is."""
        if self._slew is None:
            self._slew = SlewLimiter(self._limits, self._grasp_position, self._period_s, sensed.position_rad)
        return self._slew

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq - 1
