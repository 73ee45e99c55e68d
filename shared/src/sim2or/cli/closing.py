"""Closing lines: what a run showed, said at its end, from the exported report or from the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim2or.artifacts.store import write_json
from sim2or.goals import Goal, with_total
from sim2or.runner import Finished

SUMMARY = "summary.json"


def closing_lines(finished: Finished) -> list[str]:
    """What to say about a finished run: success with its interval, goals met and missed, where to look.

    A run that ends before its report is told about by its verdict; one without either says nothing.
    """
    if finished.report:
        path = (finished.report if finished.report.is_dir() else finished.report.parent) / SUMMARY
        if path.exists():
            return _of_summary(_settled(path))
    verdicts = [
        record.result.summary
        for state in finished.states.values()
        if state.step.info.name == "evaluate"
        for record in state.records.values()
        if record.result
    ]
    return [line for verdict in verdicts for line in _of_verdict(verdict)]


def place_lines(finished: Finished, fetch: str) -> list[str]:
    """Where the report is, and how a person gets it where that is in a container.

    Args:
        finished: The run.
        fetch: A command in which ``{path}`` stands for the report's directory; empty: it is here.
    """
    if finished.report is None:
        return []
    place = finished.report if finished.report.is_dir() else finished.report.parent
    command = fetch.replace("{path}", str(place.absolute()))
    return [f"report: {finished.report}"] + ([f"copy it here: {command}"] if fetch else [])


def _settled(path: Path) -> dict[str, Any]:
    """The exported summary, its goal on the total time judged by the total that the runner put there."""
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    goals = [Goal.model_validate(goal) for goal in summary.get("goals", ())]
    judged = with_total(goals, summary.get("wall_s", {}).get("total"))
    if judged != goals:
        summary["goals"] = [goal.model_dump(mode="json") for goal in judged]
        write_json(path, summary)
    return summary


def _of_summary(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    if summary.get("success_rate") is not None:
        lines.append(_success(summary, summary.get("success_upper95")))
    goals = [Goal.model_validate(goal) for goal in summary.get("goals", ())]
    measured = [goal for goal in goals if goal.met is not None]
    if measured:
        lines.append(f"goals: {sum(bool(goal.met) for goal in measured)} of {len(measured)} met")
        lines += [f"  missed: {goal.text}" for goal in measured if not goal.met]
    return lines


def _of_verdict(verdict: Mapping[str, Any]) -> list[str]:
    if verdict.get("success_rate") is None:
        return []
    models = verdict.get("models", ())
    lines = [
        _success(verdict, verdict.get("success_upper95")) + (", the worst model" if len(models) > 1 else "")
    ]
    for model in models if len(models) > 1 else ():
        lines.append(f"  model {model['artifact'][:19]}: {model['successes']} of {model['trials']}")
    lines.append("goals: met" if verdict.get("gate_met") else "goals: missed")
    lines += [f"  missed: {reason}" for reason in verdict.get("gate_reasons", ())]
    return lines


def _success(figures: Mapping[str, Any], upper: float | None) -> str:
    high = "" if upper is None else f" … {100 * upper:.1f} %"
    return (
        f"success: {100 * figures['success_rate']:.1f} % of {figures['trials']} trials "
        f"({figures['successes']} hand-overs; 95 % interval {100 * figures['success_lower95']:.1f} %{high})"
    )
