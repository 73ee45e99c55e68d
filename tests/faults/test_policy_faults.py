"""Faults around the bridge, with real processes: the arm holds, nothing stale moves it, it goes on.

What happened is read from the robot's own command log, never from the bridge's counters.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import scenario_list
from sim2or.contracts.task import load_task
from sim2or.errors import HardwareError
from sim2or.rollout.control import control_step
from sim2or.rollout.episode import Episode
from sim2or.rollout.loop import observe
from sim2or.rollout.policy import PolicyLink
from sim2or.safety.stop import StopLatch, TorqueStage
from sim2or.stage import Cancelled
from sim2or.worlds.remote_robot import RemoteRobot
from sim2or_bridge.hand_over import HandOver, Timing
from sim2or_sim.command_log import Judge, read_log

pytestmark = pytest.mark.faults

ROBOT, TASK = load_robot("so101"), load_task("handover")
SCENARIO = scenario_list(TASK, "deploy", 1)[0]
PERIOD_NS, MAX_AGE_NS = round(TASK.period_s * 1e9), round(TASK.executor.max_age_s * 1e9)
START_S = 30.0
ARTIFACT = "sha256:recording"
STILL_RAD = 0.01


@dataclass
class Stand:
    """A robot process and a policy process with sockets in a short directory."""

    directory: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def robot_endpoint(self) -> str:
        return f"ipc://{self.directory}/r"

    @property
    def policy_endpoint(self) -> str:
        return f"ipc://{self.directory}/p"

    @property
    def lines(self) -> list[dict]:
        return read_log(self.directory / "robot" / "commands.jsonl")

    def start(self, name: str, *command: str) -> None:
        environment = os.environ | {
            "SIM2OR_ROBOT_ENDPOINT": self.robot_endpoint,
            "SIM2OR_RUN_DIR": str(self.directory),
            "OMP_NUM_THREADS": "1",
        }
        self.processes[name] = subprocess.Popen([sys.executable, *command], env=environment)

    def start_robot(self) -> None:
        self.start("robot", "-m", "sim2or_sim", "robot")

    def start_policy(self, delay_ms: float = 5) -> None:
        """The recording swings the shoulder slowly to and fro, so that every tick has its own target."""
        path = self.directory / "actions.npy"
        swing = 0.4 * np.sin(np.arange(400) / 30)[:, None] * np.array([1, 0, 0, 0, 0, 0])
        np.save(path, np.array(ROBOT.home_rad) + swing)
        script = str(Path(__file__).with_name("scripted_policy.py"))
        self.start("policy", script, self.policy_endpoint, str(path), str(delay_ms), ARTIFACT)

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes.pop(name).wait(timeout=5)

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=5)


@pytest.fixture
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Sockets need short paths: a unix socket's path ends at 107 bytes."""
    stand = Stand(tmp_path_factory.mktemp("s"))
    yield stand
    stand.close()


def go_on() -> None:
    """Nobody stops the hand-over."""


def hand_over(
    stand: Stand, ticks: int, may_go_on: Callable[[], None] = go_on
) -> tuple[Episode, Timing, Counter[str]]:
    """One episode of the real bridge loop, cut off after some ticks."""
    arm = RemoteRobot(stand.robot_endpoint)
    arm.connect(timeout_s=START_S)
    link = PolicyLink(stand.policy_endpoint, ARTIFACT, deadline_ms=1000)
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


def later(delay_s: float, action: Callable[[], object]) -> threading.Timer:
    """Does something while the loop runs in this thread."""
    timer = threading.Timer(delay_s, action)
    timer.start()
    return timer


def judged(stand: Stand, session: str) -> dict[str, int]:
    """Counts of one session from the robot's log."""
    return Judge(ROBOT, TASK).judge(stand.lines)[session]


def executed(stand: Stand, session: str) -> list[dict]:
    return [line for line in stand.lines if line["line"] == "executed" and line["session"] == session]


def test_a_healthy_policy_moves_the_arm_without_stale_commands_or_violations(stand: Stand) -> None:
    """The reference for the faults below: the arm follows, and the log shows nothing wrong."""
    stand.start_robot()
    stand.start_policy()
    episode, timing, _ = hand_over(stand, 60)
    counts = judged(stand, episode.session)
    assert counts["stale_executed"] == counts["violations"] == counts["stale_received"] == 0
    assert sum(episode.hold) < 20
    assert timing.ticks >= 60


def test_a_policy_300_ms_late_means_holds_and_no_stale_command(stand: Stand) -> None:
    """Every answer is too old when it arrives: the arm is held at its measured pose."""
    stand.start_robot()
    stand.start_policy(delay_ms=300)
    episode, _, answers = hand_over(stand, 60)
    counts = judged(stand, episode.session)
    assert counts["stale_executed"] == counts["violations"] == 0
    assert answers["answered"] > 1
    assert episode.chunks["too_old"] > 1
    assert all(episode.hold)
    measured = np.array([line["measured_rad"] for line in executed(stand, episode.session)])
    assert np.abs(measured - measured[0]).max() < STILL_RAD


def test_a_killed_policy_means_a_held_arm_and_a_new_one_moves_it_again(stand: Stand) -> None:
    """Within the age limit of the kill the arm holds; when the policy is back the arm goes on."""
    stand.start_robot()
    stand.start_policy()
    killed_ns: list[int] = []

    def kill() -> None:
        killed_ns.append(time.monotonic_ns())
        stand.kill("policy")

    # the loop begins when robot and policy are up; the kill waits until the arm has moved for a second
    began = threading.Thread(
        target=lambda: (moving(stand, 30), kill(), time.sleep(1.0), stand.start_policy())
    )
    began.start()
    episode, _, _ = hand_over(stand, 200)
    began.join(timeout=30)
    lines = executed(stand, episode.session)
    silent = [
        line for line in lines if killed_ns[0] + MAX_AGE_NS < line["at_ns"] < killed_ns[0] + 900_000_000
    ]
    assert len(silent) > 5
    assert all(line["hold"] for line in silent)
    settled = np.array([line["measured_rad"] for line in silent[5:]])
    assert np.abs(settled - settled[0]).max() < STILL_RAD
    assert not lines[-1]["hold"], "the arm did not go on"
    counts = judged(stand, episode.session)
    assert counts["stale_executed"] == counts["violations"] == 0


def moving(stand: Stand, ticks: int) -> None:
    """Waits until the robot has executed so many moving commands."""
    end_s = time.monotonic() + START_S
    log = stand.directory / "robot" / "commands.jsonl"
    while time.monotonic() < end_s:
        lines = read_log(log) if log.exists() else []
        if sum(line["line"] == "executed" and not line["hold"] for line in lines) > ticks:
            return
        time.sleep(0.05)
    raise AssertionError(f"the arm never moved for {ticks} ticks")


def test_a_killed_robot_ends_the_hand_over_with_a_hardware_error(stand: Stand) -> None:
    """The bridge notices the silence within about a second and says so."""
    stand.start_robot()
    stand.start_policy()
    watcher = threading.Thread(target=lambda: (moving(stand, 20), stand.kill("robot")))
    watcher.start()
    with pytest.raises(HardwareError, match="silent for"):
        hand_over(stand, 400)
    watcher.join(timeout=30)


def test_a_stop_in_the_middle_holds_the_arm_at_once(stand: Stand) -> None:
    """The job is cancelled while the arm moves: the last command is a hold, and the arm stays there."""
    stand.start_robot()
    stand.start_policy()
    asked: list[int] = []

    def may_go_on() -> None:
        asked.append(time.monotonic_ns())
        if len(asked) == 8:
            raise Cancelled

    with pytest.raises(Cancelled):
        hand_over(stand, 400, may_go_on)
    time.sleep(1.0)
    after = [line for line in stand.lines if line["at_ns"] > asked[-1]]
    last = [line for line in after if line["line"] == "received"][-1]
    assert last["hold"]
    held = [line for line in after if line["line"] == "executed" and line["at_ns"] > last["at_ns"]]
    assert last["at_ns"] - asked[-1] < 4 * PERIOD_NS
    assert len(held) > 10
    assert {line["hold"] for line in held} == {"commander", "watchdog"}
    assert len({tuple(line["target_rad"]) for line in held}) == 1
    before = [line for line in stand.lines if line["line"] == "executed" and line["at_ns"] < asked[-1]]
    assert not before[-1]["hold"], "the arm was not moving when it was stopped"


def test_a_bridge_that_stops_speaking_leaves_the_arm_held(stand: Stand) -> None:
    """After the last command the robot holds its measured pose, by age and then by watchdog."""
    stand.start_robot()
    stand.start_policy()
    episode, _, _ = hand_over(stand, 60)
    stopped_ns = time.monotonic_ns()
    time.sleep(1.5)
    lines = executed(stand, episode.session)
    silent = [line for line in lines if line["at_ns"] > stopped_ns + MAX_AGE_NS]
    assert len(silent) > 10
    assert {line["hold"] for line in silent} <= {"expired", "watchdog"}
    settled = np.array([line["measured_rad"] for line in silent[5:]])
    assert np.abs(settled - settled[0]).max() < STILL_RAD
    assert judged(stand, episode.session)["stale_executed"] == 0
