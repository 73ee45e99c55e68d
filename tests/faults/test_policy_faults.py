"""Faults around the bridge, with real processes: the arm holds, nothing stale moves it, it goes on.

What happened is read from the robot's own command log, never from the bridge's counters.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from sim2or.errors import HardwareError
from sim2or.stage import Cancelled
from stand import MAX_AGE_NS, PERIOD_NS, STILL_RAD, Stand, executed, hand_over, judged, moving

pytestmark = pytest.mark.faults("F7")


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
