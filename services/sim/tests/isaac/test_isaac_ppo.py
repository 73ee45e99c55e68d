"""PPO on Isaac Lab's environments: told to stop it keeps a checkpoint, goes on there, judges and exports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sim2or.messages.reinforce import PPOSpec, ReinforceSpec
from sim2or.stage import Cancelled
from sim2or_sim.rl.contract import Contract
from sim2or_sim.rl.stage import run

pytestmark = pytest.mark.isaac

SPEC = ReinforceSpec(
    engine="isaaclab",
    num_envs=8,
    iterations=2,
    checkpoint_every=2,
    evaluate_list="validation",
    evaluate_episodes=4,
    ppo=PPOSpec(num_steps_per_env=62, hidden_dims=(16,)),
)


@dataclass
class Job:
    """A context without a bus, told to stop at the report of an iteration."""

    work: Path
    stop_at: int = -1
    digests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    shard: int = 0
    shards: int = 1

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        """Raises when it must stop."""
        if done == self.stop_at:
            raise Cancelled


def test_ppo_stops_goes_on_judges_and_exports(tmp_path: Path) -> None:
    """Stopped after its first iteration it does only the second, and its export says what torch says."""
    with pytest.raises(Cancelled):
        run(SPEC, Job(tmp_path, stop_at=1))
    result = run(SPEC, Job(tmp_path))
    summary = result.summary
    assert (summary["resumed_from"], summary["iterations"], summary["episodes"]) == (1, 2, 4)
    assert summary["onnx_max_abs_diff_rad"] < 1e-4
    assert Contract.read(result.outputs["model"]).task == "reach"
    lines = (result.outputs["checkpoint"] / "learning.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2]
    assert all("reward" in json.loads(line) for line in lines)
    assert (result.outputs["checkpoint"] / "learning.png").is_file()
