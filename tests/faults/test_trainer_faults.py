"""The real trainer is told to stop in the middle of a run, and another goes on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "services" / "trainer" / "tests"))
from sim2or.messages.job import Job
from sim2or.model_card import ModelCard
from small_policy import SMALL
from yard import GRACE_S, Yard, environment, until

TRAINER_TESTS = Path(__file__).parents[2] / "services" / "trainer" / "tests"
STEPS, CHECKPOINT_EVERY = 400, 20


def datasets() -> ModuleType:
    """The trainer tests' tiny dataset."""
    spec = importlib.util.spec_from_file_location("tiny_dataset", TRAINER_TESTS / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_dataset"] = module
    spec.loader.exec_module(module)
    return module


def trainer(yard: Yard) -> subprocess.Popen[bytes]:
    """Starts the trainer's agent, with leases and grace of a minute's work."""
    longer = {"SIM2OR_LEASE_S": "5", "SIM2OR_GRACE_S": "5", "SIM2OR_PLUGINS": ""}
    with (yard.root / f"trainer-{len(yard.agents)}.log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "sim2or_trainer", "serve"],
            env=environment(yard.root, yard.redis.url, longer),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    yard.agents.append(agent)
    return agent


@pytest.mark.faults("F19")
def test_a_preempted_training_goes_on_from_its_checkpoint(yard: Yard, tmp_path: Path) -> None:
    """SIGTERM in the middle: the lease is free when the agent has ended, and the heir repeats few steps."""
    tiny = datasets().write_dataset(tmp_path / "tiny")
    dataset = yard.store.put(tiny, kind="dataset").digest
    spec = {
        "steps": STEPS,
        "batch_size": 8,
        "threads": 1,
        "log_every_steps": 1,
        "eval_every_steps": STEPS,
        "checkpoint_every_steps": CHECKPOINT_EVERY,
        "policy_overrides": SMALL,
    }
    first = trainer(yard)
    job_id = yard.jobs.submit(Job(stage="train", key="k", spec=spec, inputs={"dataset": (dataset,)})).job_id

    def far_enough() -> bool:
        progress = yard.jobs.get(job_id).progress
        return progress is not None and progress.unit == "steps" and progress.done > 2 * CHECKPOINT_EVERY

    until(far_enough, "progress of the training", timeout_s=60)
    first.terminate()
    assert first.wait(timeout=20 + GRACE_S) == 0
    assert yard.jobs.get(job_id).state == "queued"
    stopped_at = sorted((yard.root / "work" / job_id).rglob("step-*"))
    assert len(stopped_at) == 1, "exactly one complete checkpoint"
    trainer(yard)
    record = yard.wait(job_id, "done", timeout_s=90)
    assert record.result is not None
    kinds = yard.kinds(job_id)
    assert (kinds["job.released"], kinds["job.lost"], record.strikes, record.attempts) == (1, 0, 0, 2)
    resumed = record.result.summary["resumed_from_step"]
    assert stopped_at[0].name == f"step-{resumed:08d}"
    assert resumed >= 2 * CHECKPOINT_EVERY
    card = ModelCard.read(yard.store.checkout(record.result.outputs["checkpoint"]))
    assert card.sources == {"dataset": (dataset,)}
    print(f"resumed from step {resumed} of {STEPS} on {os.cpu_count()} cores")
