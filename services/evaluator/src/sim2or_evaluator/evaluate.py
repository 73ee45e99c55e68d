"""The evaluate stage: trials to a verdict about a model. A missed goal is a result, not an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sim2or.artifacts.store import fresh_directory
from sim2or.consistency import ACTORS
from sim2or.contracts.task import load_task
from sim2or.errors import JobError
from sim2or.messages.evaluate import EvaluateSpec
from sim2or.messages.verdict import VERDICT_FILE, Baseline, Film, ModelVerdict, Score, Verdict
from sim2or.stage import Context, Stage, StageResult

from sim2or_evaluator.film import find_recording, frames_per_s, read_frames, strip_jpeg, write_video
from sim2or_evaluator.trials import (
    Recorded,
    Trial,
    by_artifact,
    read_trials,
    refuse_duplicates,
    refuse_gaps,
    refuse_mixtures,
    refuse_other_actors,
    refuse_other_lists,
)
from sim2or_evaluator.verdict import agreement, baseline, judge, worst_first

FILMS = "films"
STRIP_PICTURES = 8
BASELINES = ("expert", "random", "torch")


def run(spec: EvaluateSpec, context: Context) -> StageResult:
    """Judges an exported model, or several of them, by the trials rolled out with it.

    Args:
        spec: Which scenario list and which goals.
        context: Inputs ``trials`` and ``model``; optional baselines ``expert``, ``random`` and ``torch``.

    Returns:
        Output ``verdict``: ``verdict.json`` and ``films/``.

    Raises:
        JobError: The trials are not the evidence they claim to be; names file, key, value and what is valid.
    """
    lists = {n: range(part.first_seed, part.end_seed) for n, part in load_task(spec.task).lists.items()}
    out = fresh_directory(context.work / "verdict")
    roles = ("trials", *(role for role in BASELINES if context.inputs.get(role)))
    checked = {role: _checked(context, role, spec, lists) for role in roles}
    refuse_mixtures([recorded for found in checked.values() for recorded in found], "a verdict")
    trials = checked.pop("trials")
    groups = by_artifact(trials, context.digests.get("model", ()), spec.models)
    for group in groups.values():
        refuse_gaps(group, spec.trials)
    models = worst_first(judge(digest, _plain(group), spec) for digest, group in groups.items())
    worst = models[0]
    others = {role: _plain(found) for role, found in checked.items()}
    films = _films(groups[worst.artifact], spec, out / FILMS, context)
    verdict = Verdict(
        task=spec.task,
        scenarios=spec.scenarios,
        engine=trials[0].trial.engine,
        physics=trials[0].trial.physics,
        room=trials[0].trial.room,
        first_seed=min(recorded.trial.seed for recorded in trials),
        confidence=spec.confidence,
        artifact=worst.artifact,
        score=worst.score,
        gate=worst.gate,
        instruments=worst.instruments,
        models=models,
        baselines={role: _baseline(worst.score, found, spec) for role, found in others.items()},
        agreement=agreement(others["torch"], _plain(groups[worst.artifact])) if "torch" in others else None,
        films=films,
        evidence={role: tuple(digests) for role, digests in sorted(context.digests.items())},
    )
    (out / VERDICT_FILE).write_text(verdict.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return StageResult(outputs={"verdict": out}, summary=_summary(models, len(films)))


STAGE = Stage("evaluate", EvaluateSpec, run)


def _checked(context: Context, role: str, spec: EvaluateSpec, lists: dict[str, range]) -> list[Recorded]:
    trials = read_trials(_inputs(context, role))
    refuse_duplicates(trials)
    refuse_other_actors(trials, role, ACTORS[role])
    refuse_other_lists(trials, spec.scenarios, lists)
    return trials


def _baseline(policy: Score, trials: Sequence[Trial], spec: EvaluateSpec) -> Baseline:
    return baseline(policy, trials, spec.confidence)


def _plain(trials: Sequence[Recorded]) -> list[Trial]:
    return [recorded.trial for recorded in trials]


def _inputs(context: Context, role: str) -> Sequence[Path]:
    found = context.inputs.get(role, ())
    if not found:
        raise JobError(f"evaluate: no input {role!r}; given: {', '.join(sorted(context.inputs)) or 'none'}")
    return found


def _films(trials: Sequence[Recorded], spec: EvaluateSpec, out: Path, context: Context) -> tuple[Film, ...]:
    """Makes films of the first recorded successes, of different instruments in turn, and of the failures."""
    recorded = [(r, path) for r in trials if (path := find_recording(r.directory, r.trial.seed)) is not None]
    chosen = [*_failures(recorded)[: spec.videos], *_successes(recorded)[: spec.videos]]
    if chosen:
        out.mkdir()
    films = []
    for number, (trial, path) in enumerate(chosen):
        films.append(_film(trial.trial, path, out))
        context.progress(number + 1, len(chosen), "films")
    return tuple(films)


def _failures(recorded: Sequence[tuple[Recorded, Path]]) -> list[tuple[Recorded, Path]]:
    return [pair for pair in recorded if not pair[0].trial.success]


def _successes(recorded: Sequence[tuple[Recorded, Path]]) -> list[tuple[Recorded, Path]]:
    seen: dict[str, int] = {}
    ranked = []
    for pair in recorded:
        trial = pair[0].trial
        if trial.success:
            seen[trial.instrument] = seen.get(trial.instrument, 0) + 1
            ranked.append((seen[trial.instrument], trial.instrument, pair))
    return [pair for _, _, pair in sorted(ranked, key=lambda item: item[:2])]


def _film(trial: Trial, path: Path, out: Path) -> Film:
    frames = read_frames(path)
    video, strip = out / f"{trial.seed}.mp4", out / f"{trial.seed}.jpg"
    count = min(len(images) for images in frames.values())
    write_video(video, frames, frames_per_s(count, trial.time_s))
    strip.write_bytes(strip_jpeg(frames, STRIP_PICTURES))
    return Film(
        seed=trial.seed,
        instrument=trial.instrument,
        success=trial.success,
        failure=trial.failure,
        time_s=trial.time_s,
        video=f"{FILMS}/{video.name}",
        strip=f"{FILMS}/{strip.name}",
    )


def _summary(models: Sequence[ModelVerdict], films: int) -> dict[str, object]:
    worst = models[0]
    return {
        "artifact": worst.artifact,
        "trials": worst.score.trials,
        "successes": worst.score.successes,
        "success_rate": worst.score.rate,
        "success_lower95": worst.score.interval[0],
        "success_upper95": worst.score.interval[1],
        "gate_met": worst.gate.met,
        "gate_reasons": list(worst.gate.reasons),
        "failures": dict(worst.failures),
        "dropped": worst.dropped,
        "films": films,
        "models": [
            {"artifact": m.artifact, "trials": m.score.trials, "successes": m.score.successes} for m in models
        ],
    }
