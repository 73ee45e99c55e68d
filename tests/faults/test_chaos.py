"""A minute of chaos: everything at once, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).with_name("chaos.py")


def soaked(out: Path, *, minutes: float, seed: int) -> dict:
    """Runs the soak and returns its report."""
    command = [sys.executable, str(CHAOS), "--minutes", str(minutes), "--seed", str(seed), "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60 * minutes + 240, check=False)
    print(ran.stderr)
    assert ran.returncode == 0, ran.stderr[-3000:]
    report: dict = json.loads(out.read_text())
    return report


def check(report: dict) -> None:
    """What the report must say."""
    assert not report["lost"]
    assert report["recorded"] == report["recorded_unique"]
    assert not report["ran_twice_at_once"]
    assert report["submitted"] == sum(report["states"].values())
    because = report["restarts_because"]
    assert report["duplicates_executed"] <= sum(because.values())
    assert len(report["faults"]) >= 6


@pytest.mark.faults("F1", "F2", "F4", "F10", "F12", "F13")
def test_a_minute_of_chaos_loses_nothing(tmp_path: Path) -> None:
    """Kills, freezes, cuts, a full disk and poison, mixed: all that was acknowledged has one right end."""
    report = soaked(tmp_path / "chaos.json", minutes=1.0, seed=11)
    check(report)
    assert report["submitted"] > 10


@pytest.mark.deep
@pytest.mark.faults("F1", "F2", "F4", "F10", "F12", "F13")
@pytest.mark.timeout(1500)
def test_ten_minutes_of_chaos_lose_nothing(tmp_path: Path) -> None:
    """The same for ten minutes."""
    check(soaked(tmp_path / "chaos.json", minutes=10, seed=12))
