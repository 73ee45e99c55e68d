"""Isaac Lab as a pipeline asks for it: jobs on a real bus, workers in an environment of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sim2or.artifacts.store import Store
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.episode import EpisodeFile, read_index

SIM2OR = Path(sys.prefix).with_name(".venv") / "bin" / "sim2or"
PIPELINE = """\
name: isaac
stages:
  - stage: collect
    with: {engine: isaaclab, num_envs: 2, demos: 2}
"""


@pytest.mark.isaac
@pytest.mark.slow
def test_a_pipeline_collects_in_isaac_lab(tmp_path: Path) -> None:
    """The service that has the engine is started and answers the stage; its episodes are as any engine's."""
    (tmp_path / "isaac.yaml").write_text(PIPELINE)
    done = subprocess.run(
        [SIM2OR, "run", "isaac.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    collect = json.loads((tmp_path / "runs/isaac/run.json").read_text())["stages"]["collect"]
    (job,) = collect["jobs"]
    assert collect["stage"] == "collect"
    assert job["job"].startswith("collect-isaaclab-")
    assert (job["summary"]["attempts"], job["summary"]["kept"]) == (2, 2)
    episodes = Store(tmp_path / "runs/isaac/store").checkout(job["outputs"]["episodes"])
    for entry in read_index(episodes):
        with EpisodeFile(episodes / entry.file) as file:
            file.check(load_robot("so101"), load_task("handover"))
