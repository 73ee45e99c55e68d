"""Wall clocks are wrong and jump: leases follow Redis's time, ages the monotonic clock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stand import Stand, executed, hand_over, judged
from yard import LEASE_S, PATHS, Yard

HOUR_S = 3600.0

SHIM = '''\
"""Shifts this process's wall clock by what a file says, read again at every look."""
import datetime, os, time
_real, _real_ns, _path = time.time, time.time_ns, os.environ["WALL_CLOCK_SHIFT"]
_datetime = datetime.datetime
def _shift():
    with open(_path) as file:
        return float(file.read() or 0)
class Shifted(_datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)
time.time = lambda: _real() + _shift()
time.time_ns = lambda: _real_ns() + int(_shift() * 1e9)
datetime.datetime = Shifted
'''


class WallClock:
    """A wall clock of some processes that is wrong by as much as we like, and can jump."""

    def __init__(self, root: Path) -> None:
        self._shift = root / "shift"
        (root / "shim").mkdir()
        (root / "shim" / "sitecustomize.py").write_text(SHIM)
        self.shift(0)
        self._shim = str(root / "shim")

    def shift(self, seconds: float) -> None:
        """Makes it wrong by so much from now on [s]."""
        fresh = self._shift.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.rename(self._shift)

    @property
    def variables(self) -> dict[str, str]:
        """The environment of processes that look at it."""
        return {
            "WALL_CLOCK_SHIFT": str(self._shift),
            "PYTHONPATH": os.pathsep.join([self._shim, *PATHS, os.environ.get("PYTHONPATH", "")]),
        }


@pytest.fixture
def wall(tmp_path: Path) -> WallClock:
    """A clock of its own."""
    return WallClock(tmp_path)


@pytest.mark.faults("F14")
def test_the_shim_shifts_the_wall_clock_and_nothing_else(wall: WallClock) -> None:
    """A process with the shim sees another time of day and the same monotonic time."""
    wall.shift(HOUR_S)
    program = "import time; from sim2or.clock import utc_now, now_ns; print(time.time(), now_ns(), utc_now())"
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | wall.variables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert float(told[0]) - time.time() == pytest.approx(HOUR_S, abs=60)
    assert int(told[1]) / 1e9 == pytest.approx(time.monotonic(), abs=60)
    shown_s = datetime.fromisoformat(told[2]).timestamp()
    assert shown_s - time.time() == pytest.approx(HOUR_S, abs=60)


@pytest.mark.faults("F14")
@pytest.mark.parametrize("shift_s", [HOUR_S, -HOUR_S], ids=["an hour ahead", "an hour behind"])
def test_an_agent_whose_clock_is_wrong_neither_loses_nor_takes_jobs(
    yard: Yard, wall: WallClock, shift_s: float
) -> None:
    """While its clock is wrong, and jumps, a job that outlasts its lease stays with its agent."""
    wall.shift(shift_s)
    yard.agent(wall.variables)
    held = yard.submit("held", steps=12, pause_s=0.3)
    yard.stepped(held)
    yard.agent()
    yard.stepped(held, 6)
    wall.shift(-shift_s)
    record = yard.wait(held, "done")
    assert (record.attempts, yard.kinds(held)["job.lost"]) == (1, 0)
    assert len(yard.lines("starts", held)) == 1
    assert record.finished_ms is not None
    assert record.started_ms is not None
    assert (record.finished_ms - record.started_ms) / 1000 == pytest.approx(12 * 0.3, abs=30)


@pytest.mark.faults("F14")
def test_a_lost_job_moves_after_its_lease_whatever_the_clocks_say(yard: Yard, wall: WallClock) -> None:
    """The heir's clock is an hour behind: it still takes the job of a killed agent when the lease is over."""
    first = yard.agent()
    job_id = yard.submit(steps=10, pause_s=0.2)
    yard.stepped(job_id)
    wall.shift(-HOUR_S)
    yard.agent(wall.variables)
    first.kill()
    killed_ns = time.monotonic_ns()
    first.wait()
    start = yard.started(job_id, 2)
    print(f"next start {(start['at_ns'] - killed_ns) / 1e9:.2f} s after the kill, lease {LEASE_S:g} s")
    assert yard.wait(job_id, "done").attempts == 2


@pytest.mark.faults("F14")
@pytest.mark.parametrize("shift_s", [HOUR_S, -HOUR_S], ids=["an hour ahead", "an hour behind"])
def test_a_policy_whose_clock_is_wrong_moves_the_arm_as_ever(
    stand: Stand, wall: WallClock, shift_s: float
) -> None:
    """Ages are judged by the monotonic clock: nothing stale, nothing refused, in spite of a jump."""
    wall.shift(shift_s)
    stand.variables |= wall.variables
    stand.start_robot()
    stand.start_policy()
    asked: list[int] = []

    def jump() -> None:
        asked.append(1)
        if len(asked) == 5:
            wall.shift(-shift_s)

    episode, _, _ = hand_over(stand, 90, jump)
    counts = judged(stand, episode.session)
    assert len(asked) >= 5
    assert counts["stale_executed"] == counts["stale_received"] == counts.get("refused", 0) == 0
    assert sum(not line["hold"] for line in executed(stand, episode.session)) > 30
