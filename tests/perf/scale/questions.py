"""The jobs of the benchmark: what the runner asks for the main job's first stage, and what is answered."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from sim2or.messages.job import Job, JobResult, Progress
from sim2or.pipeline import load_pipeline
from sim2or.stages import load_table
from sim2or.step import Step
from sim2or.tracing import new_traceparent

PIPELINE = Path(__file__).parents[3] / "pipelines" / "handover.yaml"
STAGE = "collect"


@cache
def step() -> Step:
    """The stage as the main job configures it: cameras, noise, how many shards."""
    pipeline = load_pipeline(PIPELINE, load_table())
    return next(step for step in pipeline.steps if step.info.name == STAGE)


def configuration(demos: int, *, offset: int = 0) -> dict[str, Any]:
    """Its configuration, with another number of demonstrations.

    Args:
        demos: Demonstrations of all shards.
        offset: How many scenarios to leave out at the beginning.
    """
    return {**step().spec, "demos": demos, "offset": offset}


def question(number: int) -> Job:
    """A job of the size that the runner submits; each number is another question."""
    return Job(
        stage=STAGE,
        key=hashlib.sha256(str(number).encode()).hexdigest(),
        spec=dict(step().spec),
        shard=number % step().jobs,
        shards=step().jobs,
        run_id="handover",
        name=f"{STAGE}[{number % step().jobs}]",
        traceparent=new_traceparent(""),
        code=digest("code"),
    )


def answer(number: int) -> JobResult:
    """A result of the size that the stage records."""
    kept = {"Hand me the scalpel": 11, "Hand me the forceps": 11, "Hand me the scissors": 10}
    summary = {"attempts": 32, "kept": 32, "failed": 0, "failures": {}, "kept_by_request": kept}
    return JobResult(
        outputs={"episodes": digest(f"episodes {number}")},
        kinds={"episodes": "episodes"},
        summary=summary | {"frames": 5077, "mean_s": 5.288541666666667},
    )


def progress(number: int) -> Progress:
    """What the stage tells after each episode."""
    return Progress(
        done=number % 33, total=32.0, unit="demos", eta_s=12.34567, metrics={"kept": 7.0, "failed": 0.0}
    )


def demos_per_job() -> float:
    """How many demonstrations one job of the main job makes."""
    return float(step().spec["demos"]) / step().jobs


def digest(text: str) -> str:
    """A digest as artifacts and code have it."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
