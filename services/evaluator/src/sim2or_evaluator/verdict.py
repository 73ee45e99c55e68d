"""Trials to a verdict: pure functions from a table of trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from sim2or.errors import ConfigError, JobError
from sim2or.messages.evaluate import EvaluateSpec
from sim2or.messages.verdict import Agreement, Baseline, Gate, ModelVerdict, Score, Spread

from sim2or_evaluator.statistics import Interval, mcnemar_exact, newcombe, trials_to_prove, wilson
from sim2or_evaluator.trials import Trial, count_failures


def score(trials: Sequence[Trial], confidence: float) -> Score:
    """Counts successes and puts an interval around their rate."""
    successes = sum(trial.success for trial in trials)
    return Score(
        trials=len(trials),
        successes=successes,
        rate=successes / len(trials) if trials else 0.0,
        interval=_pair(wilson(successes, len(trials), confidence)),
    )


def per_instrument(trials: Sequence[Trial], confidence: float) -> dict[str, Score]:
    """Scores each instrument on its own, in alphabetical order."""
    names = sorted({trial.instrument for trial in trials})
    return {name: score([t for t in trials if t.instrument == name], confidence) for name in names}


def gate(result: Score, success_goal: float, lower_goal: float, confidence: float) -> Gate:
    """Judges a score by the point goal and, above all, by the lower bound of its interval."""
    reasons = []
    if result.rate < success_goal:
        reasons.append(f"success {result.rate:.1%} is below the goal of {success_goal:.1%}")
    if result.interval[0] < lower_goal:
        reasons.append(f"lower bound {result.interval[0]:.1%} is below the goal of {lower_goal:.1%}")
    return Gate(
        success_goal=success_goal,
        lower_goal=lower_goal,
        met=not reasons,
        reasons=tuple(reasons),
        trials_needed=_needed(result, lower_goal, confidence),
    )


def judge(artifact: str, trials: Sequence[Trial], spec: EvaluateSpec) -> ModelVerdict:
    """Says everything the trials tell about one model."""
    result = score(trials, spec.confidence)
    safety: Counter[str] = Counter()
    for trial in trials:
        safety.update(trial.safety)
    return ModelVerdict(
        artifact=artifact,
        score=result,
        gate=gate(result, spec.success_goal, spec.lower_goal, spec.confidence),
        instruments=per_instrument(trials, spec.confidence),
        failures=count_failures(trials),
        dropped=sum(trial.dropped for trial in trials),
        holds=sum(trial.holds for trial in trials),
        safety=dict(sorted(safety.items())),
        spreads=spreads([trial for trial in trials if trial.success]),
    )


def worst_first(models: Iterable[ModelVerdict]) -> tuple[ModelVerdict, ...]:
    """Orders models by their lower bound, the lowest first."""
    return tuple(sorted(models, key=lambda m: (m.score.interval[0], m.score.rate, m.artifact)))


def baseline(policy: Score, trials: Sequence[Trial], confidence: float) -> Baseline:
    """Puts another actor's score beside the policy's."""
    other = score(trials, confidence)
    difference = newcombe(policy.successes, policy.trials, other.successes, other.trials, confidence)
    return Baseline(score=other, difference=(difference.lower, difference.upper))


def agreement(torch: Sequence[Trial], exported: Sequence[Trial]) -> Agreement:
    """Compares the torch policy and the exported one on the scenarios both ran.

    Raises:
        JobError: They share no scenario.
    """
    by_seed = {trial.seed: trial.success for trial in exported}
    pairs = [(trial.success, by_seed[trial.seed]) for trial in torch if trial.seed in by_seed]
    if not pairs:
        raise JobError(
            f"torch: its {len(torch)} trials share no scenario with the exported model's {len(exported)}; "
            "roll both out on the same list from the same offset"
        )
    table = Counter(pairs)
    return Agreement(
        scenarios=len(pairs),
        torch_successes=sum(a for a, _ in pairs),
        exported_successes=sum(b for _, b in pairs),
        both=table[True, True],
        only_torch=table[True, False],
        only_exported=table[False, True],
        neither=table[False, False],
        p_value=min(1.0, mcnemar_exact(table[True, False], table[False, True])),
    )


def spreads(trials: Sequence[Trial]) -> dict[str, Spread]:
    """Summarises every metric that all or some of the trials carry, by name."""
    columns: dict[str, list[float]] = {}
    for trial in trials:
        for name, value in trial.metrics.items():
            columns.setdefault(name, []).append(value)
    return {name: spread(columns[name]) for name in sorted(columns)}


def spread(values: Sequence[float]) -> Spread:
    """Summarises a quantity's values, of which there is at least one."""
    p05, p50, p95 = (float(q) for q in np.percentile(values, [5, 50, 95]))
    return Spread(
        count=len(values),
        mean=float(np.mean(values)),
        minimum=min(values),
        p05=p05,
        p50=p50,
        p95=p95,
        maximum=max(values),
    )


def _needed(result: Score, lower_goal: float, confidence: float) -> int | None:
    if result.rate <= lower_goal:
        return None
    try:
        return trials_to_prove(lower_goal, result.rate, confidence)
    except ConfigError:
        return None


def _pair(interval: Interval) -> tuple[float, float]:
    return interval.lower, interval.upper
