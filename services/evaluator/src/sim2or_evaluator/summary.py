"""``summary.json``: the figures of a run, for machines and for the next run to be compared with."""

from __future__ import annotations

from typing import Any

from sim2or.goals import run_goals
from sim2or.messages.evaluate import EvaluateSpec

from sim2or_evaluator.evidence import Evidence
from sim2or_evaluator.statistics import wilson

FILE = "summary.json"
STAGES = ("collect", "dataset", "train", "evaluate", "export", "deploy", "total")
BRIDGE = ("trials", "successes", "ticks", "deadline_misses", "stale_executed", "violations")
SUCCESS_GOAL: float = EvaluateSpec.model_fields["success_goal"].default
LOWER_GOAL: float = EvaluateSpec.model_fields["lower_goal"].default
PERCENTILES = ("p50", "p95", "p99")


def summarise(evidence: Evidence) -> dict[str, Any]:
    """Gives every figure that a run is judged by; one without evidence is None, its key is always there."""
    summary = _figures(evidence)
    gate = evidence.verdict.gate if evidence.verdict else None
    goals = run_goals(
        summary,
        success=gate.success_goal if gate else SUCCESS_GOAL,
        lower=gate.lower_goal if gate else LOWER_GOAL,
        total_s=evidence.spec.total_goal_s,
    )
    return summary | {"goals": [goal.model_dump(mode="json") for goal in goals]}


def _figures(evidence: Evidence) -> dict[str, Any]:
    verdict = evidence.verdict
    export = evidence.export or {}
    return {
        "expert_success": _expert_success(evidence),
        "expert_demonstrations": _expert_demonstrations(evidence),
        "demos": len(evidence.dataset.episodes) if evidence.dataset else None,
        "frames": evidence.dataset.frames if evidence.dataset else None,
        "train_s": _train_s(evidence),
        "model": evidence.model,
        "trials": verdict.score.trials if verdict else None,
        "successes": verdict.score.successes if verdict else None,
        "success_rate": verdict.score.rate if verdict else None,
        "success_lower95": verdict.score.interval[0] if verdict else None,
        "success_upper95": verdict.score.interval[1] if verdict else None,
        "gate": verdict.gate.model_dump(mode="json") if verdict else None,
        "per_instrument": {n: s.model_dump(mode="json") for n, s in verdict.instruments.items()}
        if verdict
        else {},
        "failures": dict(verdict.models[0].failures) if verdict else {},
        "agreement": verdict.agreement.model_dump(mode="json") if verdict and verdict.agreement else None,
        "baselines": {n: b.score.model_dump(mode="json") for n, b in verdict.baselines.items()}
        if verdict
        else {},
        "onnx_max_abs_diff": export.get("max_abs_diff_rad", export.get("onnx_max_abs_diff")),
        "latency_ms": {
            runtime: {p: export.get("latency_ms", {}).get(runtime, {}).get(p) for p in PERCENTILES}
            for runtime in ("torch", "onnx")
        },
        "bridge": {key: (evidence.deployment or {}).get(key) for key in BRIDGE},
        "wall_s": {stage: evidence.spec.wall_s.get(stage) for stage in STAGES},
        "wall_steps_s": dict(evidence.spec.wall_s),
        "digests": {role: list(values) for role, values in sorted(evidence.digests.items())},
    }


def _expert_success(evidence: Evidence) -> float | None:
    if evidence.verdict and "expert" in evidence.verdict.baselines:
        return evidence.verdict.baselines["expert"].score.rate
    if evidence.episodes:
        return sum(entry.success for entry, _ in evidence.episodes) / len(evidence.episodes)
    return None


def _expert_demonstrations(evidence: Evidence) -> dict[str, Any] | None:
    """Every attempt of the scripted expert, its failures counted: demonstrations are its largest sample."""
    if not evidence.episodes:
        return None
    attempts = len(evidence.episodes)
    successes = sum(entry.success for entry, _ in evidence.episodes)
    interval = wilson(successes, attempts)
    return {
        "attempts": attempts,
        "successes": successes,
        "rate": successes / attempts,
        "lower95": interval.lower,
        "upper95": interval.upper,
    }


def _train_s(evidence: Evidence) -> float | None:
    figures = (
        evidence.summary_of("train").get("train_s"),
        (evidence.checkpoint or {}).get("figures", {}).get("train_s"),
        evidence.log[-1].train_s if evidence.log else None,
        evidence.spec.wall_s.get("train"),
    )
    return next((float(value) for value in figures if value is not None), None)
