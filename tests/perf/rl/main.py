"""What a run of ``pipelines/reach.yaml`` came to: JSON for the documents, and its learning curve.

Usage: main.py RUN_DIR JSON PNG
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sim2or.artifacts.store import Store
from sim2or.goals import Goal
from sim2or_sim.rl.stage import CURVE_FILE, JOURNAL_FILE, TRIALS_FILE

SUCCESS, WALL_S = 0.95, 300.0


def main(run_dir: Path, json_path: Path, png_path: Path) -> None:
    """Reads the run and its checkpoint, writes both files and says whether the goals were met."""
    stage = json.loads((run_dir / "run.json").read_text())["stages"]["reinforce"]
    (job,) = stage["jobs"]
    checkpoint = Store(run_dir / "store").checkout(job["outputs"]["checkpoint"])
    trials = json.loads((checkpoint / TRIALS_FILE).read_text())
    goals = (
        goal("success on held-out targets", trials["success"], "at least", SUCCESS),
        goal("wall_s", stage["wall_s"], "at most", WALL_S),
    )
    report: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "load_1min": os.getloadavg()[0]},
        "goals": [one.model_dump(mode="json") for one in goals],
        "wall_s": stage["wall_s"],
        "summary": job["summary"],
        "trials": trials,
        "learning": [json.loads(line) for line in (checkpoint / JOURNAL_FILE).open()],
    }
    json_path.write_text(json.dumps(report, indent=1) + "\n")
    shutil.copyfile(checkpoint / CURVE_FILE, png_path)
    for one in goals:
        print(f"{'met   ' if one.met else 'MISSED'} {one.text}")


def goal(name: str, measured: float, rule: Any, limit: float) -> Goal:
    """A goal and whether it was met."""
    met = measured >= limit if rule == "at least" else measured <= limit
    return Goal(name=name, measured=measured, rule=rule, goal=limit, met=met)


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
