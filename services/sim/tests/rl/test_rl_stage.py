"""The reinforce stage: it goes on where it was stopped and refuses what does not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sim2or.errors import ConfigError, JobError
from sim2or.messages.reinforce import PPOSpec, ReinforceSpec
from sim2or.model_card import ModelCard
from sim2or.stage import Cancelled
from sim2or_sim.rl.contract import Contract
from sim2or_sim.rl.stage import CURVE_FILE, JOURNAL_FILE, RESUME_DIRECTORY, TRIALS_FILE, run
from sim2or_sim.rl.trials import Trials

SMALL = ReinforceSpec(
    num_envs=8,
    iterations=6,
    checkpoint_every=2,
    threads=1,
    evaluate_list="validation",
    evaluate_episodes=5,
    ppo=PPOSpec(num_steps_per_env=8, hidden_dims=(8,)),
)
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_rl_stage import SMALL, Job
from sim2or_sim.rl.stage import run

class Slow(Job):
    def progress(self, done, total, unit, **metrics):
        print(done, flush=True)
        sys.stdin.readline()

run(SMALL, Slow(Path({work!r})))
"""


@dataclass
class Job:
    """A context without a bus, cancelled at the report of an iteration if told to."""

    work: Path
    cancel_at: int = -1
    digests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    shard: int = 0
    shards: int = 1

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        """Raises when the job was told to stop."""
        assert (total, unit) == (SMALL.iterations, "iterations")
        if done == self.cancel_at:
            raise Cancelled


def learnt(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every number that was learnt."""
    names = ("actor", "critic", "optimiser")
    return {
        f"{name}.{key}": value
        for name in names
        for key, value in load_file(checkpoint / f"{name}.safetensors").items()
    }


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The checkpoint of a run that nobody stopped."""
    return run(SMALL, Job(tmp_path_factory.mktemp("whole"))).outputs["checkpoint"]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    """Stopped after iteration 3, one past its last checkpoint, it saves first and ends with the same bits."""
    with pytest.raises(Cancelled):
        run(SMALL, Job(tmp_path, cancel_at=3))
    assert [path.name for path in (tmp_path / RESUME_DIRECTORY).iterdir()] == ["iteration-00000003"]
    result = run(SMALL, Job(tmp_path))
    assert result.summary["resumed_from"] == 3
    assert equal(learnt(whole), learnt(result.outputs["checkpoint"]))
    lines = [json.loads(line) for line in (result.outputs["checkpoint"] / JOURNAL_FILE).open()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_killed_run_goes_on_from_its_last_checkpoint(whole: Path, tmp_path: Path) -> None:
    """Killed in its fifth iteration it goes on from the fourth and ends with the same bits."""
    code = SCRIPT.format(here=str(Path(__file__).parent), work=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for done in range(5):
        assert process.stdout.readline() == f"{done}\n"
        process.stdin.write("\n")
        process.stdin.flush()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    result = run(SMALL, Job(tmp_path))
    assert result.summary["resumed_from"] in (4, 6)
    assert equal(learnt(whole), learnt(result.outputs["checkpoint"]))


def test_another_question_never_resumes(tmp_path: Path) -> None:
    """A workspace of another seed is refused, naming what to remove."""
    with pytest.raises(Cancelled):
        run(SMALL, Job(tmp_path, cancel_at=2))
    with pytest.raises(JobError, match="remove"):
        run(SMALL.model_copy(update={"seed": 1}), Job(tmp_path))


def test_what_comes_out_says_what_it_is(whole: Path) -> None:
    """Beside the networks lie contract, curve and every trial by its seed; the card names the channels."""
    assert Contract.read(whole).task == "reach"
    assert (whole / CURVE_FILE).read_bytes().startswith(b"\x89PNG")
    trials = json.loads((whole / TRIALS_FILE).read_text())
    assert (trials["list"], trials["episodes"], len(trials["by_seed"])) == ("validation", 5, 5)
    card = ModelCard.read(whole.parent / "model")
    assert {name: spec.unit for name, spec in card.channels.items()} == {
        "command_rad": "rad",
        "target_m": "m",
    }
    assert (card.horizon, card.policy, card.privileged) == (1, "ppo-reach", False)
    assert Contract.read(whole.parent / "model") == Contract.read(whole)


def test_learning_begins_at_an_input_checkpoint(whole: Path, tmp_path: Path) -> None:
    """With no iterations what comes out is what went in, judged anew."""
    judged = SMALL.model_copy(update={"iterations": 0, "evaluate_episodes": 3})
    job = Job(tmp_path, inputs={"checkpoint": [whole]})
    job.progress = lambda *given, **metrics: None  # type: ignore[method-assign]
    result = run(judged, job)
    assert equal(learnt(whole), learnt(result.outputs["checkpoint"]))
    assert (result.summary["episodes"], result.summary["iterations"]) == (3, 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"goal": "grasp"}, "contract"), ({"ppo": PPOSpec(hidden_dims=(16,))}, "hidden_dims is")],
)
def test_a_checkpoint_that_does_not_fit_is_refused(whole: Path, tmp_path: Path, changes, named) -> None:
    """Another task or another network is named with both values."""
    with pytest.raises(ConfigError, match=named):
        run(SMALL.model_copy(update=changes), Job(tmp_path, inputs={"checkpoint": [whole]}))


def test_an_unknown_instrument_is_refused(tmp_path: Path) -> None:
    """The valid ones are listed."""
    with pytest.raises(ConfigError, match=r"'spoon'.*scalpel"):
        run(SMALL.model_copy(update={"instrument": "spoon"}), Job(tmp_path))


def test_trials_report_an_interval() -> None:
    """Nine of ten successes are 90 % [59.6, 98.2]: Wilson's interval by hand."""
    found = Trials(np.array([True] * 9 + [False]), np.full(10, 0.004)).report("validation")
    assert (found["successes"], found["error_median_mm"]) == (9, 4.0)
    assert found["wilson_95"] == pytest.approx([0.5958, 0.9821], abs=1e-4)
