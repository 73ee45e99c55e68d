"""A stand for drills of the live plane: a real robot process, a real policy process, the real bridge loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sim2or.bus.keys import load_keyring
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import scenario_list
from sim2or.contracts.task import load_task
from sim2or.rollout.control import control_step
from sim2or.rollout.episode import Episode
from sim2or.rollout.loop import observe
from sim2or.rollout.policy import PolicyLink
from sim2or.safety.stop import StopLatch, TorqueStage
from sim2or.stage import Cancelled
from sim2or.worlds.remote_robot import RemoteRobot
from sim2or_bridge.hand_over import HandOver, Timing
from sim2or_sim.command_log import Judge, read_log

ROBOT, TASK = load_robot("so101"), load_task("handover")
SCENARIO = scenario_list(TASK, "deploy", 1)[0]
PERIOD_NS, MAX_AGE_NS = round(TASK.period_s * 1e9), round(TASK.executor.max_age_s * 1e9)
START_S = 30.0
ARTIFACT = "sha256:recording"
STILL_RAD = 0.01


@dataclass
class Stand:
    """A robot process and a policy process with sockets in a short directory.

    Attributes:
        directory: Of the sockets and the robot's log.
        policy_endpoint: Where the policy listens; an ipc path when empty.
        variables: Further environment of the processes.
    """

    directory: Path
    policy_endpoint: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.policy_endpoint = self.policy_endpoint or f"ipc://{self.directory}/p"

    @property
    def robot_endpoint(self) -> str:
        """Where the robot listens."""
        return f"ipc://{self.directory}/r"

    @property
    def log(self) -> Path:
        """The robot's own command log."""
        return self.directory / "robot" / "commands.jsonl"

    @property
    def lines(self) -> list[dict]:
        """What the robot wrote down."""
        return read_log(self.log)

    def start(self, name: str, *command: str, within: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Starts a Python process of the stand, inside another command if one is given."""
        environment = os.environ | {
            "SIM2OR_ROBOT_ENDPOINT": self.robot_endpoint,
            "SIM2OR_RUN_DIR": str(self.directory),
            "OMP_NUM_THREADS": "1",
        }
        self.processes[name] = subprocess.Popen(
            [*within, sys.executable, *command], env=environment | self.variables
        )
        return self.processes[name]

    def start_robot(self) -> None:
        """Starts the simulated robot."""
        self.start("robot", "-m", "sim2or_sim", "robot")

    def start_policy(self, delay_ms: float = 5, within: Sequence[str] = ()) -> None:
        """The recording swings the shoulder slowly to and fro, so that every tick has its own target."""
        path = self.directory / "actions.npy"
        swing = 0.4 * np.sin(np.arange(400) / 30)[:, None] * np.array([1, 0, 0, 0, 0, 0])
        np.save(path, np.array(ROBOT.home_rad) + swing)
        script = str(Path(__file__).with_name("scripted_policy.py"))
        self.start("policy", script, self.policy_endpoint, str(path), str(delay_ms), ARTIFACT, within=within)

    def kill(self, name: str) -> None:
        """kill -9."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes.pop(name).wait(timeout=5)

    def close(self) -> None:
        """Ends everything."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=5)


def go_on() -> None:
    """Nobody stops the hand-over."""


def hand_over(
    stand: Stand,
    ticks: int,
    may_go_on: Callable[[], None] = go_on,
    *,
    policy_endpoint: str = "",
    robot_endpoint: str = "",
    keys: Path | None = None,
) -> tuple[Episode, Timing, Counter[str]]:
    """One episode of the real bridge loop, cut off after some ticks.

    Args:
        stand: Robot and policy.
        ticks: When it is cut off.
        may_go_on: The heartbeat.
        policy_endpoint: A way to the policy other than its own endpoint.
        robot_endpoint: A way to the robot other than its own endpoint.
        keys: Directory of CURVE keys.
    """
    ring = load_keyring(keys, "bridge")
    arm = RemoteRobot(robot_endpoint or stand.robot_endpoint, keys=ring)
    arm.connect(timeout_s=START_S)
    link = PolicyLink(policy_endpoint or stand.policy_endpoint, ARTIFACT, deadline_ms=1000, keys=ring)
    step = control_step(ROBOT, TASK, StopLatch(TorqueStage.FULL), horizon=20, reserve_periods=0.5)
    try:
        arm.reset(SCENARIO, timeout_s=START_S)
        question = observe(arm.sense(timeout_s=2), arm.spec, SCENARIO.request, arm.session, 0)
        link.warm_up(question, timeout_s=START_S)
        loop = HandOver(arm, link, step, artifact=ARTIFACT, max_ticks=ticks, may_go_on=may_go_on)
        try:
            episode, timing = loop.run(SCENARIO, reset_timeout_s=START_S)
        except Cancelled:
            loop.stop("cancelled")
            raise
        return episode, timing, link.counts
    finally:
        link.close()
        arm.close()


def judged(stand: Stand, session: str) -> dict[str, int]:
    """Counts of one session from the robot's log."""
    return Judge(ROBOT, TASK).judge(stand.lines)[session]


def executed(stand: Stand, session: str) -> list[dict]:
    """What the robot executed in one session."""
    return [line for line in stand.lines if line["line"] == "executed" and line["session"] == session]


def moving(stand: Stand, ticks: int, *, after_ns: int = 0) -> None:
    """Waits until the robot has executed so many moving commands since a moment [ns]."""
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        lines = stand.lines if stand.log.exists() else []
        moved = [line for line in lines if line["line"] == "executed" and not line["hold"]]
        if sum(line["at_ns"] > after_ns for line in moved) > ticks:
            return
        time.sleep(0.05)
    raise AssertionError(f"the arm never moved for {ticks} ticks")
