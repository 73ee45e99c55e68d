"""The report shows what there is, says what is missing, and needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sim2or.errors import JobError
from sim2or.messages.evaluate import EvaluateSpec
from sim2or.messages.report import ReportSpec
from sim2or_evaluator import evaluate, report

from .conftest import (
    DIGEST,
    LATENCY_MS,
    OTHER,
    WALL_S,
    FakeContext,
    trial_lines,
    write_checkpoint,
    write_dataset,
    write_deployment,
    write_episodes,
    write_model,
    write_trials,
)

MakeContext = Callable[..., FakeContext]
SPEC = ReportSpec(wall_s=WALL_S, summaries={"export": {"latency_ms": LATENCY_MS}})


@pytest.fixture
def evidence(context: MakeContext, tmp_path: Path) -> dict[str, Path]:
    """Artifacts of a whole run by role."""
    trials = write_trials(tmp_path / "t", trial_lines(count=60, failed=(4, 17)), frames=(0, 1, 4))
    judged = context(
        "evaluate",
        trials=trials,
        model=tmp_path,
        expert=write_trials(tmp_path / "expert", trial_lines(count=20, actor="expert")),
        random=write_trials(tmp_path / "random", trial_lines(count=20, failed=range(20), actor="random")),
        torch=write_trials(tmp_path / "torch", trial_lines(count=20, failed=(4,), artifact=OTHER)),
    )
    return {
        "episodes": write_episodes(tmp_path / "episodes"),
        "dataset": write_dataset(tmp_path / "dataset"),
        "checkpoint": write_checkpoint(tmp_path / "checkpoint"),
        "model": write_model(tmp_path / "model"),
        "trials": trials,
        "verdict": evaluate.run(EvaluateSpec(), judged).outputs["verdict"],
        "deployment": write_deployment(tmp_path / "deployment"),
    }


def test_the_page_names_the_world_of_the_trials(context: MakeContext, tmp_path: Path) -> None:
    """Engine, physics and room stand beside the scenario list."""
    world = {"engine": "isaaclab", "physics": "ovphysx", "room": OTHER}
    trials = write_trials(tmp_path / "t", [line | world for line in trial_lines(count=3)])
    judged = context("evaluate", trials=trials, model=tmp_path)
    verdict = evaluate.run(EvaluateSpec(), judged).outputs["verdict"]
    page = (report.run(SPEC, context(verdict=verdict)).outputs["report"] / "index.html").read_text()
    assert f"held-out scenarios in isaaclab with ovphysx, in the room <code>{OTHER[:15]}</code>." in page


def test_summary_has_every_figure(context: MakeContext, evidence: dict[str, Path]) -> None:
    """The summary holds the figures a run is judged by, worked out by hand from the artifacts."""
    out = report.run(SPEC, context(**evidence)).outputs["report"]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["expert_success"], summary["demos"]) == (1.0, 120)
    assert summary["frames"] == 6 * sum(range(140, 160))  # 120 demonstrations of 140 … 159 frames
    assert summary["train_s"] == 298.5
    assert (summary["trials"], summary["successes"]) == (60, 58)
    assert summary["success_lower95"] == pytest.approx(0.8864, abs=1e-3)
    assert {n: s["trials"] for n, s in summary["per_instrument"].items()} == {
        "forceps": 20,
        "scalpel": 20,
        "scissors": 20,
    }
    assert summary["onnx_max_abs_diff"] == 2.1e-6
    assert summary["latency_ms"] == LATENCY_MS
    assert summary["bridge"] == {
        "trials": 20,
        "successes": 19,
        "ticks": 2890,
        "deadline_misses": 4,
        "stale_executed": 0,
        "violations": 0,
    }
    assert summary["wall_s"] == {stage: seconds for stage, seconds in WALL_S.items() if stage != "rollout"}
    assert summary["wall_steps_s"] == WALL_S


def test_page_needs_no_network(context: MakeContext, evidence: dict[str, Path]) -> None:
    """No address, and every file the page refers to lies beside it."""
    out = report.run(SPEC, context(**evidence)).outputs["report"]
    page = (out / "index.html").read_text()
    assert "http" not in page
    assert "//" not in re.sub(r"data:image/jpeg;base64,[^\"]*", "", page)
    links = re.findall(r'(?:src|href)="([^"#]+)"', page)
    files = [link for link in links if not link.startswith("data:")]
    assert files
    assert all((out / link).is_file() for link in files)


def test_every_picture_is_described(context: MakeContext, evidence: dict[str, Path]) -> None:
    """Images, plots and videos say what they show to who cannot see them."""
    page = (report.run(SPEC, context(**evidence)).outputs["report"] / "index.html").read_text()
    pictures = re.findall(r"<(?:img|video)\b[^>]*>|<[^>]*role=\"img\"[^>]*>", page)
    assert len(pictures) > 10
    assert all(re.search(r'(?:alt|aria-label)="[^"]{20,}"', picture) for picture in pictures)


def test_empty_run_gives_a_page_that_says_so(context: MakeContext) -> None:
    """Without any input there is a page, a summary with every key, and no claim."""
    out = report.run(ReportSpec(), context()).outputs["report"]
    page = (out / "index.html").read_text()
    for words in (
        "No verdict.",
        "No demonstration",
        "No dataset card",
        "No training log",
        "No export",
        "Not deployed",
    ):
        assert words in page
    summary = json.loads((out / "summary.json").read_text())
    assert summary["success_lower95"] is None
    assert set(summary["bridge"].values()) == {None}


@pytest.mark.parametrize(
    "role", ["episodes", "dataset", "checkpoint", "model", "trials", "verdict", "deployment"]
)
def test_each_input_is_optional(context: MakeContext, evidence: dict[str, Path], role: str) -> None:
    """Leaving out any one input still gives a page."""
    left = {name: path for name, path in evidence.items() if name != role}
    page = (report.run(SPEC, context(**left)).outputs["report"] / "index.html").read_text()
    assert 'class="missing"' in page


def test_same_evidence_gives_the_same_page(context: MakeContext, evidence: dict[str, Path]) -> None:
    """The page depends on nothing but its inputs."""
    one = report.run(SPEC, context("one", **evidence)).outputs["report"]
    two = report.run(SPEC, context("two", **evidence)).outputs["report"]
    assert (one / "index.html").read_bytes() == (two / "index.html").read_bytes()


def test_text_from_evidence_is_escaped(context: MakeContext, evidence: dict[str, Path]) -> None:
    """A title with markup is shown, not executed."""
    page = (
        (report.run(ReportSpec(title="<script>x</script>"), context(**evidence)).outputs["report"])
        / "index.html"
    )
    assert "<script>" not in page.read_text()


def test_a_privileged_policy_is_called_one(context: MakeContext, evidence: dict[str, Path]) -> None:
    """A policy that is given simulator truth cannot pass for one that sees."""
    path = evidence["checkpoint"] / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"privileged": True}))
    page = (report.run(SPEC, context(**evidence)).outputs["report"] / "index.html").read_text()
    assert "Privileged policy." in page


def test_the_expert_is_measured_on_its_attempts(context: MakeContext, evidence: dict[str, Path]) -> None:
    """Every attempt of the expert counts, failures as failures, with an interval."""
    out = report.run(SPEC, context(**evidence)).outputs["report"]
    found = json.loads((out / "summary.json").read_text())["expert_demonstrations"]
    assert (found["attempts"], found["successes"]) == (3, 2)
    assert found["lower95"] == pytest.approx(0.2077, abs=1e-3)  # Wilson of 2 in 3, by hand
    assert "2 of 3 attempts succeeded" in (out / "index.html").read_text()


def test_goals_are_told_met_or_missed(context: MakeContext, evidence: dict[str, Path]) -> None:
    """Each goal stands beside what was measured, in the summary and on the page."""
    out = report.run(SPEC, context(**evidence)).outputs["report"]
    goals = {goal["name"]: goal for goal in json.loads((out / "summary.json").read_text())["goals"]}
    assert {name: goal["met"] for name, goal in goals.items()} == {
        "success_rate": False,  # 58 of 60 is 96.7 %
        "success_lower95": False,
        "bridge_success_rate": True,  # 19 of 20
        "deadline_miss_rate": True,  # 4 of 2890
        "stale_executed": True,
        "violations": True,
        "total_s": True,  # 600 s are allowed
    }
    assert goals["success_rate"]["measured"] == pytest.approx(58 / 60)
    assert (goals["success_rate"]["rule"], goals["success_rate"]["goal"]) == ("at least", 0.97)
    page = (out / "index.html").read_text()
    rows = re.findall(r"<td>([^<]+)</td>.*?<span class=\"mark \w+\">(met|missed)</span>", page)
    assert ("Hand-overs that succeeded in simulation", "missed") in rows
    assert ("Commands outside a limit", "met") in rows


def test_goals_without_evidence_are_not_met(context: MakeContext) -> None:
    """What nobody measured is neither met nor missed."""
    out = report.run(ReportSpec(total_goal_s=None), context()).outputs["report"]
    goals = json.loads((out / "summary.json").read_text())["goals"]
    assert {goal["met"] for goal in goals} == {None}
    assert "total_s" not in {goal["name"] for goal in goals}


def test_a_refused_deployment_misses_its_goal(context: MakeContext, evidence: dict[str, Path]) -> None:
    """A model that the gate refused handed nothing over, and the page says who refused it."""
    figures = dict.fromkeys(("trials", "successes", "ticks", "deadline_misses", "stale_executed"), 0)
    (evidence["deployment"] / "deployment.json").write_text(
        json.dumps({**figures, "violations": 0, "per_trial": [], "refused": "lower bound 0.5 < 0.9"})
    )
    out = report.run(SPEC, context(**evidence)).outputs["report"]
    goals = {goal["name"]: goal for goal in json.loads((out / "summary.json").read_text())["goals"]}
    assert goals["bridge_success_rate"]["met"] is False
    assert goals["deadline_miss_rate"]["met"] is None
    assert "The gate refused this model" in (out / "index.html").read_text()


def test_the_report_is_about_the_model_of_the_verdict(context: MakeContext, tmp_path: Path) -> None:
    """Of several models, checkpoints and trials it shows the worst one's, whatever their order."""
    good, bad = write_trials(tmp_path / "good", trial_lines(count=30)), tmp_path / "bad"
    write_trials(bad, trial_lines(count=30, failed=(1, 2, 3), artifact=OTHER))
    trained = {DIGEST: "sha256:" + "1" * 64, OTHER: "sha256:" + "2" * 64}
    models, checkpoints = [], []
    for number, source in enumerate(trained.values()):
        model = write_model(tmp_path / f"model{number}")
        (model / "card.json").write_text(json.dumps({"sources": {"checkpoint": [source]}}))
        (model / "export.json").write_text(json.dumps({"max_abs_diff_rad": 1e-6 * (1 + number)}))
        checkpoint = write_checkpoint(tmp_path / f"checkpoint{number}")
        card = json.loads((checkpoint / "card.json").read_text())
        card["figures"] |= {"seed": number, "train_s": 100.0 + number}
        (checkpoint / "card.json").write_text(json.dumps(card))
        models.append(model)
        checkpoints.append(checkpoint)
    digests = {"model": list(trained), "trials": [DIGEST, OTHER], "checkpoint": [*reversed(trained.values())]}
    judged = context("evaluate", trials=[good, bad], model=models)
    judged.digests = digests
    verdict = evaluate.run(EvaluateSpec(models=2), judged).outputs["verdict"]
    shown = context("report", trials=[good, bad], model=models, checkpoint=checkpoints[::-1], verdict=verdict)
    shown.digests = digests | {"verdict": [DIGEST]}
    summary = report.run(SPEC, shown).summary
    assert (summary["model"], summary["successes"], summary["trials"]) == (OTHER, 27, 30)
    assert (summary["train_s"], summary["onnx_max_abs_diff"]) == (101.0, 2e-6)


def test_a_verdict_about_another_model_is_refused(
    context: MakeContext, evidence: dict[str, Path], tmp_path: Path
) -> None:
    """Several models of which none is the verdict's are no evidence for it."""
    made = context(**evidence | {"model": [evidence["model"], write_model(tmp_path / "more")]})
    made.digests = {**made.digests, "model": [OTHER, "sha256:" + "c" * 64]}
    with pytest.raises(JobError, match=rf"artifact={DIGEST} is no input 'model'; given: {OTHER}"):
        report.run(SPEC, made)


def test_the_page_opens_with_the_scene(context: MakeContext, evidence: dict[str, Path]) -> None:
    """Near the top stand a large picture of a hand-over with its film, and two earlier moments of it."""
    page = (report.run(SPEC, context(**evidence)).outputs["report"] / "index.html").read_text()
    top = page[: page.index("<main>")]
    assert len(re.findall(r"<img src=\"data:image/jpeg", top)) == 2
    assert re.search(r"<video [^>]*poster=\"data:image/jpeg[^>]*src=\"films/\d+\.mp4\"", top)
