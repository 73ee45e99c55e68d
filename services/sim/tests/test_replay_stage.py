"""Replays in the rollout stage: the same engine makes the same motion of the same commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sim2or.errors import JobError
from sim2or.messages.rollout import RolloutSpec
from sim2or.rollout import motion
from sim2or.rollout.motion import motion_path
from sim2or_sim.rollout import run


@dataclass
class Job:
    """A context without a bus."""

    work: Path
    inputs: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    digests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shard: int = 0
    shards: int = 1

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        """Goes on."""


def spec(**changes: object) -> RolloutSpec:
    films = {"films_successes": 0, "films_failures": 0}
    return RolloutSpec.model_validate({"trials": 3, "list": "validation"} | films | changes)


def lines(work: Path) -> list[dict]:
    return [json.loads(line) for line in (work / "rollouts" / "trials.jsonl").read_text().splitlines()]


def test_mujoco_against_mujoco_has_no_gap(tmp_path: Path) -> None:
    """The expert's commands, replayed open loop, move arm and instrument bit for bit as they did."""
    run(spec(actor="expert"), Job(tmp_path / "expert"))
    recorded = tmp_path / "expert" / "rollouts"
    replay = Job(tmp_path / "replay", {"commands": [recorded]}, {"commands": ["sha256:c"]})
    result = run(spec(actor="replay", num_envs=2), replay)
    assert result.summary["successes"] == 3
    for line, original in zip(lines(replay.work), lines(tmp_path / "expert"), strict=True):
        assert line["commands"] == "sha256:c"
        assert (line["safety"], line["latency_ticks"], line["engine"]) == ({}, 0, "mujoco")
        assert line["grasped_s"] == original["grasped_s"]
        one, two = (
            motion.read(motion_path(directory, line["seed"]))
            for directory in (recorded, replay.work / "rollouts")
        )
        for name in ("time_ns", "measured_rad", "commanded_rad", "instrument", "taken"):
            np.testing.assert_array_equal(one[name], two[name])


def test_a_replay_without_commands_is_refused(tmp_path: Path) -> None:
    """The error names the input that is missing."""
    with pytest.raises(JobError, match="needs the input 'commands'"):
        run(spec(actor="replay"), Job(tmp_path))
