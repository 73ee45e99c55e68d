"""The rollout stage with a policy behind a real socket: the recorded expert, served, succeeds again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sim2or.errors import JobError
from sim2or.messages.rollout import RolloutSpec
from sim2or.rollout import motion
from sim2or_sim.rollout import TRIALS, run

ARTIFACT = "sha256:recording"
SCRIPT = Path(__file__).parents[1] / "faults" / "scripted_policy.py"


@dataclass
class Job:
    """A context without a bus."""

    work: Path
    digests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    shard: int = 0
    shards: int = 1

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        """Nobody listens."""


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The expert's commands for the first validation scenario, served as a policy."""
    directory = tmp_path_factory.mktemp("s")
    run(RolloutSpec(trials=1, actor="expert", list="validation", films_successes=0), Job(directory))
    (path,) = (directory / "rollouts").glob("motions/*.npy")
    np.save(directory / "actions.npy", motion.read(path)["commanded_rad"])
    endpoint = f"ipc://{directory}/p"
    monkeypatch.setenv("SIM2OR_POLICY_ENDPOINT", endpoint)
    command = [sys.executable, str(SCRIPT), endpoint, str(directory / "actions.npy"), "1", ARTIFACT]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    yield directory
    process.terminate()
    process.wait(timeout=5)


def test_a_served_recording_succeeds_through_the_stage(served: Path, tmp_path: Path) -> None:
    """The trial names the artifact, asks every fifth tick and holds only for the latency."""
    spec = RolloutSpec(trials=1, list="validation", films_successes=0)
    run(spec, Job(tmp_path, {"policy": [ARTIFACT]}))
    trial = json.loads((tmp_path / "rollouts" / TRIALS).read_text())
    assert trial["success"], trial["failure"]
    assert (trial["artifact"], trial["actor"]) == (ARTIFACT, "policy")
    assert trial["holds"] == trial["latency_ticks"] == 1
    assert trial["chunks"]["accepted"] == pytest.approx(trial["steps"] / 5, abs=1)
    assert trial["stale"] == 0


def test_an_answer_of_another_model_is_refused(served: Path, tmp_path: Path) -> None:
    """Evidence about one model never comes from another."""
    spec = RolloutSpec(trials=1, list="validation")
    with pytest.raises(JobError, match="answered with model sha256:recording, asked for sha256:other"):
        run(spec, Job(tmp_path, {"policy": ["sha256:other"]}))
