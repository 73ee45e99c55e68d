"""A run ends by saying what it showed, the missed goals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sim2or.cli.closing import closing_lines, place_lines
from sim2or.goals import at_least, at_most
from sim2or.messages.job import Job, JobRecord, JobResult
from sim2or.runner import Finished, StepState
from sim2or.stages import load_table
from sim2or.step import Step

FIGURES = {"trials": 200, "successes": 189, "success_rate": 0.945, "success_lower95": 0.9042}


def evaluated(summary: dict[str, Any]) -> StepState:
    """An evaluate step that is done."""
    record = JobRecord(
        job_id="evaluate-1",
        job=Job(stage="evaluate", key="k"),
        state="done",
        result=JobResult(outputs={"verdict": "sha256:" + "a" * 64}, summary=summary),
    )
    return StepState(Step("evaluate", load_table().stage("evaluate"), {}), {0: record})


def test_a_report_closes_the_run(tmp_path: Path) -> None:
    """Success with its interval, goals counted, missed ones by name; the total is the whole run's."""
    goals = [
        at_least("success_rate", 0.945, 0.97),
        at_most("violations", 0, 0),
        at_most("total_s", 590.0, 600),
    ]
    summary = {
        **FIGURES,
        "success_upper95": 0.969,
        "goals": [goal.model_dump(mode="json") for goal in goals],
        "wall_s": {"total": 612.0},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    lines = closing_lines(Finished({}, tmp_path / "index.html", 612.0))
    assert lines == [
        "success: 94.5 % of 200 trials (189 hand-overs; 95 % interval 90.4 % … 96.9 %)",
        "goals: 1 of 3 met",
        "  missed: success rate 94.5 % (goal: at least 97 %)",
        "  missed: total 612 s (goal: at most 600 s)",
    ]
    kept = json.loads((tmp_path / "summary.json").read_text())["goals"][-1]
    assert (kept["measured"], kept["met"]) == (612.0, False)


def test_a_run_without_a_report_says_its_verdict() -> None:
    """`--until evaluate` prints the verdict: the worst model, every model, and what it misses."""
    models = [
        {"artifact": f"sha256:{letter * 64}", "trials": 200, "successes": n}
        for letter, n in (("a", 189), ("b", 196))
    ]
    verdict = {
        **FIGURES,
        "success_upper95": 0.969,
        "gate_met": False,
        "gate_reasons": ["success 94.5% is below the goal of 97.0%"],
        "models": models,
    }
    assert closing_lines(Finished({"evaluate": evaluated(verdict)}, None, 1.0)) == [
        "success: 94.5 % of 200 trials (189 hand-overs; 95 % interval 90.4 % … 96.9 %), the worst model",
        "  model sha256:aaaaaaaaaaaa: 189 of 200",
        "  model sha256:bbbbbbbbbbbb: 196 of 200",
        "goals: missed",
        "  missed: success 94.5% is below the goal of 97.0%",
    ]


def test_a_run_without_evidence_claims_nothing() -> None:
    """A run that stops before its verdict closes without a word about success."""
    assert closing_lines(Finished({}, None, 1.0)) == []


def test_a_run_in_a_container_says_how_to_get_its_report(tmp_path: Path) -> None:
    """A command to fetch files, where one is set, names the report's directory."""
    page = tmp_path / "report" / "index.html"
    finished = Finished({}, page, 1.0)
    assert place_lines(finished, "") == [f"report: {page}"]
    copied = f"copy it here: docker compose cp evaluator:{tmp_path}/report ."
    assert place_lines(finished, "docker compose cp evaluator:{path} .") == [f"report: {page}", copied]
    assert place_lines(Finished({}, None, 1.0), "cp {path} .") == []
