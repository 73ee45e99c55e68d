"""The make targets of stages and containers: where they run, what they name, and what they refuse."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAGES = ("collect", "dataset", "train", "evaluate", "export", "deploy", "report")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def dry(*arguments: str) -> str:
    done = make("--dry-run", "--no-print-directory", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_where_it_is_told(stage: str) -> None:
    """RUN=local, compose and k8s submit the same pipeline up to the same stage under the same name."""
    asked = ("PIPELINE=pipelines/smoke.yaml", "NAME=lab")
    here = dry(stage, *asked)
    assert f".venv/bin/sim2or run pipelines/smoke.yaml --run lab --until {stage}" in here
    there = dry(stage, *asked, "RUN=compose")
    told = f"pipeline run /app/pipelines/smoke.yaml --run lab --until {stage} --no-services"
    assert f"docker compose run --rm --no-deps {told}" in there
    assert f"k8s run pipelines/smoke.yaml --run lab --until {stage}" in dry(stage, *asked, "RUN=k8s")


def test_a_run_is_called_like_its_pipeline() -> None:
    """Without NAME a run has the pipeline's name; FULL=1 asks the large question in the same run."""
    assert "smoke.yaml --run smoke --until train" in dry("train", "PIPELINE=pipelines/smoke.yaml")
    assert "handover-full.yaml --run handover --until evaluate" in dry("evaluate", "FULL=1")


def test_what_is_wrong_is_told() -> None:
    """An unknown place and a missing number each end with the valid choices."""
    nowhere = make("collect", "RUN=lab")
    assert nowhere.returncode == 2
    assert "valid: local, compose, k8s. A run's name is NAME=lab" in nowhere.stderr
    for wrong in ("N=", "N=0"):
        assert "make scale-sim N=4" in make("scale-sim", wrong).stderr


def test_the_lists_are_whole() -> None:
    """The Makefile starts every service of compose that stays, and builds every image that there is."""
    text = (ROOT / "Makefile").read_text()
    services = set(yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())["services"])
    assert set(listed(text, "CONTAINERS")) == services - {"keys", "pipeline"}
    recipes = {path.parent.name for path in (ROOT / "services").glob("*/Dockerfile")}
    assert set(listed(text, "IMAGES")) == recipes | {"runner"}


def listed(makefile: str, name: str) -> list[str]:
    found = re.search(rf"^{name} := (.*)$", makefile, re.MULTILINE)
    assert found
    return found[1].split()
