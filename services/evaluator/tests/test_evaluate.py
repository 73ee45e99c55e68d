"""The verdict counts what the trials say, and refuses what is not evidence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from sim2or.errors import JobError
from sim2or.messages.evaluate import EvaluateSpec
from sim2or.messages.verdict import Verdict
from sim2or_evaluator.evaluate import run

from .conftest import DIGEST, OTHER, FakeContext, trial_lines, write_trials

MakeContext = Callable[..., FakeContext]


def judged(spec: EvaluateSpec, context: FakeContext) -> Verdict:
    result = run(spec, context)
    return Verdict.model_validate_json((result.outputs["verdict"] / "verdict.json").read_bytes())


def test_counts_per_instrument_and_cause(context: MakeContext, tmp_path: Path) -> None:
    """Thirty trials, ten of each instrument; of which 0, 3 and 5 failed, are counted as by hand."""
    trials = write_trials(tmp_path / "r", trial_lines(failed=(0, 3, 5)))
    verdict = judged(EvaluateSpec(), context(trials=trials, model=tmp_path))
    assert (verdict.score.trials, verdict.score.successes) == (30, 27)
    assert {n: (s.successes, s.trials) for n, s in verdict.instruments.items()} == _by_hand((0, 3, 5))
    assert verdict.models[0].failures == {"dropped": 3}
    assert verdict.models[0].dropped == 3
    assert verdict.models[0].holds == 30  # 0 + 1 + 2, ten times
    assert verdict.models[0].safety == {"step": 15}
    assert verdict.artifact == DIGEST


def _by_hand(failed: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(trial_lines()):
        good, total = counts.get(line["instrument"], (0, 0))
        counts[line["instrument"]] = good + (number not in failed), total + 1
    return counts


def test_a_missed_goal_is_a_result(context: MakeContext, tmp_path: Path) -> None:
    """30 of 30 reach the rate but not the bound: the gate is missed with a reason, the stage succeeds."""
    trials = write_trials(tmp_path / "r", trial_lines())
    verdict = judged(EvaluateSpec(), context(trials=trials, model=tmp_path))
    assert not verdict.gate.met
    assert verdict.gate.reasons == ("lower bound 88.6% is below the goal of 93.0%",)
    assert verdict.gate.trials_needed == 52  # n / (n + 3.8415) ≥ 0.93


def test_the_goal_is_met_at_two_hundred_trials(context: MakeContext, tmp_path: Path) -> None:
    """196 of 200 have a lower bound of 95.0 %."""
    trials = write_trials(tmp_path / "r", trial_lines(count=200, failed=(1, 2, 3, 4)))
    verdict = judged(EvaluateSpec(trials=200), context(trials=trials, model=tmp_path))
    assert verdict.gate.met
    assert verdict.score.interval[0] == pytest.approx(0.950, abs=1e-3)


def test_shards_in_any_order_give_the_same_bytes(context: MakeContext, tmp_path: Path) -> None:
    """The verdict and its films do not depend on the order of shards or on the time."""
    lines = trial_lines(failed=(2,))
    a = write_trials(tmp_path / "a", lines[:15], frames=(0, 2))
    b = write_trials(tmp_path / "b", lines[15:])
    one = run(EvaluateSpec(), context("one", trials=[a, b], model=tmp_path)).outputs["verdict"]
    two = run(EvaluateSpec(), context("two", trials=[b, a], model=tmp_path)).outputs["verdict"]
    assert _hashes(one) == _hashes(two)


def _hashes(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_films_play_in_browsers(context: MakeContext, tmp_path: Path) -> None:
    """Recorded trials become H.264 in 4:2:0 in real time, failures first."""
    trials = write_trials(tmp_path / "r", trial_lines(failed=(4,)), frames=(0, 4))
    ctx = context(trials=trials, model=tmp_path)
    verdict = judged(EvaluateSpec(), ctx)
    assert [film.success for film in verdict.films] == [False, True]
    with av.open(str(ctx.work / "verdict" / verdict.films[1].video)) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, stream.average_rate) == (24, 6)  # 23 intervals in 4.0 s


def test_torch_and_export_are_paired_by_scenario(context: MakeContext, tmp_path: Path) -> None:
    """On ten shared scenarios torch fails 0 and 1, the export 1 and 2: one discordant pair each way."""
    trials = write_trials(tmp_path / "r", trial_lines(failed=(1, 2)))
    torch = write_trials(tmp_path / "t", trial_lines(count=10, failed=(0, 1), artifact=OTHER))
    agreement = judged(EvaluateSpec(), context(trials=trials, torch=torch, model=tmp_path)).agreement
    assert agreement is not None
    assert (agreement.scenarios, agreement.both, agreement.neither) == (10, 7, 1)
    assert (agreement.only_torch, agreement.only_exported, agreement.p_value) == (1, 1, 1.0)


def test_baselines_stand_beside_the_policy(context: MakeContext, tmp_path: Path) -> None:
    """A random actor that never succeeds is a whole interval away."""
    trials = write_trials(tmp_path / "r", trial_lines())
    chance = write_trials(tmp_path / "c", trial_lines(count=20, failed=range(20), actor="random"))
    baseline = judged(EvaluateSpec(), context(trials=trials, random=chance, model=tmp_path)).baselines[
        "random"
    ]
    assert baseline.score.successes == 0
    assert baseline.difference[0] > 0.7


def test_several_models_are_listed_worst_first(context: MakeContext, tmp_path: Path) -> None:
    """The verdict is about the worst of the training seeds."""
    good = write_trials(tmp_path / "a", trial_lines())
    bad = write_trials(tmp_path / "b", trial_lines(failed=(3,), artifact=OTHER))
    ctx = context(trials=[good, bad], model=[tmp_path, tmp_path])
    ctx.digests = {"trials": [DIGEST, DIGEST], "model": [DIGEST, OTHER]}
    verdict = judged(EvaluateSpec(models=2, trials=30), ctx)
    assert verdict.artifact == OTHER
    assert [model.score.successes for model in verdict.models] == [29, 30]


def _changed(number: int, **change: Any) -> list[dict[str, Any]]:
    lines = trial_lines(count=6)
    lines[number] |= change
    return lines


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (trial_lines(count=6) + trial_lines(count=1), r"trials.jsonl:7: seed=6000000 occurs before at .*:1"),
        (trial_lines(count=3) + trial_lines(count=2, offset=4), r"seed=6000005 have no trial \(6000003\)"),
        (trial_lines(count=5), r"5 trials, but the spec says trials=6"),
        (_changed(2, artifact=OTHER), r"trials.jsonl:3: artifact=sha256:bbb.* is not the model under test"),
        (_changed(2, artifact=""), r"artifact=\(none\) is not the model under test; valid: sha256:aaa"),
        (
            _changed(0, seed=100_000),
            r"seed=100000 belongs to the list 'train', not 'heldout' \(valid: 6000000…",
        ),
        (
            _changed(1, actor="expert"),
            r"trials.jsonl:2: actor='expert' cannot be the input 'trials'; valid: 'policy'",
        ),
        (_changed(3, success="maybe"), r"trials.jsonl:4: success='maybe'"),
        ([], "no trial"),
    ],
    ids=[
        "duplicate",
        "missing",
        "too few",
        "other artifact",
        "no artifact",
        "other list",
        "other actor",
        "bad value",
        "empty",
    ],
)
def test_what_is_not_evidence_is_refused(
    context: MakeContext, tmp_path: Path, lines: list[dict[str, Any]], message: str
) -> None:
    """A verdict on wrong evidence is refused, naming file, key, value and what is valid."""
    trials = write_trials(tmp_path / "r", lines)
    with pytest.raises(JobError, match=message):
        run(EvaluateSpec(trials=6), context(trials=trials, model=tmp_path))


def test_a_wrong_directory_is_refused(context: MakeContext, tmp_path: Path) -> None:
    """An artifact of another kind is refused, saying what was found in it."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "card.json").write_text("{}")
    with pytest.raises(JobError, match=r"trials.jsonl is missing; found: card.json"):
        run(EvaluateSpec(), context(trials=tmp_path / "d", model=tmp_path))


def test_broken_json_is_refused(context: MakeContext, tmp_path: Path) -> None:
    """A torn line names its file and number."""
    trials = write_trials(tmp_path / "r", trial_lines(count=2))
    text = (trials / "trials.jsonl").read_text()
    (trials / "trials.jsonl").write_text(text[:-20])
    with pytest.raises(JobError, match=r"trials.jsonl:2: not JSON"):
        run(EvaluateSpec(), context(trials=trials, model=tmp_path))


def test_summary_is_json(context: MakeContext, tmp_path: Path) -> None:
    """The stage's summary can be stored and shown."""
    trials = write_trials(tmp_path / "r", trial_lines())
    result = run(EvaluateSpec(), context(trials=trials, model=tmp_path))
    assert json.loads(json.dumps(result.summary))["successes"] == 30


@pytest.mark.parametrize("key", ["engine", "physics", "room"])
@pytest.mark.parametrize("role", ["trials", "expert"])
def test_a_mixture_of_worlds_is_refused(context: MakeContext, tmp_path: Path, role: str, key: str) -> None:
    """Trials of two engines, physics or rooms, in one input or in two, are no one rate: both are named."""
    actor = "policy" if role == "trials" else role
    here = trial_lines(count=5)
    there = [line | {key: "elsewhere"} for line in trial_lines(count=1, offset=5, actor=actor)]
    one, two = write_trials(tmp_path / "a", here), write_trials(tmp_path / "b", there)
    inputs = {"trials": [one, two]} if role == "trials" else {"trials": one, role: two}
    message = rf"b/trials.jsonl:1: {key}='elsewhere', but .*a/trials.jsonl:1 has {key}='';.*Roll out all"
    with pytest.raises(JobError, match=message):
        run(EvaluateSpec(), context(**inputs, model=tmp_path))


def test_the_verdict_names_its_world(context: MakeContext, tmp_path: Path) -> None:
    """Engine, physics and room are those of the trials; trials of older rollouts leave them empty."""
    world = {"engine": "isaaclab", "physics": "ovphysx", "room": OTHER}
    old = write_trials(tmp_path / "old", trial_lines(count=3))
    new = write_trials(tmp_path / "new", [line | world for line in trial_lines(count=3)])
    verdict = judged(EvaluateSpec(), context("new-job", trials=new, model=tmp_path))
    assert {key: getattr(verdict, key) for key in world} == world
    verdict = judged(EvaluateSpec(), context("old-job", trials=old, model=tmp_path))
    assert (verdict.engine, verdict.physics, verdict.room) == ("", "", "")
