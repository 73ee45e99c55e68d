"""The train stage as a whole, on a tiny dataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sim2or.errors import ConfigError, JobError
from sim2or.messages.train import TrainSpec
from sim2or.model_card import ModelCard
from sim2or.stage import Cancelled
from sim2or_trainer import resume
from sim2or_trainer.stage import CHECKPOINT_DIRECTORY, JOURNAL_FILE, RESUME_DIRECTORY, run

sys.path.insert(0, str(Path(__file__).parent))
from small_policy import SMALL


def spec(**fields: object) -> TrainSpec:
    """A run of seconds."""
    values = {"steps": 6, "batch_size": 8, "threads": 1, "log_every_steps": 1, "eval_every_steps": 3}
    overrides = {"policy_overrides": SMALL, "checkpoint_every_steps": 3}
    return TrainSpec(**(values | overrides | fields))


def weights(context: object) -> dict[str, torch.Tensor]:
    """The trained weights of a context's run."""
    return load_file(context.work / CHECKPOINT_DIRECTORY / "model.safetensors")


def test_learns_from_pixels(context: Callable) -> None:
    """The training loss falls to a fraction when pictures decide the actions."""
    attempt = context()
    run(spec(steps=80, batch_size=16, log_every_steps=10, eval_every_steps=80, lr=3e-3), attempt)
    losses = [metrics["l1_loss"] for *_, metrics in attempt.reports if "l1_loss" in metrics]
    assert losses[-1] < 0.4 * losses[0]


def test_state_preset_says_privileged(context: Callable) -> None:
    """The state preset learns without pictures and is marked as privileged in its card and summary."""
    attempt = context()
    result = run(spec(preset="state"), attempt)
    card = ModelCard.read(result.outputs["checkpoint"])
    assert card.privileged
    assert [tensor.name for tensor in card.inputs] == [
        "observation.state",
        "observation.privileged.instrument",
    ]
    assert "PRIVILEGED" in result.summary["preset"]


def test_card_states_the_served_interface(context: Callable) -> None:
    """The card names robot, cameras, requests, horizon and the dataset's digest, no simulator truth."""
    card = ModelCard.read(run(spec(), context()).outputs["checkpoint"])
    assert (card.policy, card.robot, card.privileged, card.horizon) == ("compact_act", "so101", False, 20)
    assert card.cameras == {"room": (96, 96, 3), "wrist": (96, 96, 3)}
    assert set(card.requests) == {"Hand me the forceps", "Hand me the scalpel", "Hand me the scissors"}
    assert card.sources == {"dataset": ("sha256:tiny",)}


def test_lerobot_loads_the_checkpoint(context: Callable) -> None:
    """LeRobot's own loader takes the checkpoint strictly and runs it through its processors."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    directory = run(spec(), context()).outputs["checkpoint"]
    config = PreTrainedConfig.from_pretrained(directory)
    policy = get_policy_class(config.type).from_pretrained(directory, strict=True)
    before, after = make_pre_post_processors(config, str(directory))
    observation = {"observation.state": torch.zeros(6)}
    observation |= {key: torch.rand(feature.shape) for key, feature in config.image_features.items()}
    actions = after(policy.predict_action_chunk(before(observation)))
    assert actions.shape == (1, 20, 6)
    assert actions.isfinite().all()


def test_same_seed_same_weights(context: Callable) -> None:
    """Two runs of one spec give bit-identical weights; another seed gives others."""
    once, again, other = context("a"), context("b"), context("c")
    run(spec(), once)
    run(spec(), again)
    run(spec(seed=1), other)
    first, second, third = weights(once), weights(again), weights(other)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)


@pytest.mark.parametrize("cancel_at", [4, 5])
def test_resumed_run_equals_an_uninterrupted_one(context: Callable, cancel_at: int) -> None:
    """A run cut between checkpoints goes on where it was to bit-identical weights and loss curve."""
    whole = context("whole")
    run(spec(), whole)
    with pytest.raises(Cancelled):
        run(spec(), context("cut", cancel_at=cancel_at))
    resumed = context("cut")
    summary = run(spec(), resumed).summary
    assert summary["resumed_from_step"] == cancel_at
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert _curve(whole.work) == _curve(resumed.work)


def test_finished_run_is_only_written_again(context: Callable) -> None:
    """A job repeated after its last step takes no further step and gives the same weights."""
    run(spec(), context())
    before = weights(context())
    again = run(spec(), context())
    assert again.summary["resumed_from_step"] == 6
    assert all(torch.equal(before[key], tensor) for key, tensor in weights(context()).items())


def test_half_written_checkpoint_is_ignored(context: Callable) -> None:
    """A checkpoint that a kill left unfinished does not disturb the next attempt."""
    attempt = context()
    (attempt.work / RESUME_DIRECTORY / ".step-00000003").mkdir(parents=True)
    assert run(spec(), attempt).summary["resumed_from_step"] == 0


def test_another_question_does_not_resume(context: Callable) -> None:
    """A work directory of another spec is refused, naming what to remove."""
    run(spec(), context())
    with pytest.raises(JobError, match="start over"):
        run(spec(lr=1e-3), context())


def test_checkpoints_are_safetensors_and_json(context: Callable) -> None:
    """Nothing that is saved can hold code."""
    attempt = context()
    run(spec(), attempt)
    suffixes = {path.suffix for path in attempt.work.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jsonl"}


def test_tampered_checkpoint_is_refused(context: Callable, tmp_path: Path) -> None:
    """A checkpoint lacking a tensor is not silently filled with random numbers."""
    attempt = context()
    run(spec(), attempt)
    progress, tensors = _only_checkpoint(attempt.work)
    del tensors["model"]["model.action_head.weight"]
    resume.save(attempt.work / RESUME_DIRECTORY, progress, tensors)
    with pytest.raises(RuntimeError, match="action_head"):
        run(spec(), context())


def test_wall_limit_ends_training_early_and_says_so(context: Callable) -> None:
    """Out of time, a usable checkpoint is still written and the summary says that it was cut short."""
    result = run(spec(steps=100000, wall_limit_s=0.2), context())
    assert result.summary["cut_short"]
    assert 0 < result.summary["steps"] < 100000


def test_stock_act_trains_too(context: Callable) -> None:
    """LeRobot's own ACT is trained by the same stage, from pixels and joints only."""
    overrides = {
        "pretrained_backbone_weights": None,
        "dim_model": 32,
        "n_heads": 2,
        "dim_feedforward": 64,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
    }
    attempt = context()
    result = run(spec(policy="act", policy_overrides=overrides, steps=2, batch_size=2), attempt)
    card = ModelCard.read(result.outputs["checkpoint"])
    assert card.policy == "act"
    assert not card.privileged


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "compact_atc"}, "did you mean 'compact_act'"),
        ({"policy_overrides": {"dim_modle": 3}}, "did you mean 'dim_model'"),
        ({"policy_overrides": {"stem_channels": [5, 64]}}, "multiples of 16"),
        ({"policy": "act", "preset": "state", "policy_overrides": {}}, "needs policy compact_act"),
    ],
)
def test_wrong_settings_are_named(context: Callable, fields: dict[str, object], message: str) -> None:
    """A policy or a field that does not exist is refused with the valid choices before anything is read."""
    with pytest.raises(ConfigError, match=message):
        run(spec(**fields), context())


def test_one_dataset_is_needed(context: Callable) -> None:
    """Without a dataset the message says how to give one."""
    attempt = context()
    attempt.inputs = {}
    with pytest.raises(ConfigError, match="--input dataset=DIR"):
        run(spec(), attempt)


def test_progress_counts_steps_with_losses(context: Callable) -> None:
    """Progress names steps, the loss, and the held-out loss once it is known."""
    attempt = context()
    run(spec(), attempt)
    done, total, unit, metrics = attempt.reports[-1]
    assert (done, total, unit) == (6, 6, "steps")
    assert {"loss", "l1_loss", "pose_loss", "heldout_loss"} <= set(metrics)


def _curve(work: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (work / JOURNAL_FILE).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "train_s"} for line in lines]


def _only_checkpoint(work: Path) -> tuple[resume.Progress, dict[str, dict[str, torch.Tensor]]]:
    (found,) = (work / RESUME_DIRECTORY).glob("step-*")
    progress = resume.Progress(**json.loads((found / resume.STATE_FILE).read_text()))
    return progress, {path.stem: load_file(path) for path in found.glob("*.safetensors")}


def test_a_result_says_where_it_was_made(context: Callable) -> None:
    """The summary names the device; without a GPU, auto is the CPU and cuda is refused with a remedy."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    assert run(spec(steps=1), context()).summary["device"] == found
    if found == "cpu":
        with pytest.raises(ConfigError, match=r"no GPU here.*sim2or doctor"):
            run(spec(device="cuda"), context("gpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_a_gpu_learns_and_resumes(context: Callable) -> None:
    """On a GPU the loss falls, a cut run goes on from its checkpoint, and a CPU loads what is kept."""
    attempt = context()
    run(spec(steps=80, batch_size=16, log_every_steps=10, eval_every_steps=80, lr=3e-3), attempt)
    losses = [metrics["l1_loss"] for *_, metrics in attempt.reports if "l1_loss" in metrics]
    assert losses[-1] < 0.4 * losses[0]
    with pytest.raises(Cancelled):
        run(spec(), context("cut", cancel_at=5))
    assert run(spec(), context("cut")).summary["resumed_from_step"] == 5
    assert all(tensor.device.type == "cpu" for tensor in weights(context("cut")).values())
