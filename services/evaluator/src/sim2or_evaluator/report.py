"""The report stage: the evidence of a run as one page that works offline, and as ``summary.json``."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from markupsafe import Markup
from sim2or.artifacts.store import fresh_directory, write_json
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import TaskProfile, load_task
from sim2or.goals import Goal
from sim2or.messages.report import ReportSpec
from sim2or.messages.verdict import Film, Spread
from sim2or.stage import Context, Stage, StageResult

from sim2or_evaluator import figures
from sim2or_evaluator.evidence import Evidence, gather
from sim2or_evaluator.film import find_recording, jpeg, read_frames, resize, strip_jpeg, write_video
from sim2or_evaluator.page import angle, data_uri, environment
from sim2or_evaluator.summary import FILE, summarise

FILMS = "films"
DEGREES = 57.29577951308232
METRICS = {
    "time_s": ("time", "s", 1.0),
    "taken_s": ("taken by the hand after", "s", 1.0),
    "path_length_m": ("path of the grasp point", "cm", 100.0),
    "mean_squared_jerk_rad2ps6": ("mean squared jerk", "10³\u00a0rad²/s⁶", 0.001),
    "handle_angle_rad": ("handle off the surgeon's direction", "°", DEGREES),
    "taken_distance_m": ("from the zone's centre when taken", "cm", 100.0),
    "presented_speed_max_mps": ("fastest while presented", "cm/s", 100.0),
    "lift_max_m": ("highest lift", "cm", 100.0),
    "retreat_m": ("retreat", "cm", 100.0),
    "age_max_ms": ("oldest observation acted on", "ms", 1.0),
}
"""Metric to its name for people, the unit it is shown in and the factor to it, in the order of the table."""

GOAL_NAMES = {
    "success_rate": "Hand-overs that succeeded in simulation",
    "success_lower95": "Lower bound of its 95 % interval",
    "bridge_success_rate": "Hand-overs that succeeded in real time",
    "deadline_miss_rate": "Late control ticks",
    "stale_executed": "Stale commands executed",
    "violations": "Commands outside a limit",
    "total_s": "Time for everything, up to this page",
}

HERO_HEIGHT_PX = 720
MOMENTS = {"It reaches": 0.18, "lifts": 0.5, "and hands over": 0.95}
"""What a successful hand-over shows, and where in its film."""

LOWEST_IS_WORST = {"lift_max_m", "retreat_m"}


def run(spec: ReportSpec, context: Context) -> StageResult:
    """Writes the page and the summary.

    Args:
        spec: Title and figures that no artifact holds.
        context: Inputs ``episodes``, ``dataset``, ``checkpoint``, ``model``, ``trials``, ``verdict`` and
            ``deployment``, each optional; other roles are listed in the lineage only.

    Returns:
        Output ``report``: ``index.html``, ``summary.json`` and ``films/``.
    """
    evidence = gather(spec, context.inputs, context.digests)
    out = fresh_directory(context.work / "report")
    context.progress(1, 3, "steps")
    summary = summarise(evidence)
    page = environment().get_template("index.html.j2").render(_content(evidence, summary, out))
    context.progress(2, 3, "steps")
    (out / "index.html").write_text(page, encoding="utf-8")
    write_json(out / FILE, summary)
    context.progress(3, 3, "steps")
    return StageResult(outputs={"report": out}, summary=summary)


STAGE = Stage("report", ReportSpec, run)


def _content(evidence: Evidence, summary: dict[str, Any], out: Path) -> dict[str, Any]:
    """Everything the template shows."""
    task = load_task(evidence.verdict.task if evidence.verdict else "handover")
    films = _copy_films(evidence, out)
    return {
        "title": evidence.spec.title,
        "summary": summary,
        "verdict": evidence.verdict,
        "evidence": evidence,
        "task": task,
        "robot": load_robot(task.robot),
        "hero": _hero(evidence, films),
        "goals": _goals(summary),
        "demonstration": _demonstration(evidence, out),
        "dataset_facts": _dataset_facts(evidence),
        "policy_facts": _policy_facts(evidence),
        "privileged": bool((evidence.checkpoint or {}).get("privileged")),
        "figures": _figures(evidence, task),
        "failures": [film for film in films if not film["success"]],
        "successes": [film for film in films if film["success"]],
        "spreads": _spread_rows(evidence),
        "steps": _steps(evidence, summary),
        "lineage": _lineage(evidence),
    }


def _hero(evidence: Evidence, films: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first successful film, with three of its moments as pictures: reaching, lifting, handed over."""
    film = next((film for film in films if film["success"]), None)
    if film is None:
        return None
    found = (find_recording(directory, film["seed"]) for directory in evidence.recordings)
    recording = next((path for path in found if path is not None), None)
    if recording is None:
        return film | {"pictures": ()}
    frames = next(iter(read_frames(recording).values()))
    chosen = [frames[round(moment * (len(frames) - 1))] for moment in MOMENTS.values()]
    heights_px = (HERO_HEIGHT_PX // 2, HERO_HEIGHT_PX // 2, HERO_HEIGHT_PX)
    pictures = [data_uri(jpeg(resize(image, h))) for image, h in zip(chosen, heights_px, strict=True)]
    return film | {"pictures": list(zip(MOMENTS, pictures, strict=True))}


def _goals(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals as rows of a table."""
    goals = [Goal.model_validate(goal) for goal in summary["goals"]]
    return [
        {
            "name": GOAL_NAMES.get(goal.name, goal.name.replace("_", " ")),
            "measured": goal.shown(goal.measured),
            "goal": f"{goal.rule} {goal.shown(goal.goal)}",
            "met": goal.met,
        }
        for goal in goals
    ]


def _figures(evidence: Evidence, task: TaskProfile) -> dict[str, Markup]:
    """Each figure for which there is evidence, by name."""
    made: dict[str, str] = {}
    verdict, placed = evidence.verdict, [t for t in evidence.trials if "x_m" in t.scenario]
    if placed:
        made["coverage"] = figures.coverage(placed)
    if evidence.log:
        made["loss"] = figures.loss(evidence.log)
    if verdict:
        made["instruments"] = figures.scores({"all": verdict.score} | dict(verdict.instruments), verdict.gate)
        if verdict.baselines:
            made["actors"] = figures.actors(verdict.score, verdict.baselines)
        if len(verdict.models) > 1:
            made["models"] = figures.scores({m.artifact[7:15]: m.score for m in verdict.models}, verdict.gate)
    if evidence.export and evidence.export.get("latency_ms"):
        made["latency"] = figures.latency(evidence.export["latency_ms"], 1000 * task.period_s)
    made |= _bridge_figures(evidence, task)
    return {name: Markup(svg) for name, svg in made.items()}


def _bridge_figures(evidence: Evidence, task: TaskProfile) -> dict[str, str]:
    trials = (evidence.deployment or {}).get("per_trial", ())
    found = {}
    if trials:
        found["hand_overs"] = figures.hand_overs(trials)
    work_ms = [value for trial in trials for value in trial.get("work_ms", ())]
    if work_ms:
        found["ticks"] = figures.tick_work(work_ms, 1000 * task.period_s)
    return found


def _demonstration(evidence: Evidence, out: Path) -> dict[str, Any] | None:
    """A film strip and a video of the first successful demonstration."""
    for entry, directory in evidence.episodes:
        recording = find_recording(directory, entry.seed) if entry.success else None
        if recording is None:
            continue
        frames = read_frames(recording)
        video = out / FILMS / f"demonstration_{entry.seed}.mp4"
        video.parent.mkdir(exist_ok=True)
        write_video(video, frames, 30)
        strip = strip_jpeg(frames, evidence.spec.pictures)
        return {
            "entry": entry,
            "cameras": list(frames),
            "strip": data_uri(strip),
            "video": f"{FILMS}/{video.name}",
        }
    return None


def _copy_films(evidence: Evidence, out: Path) -> list[dict[str, Any]]:
    """Copies the verdict's films into the report and embeds their strips."""
    if evidence.verdict is None or evidence.verdict_directory is None:
        return []
    return [_copy_film(film, evidence.verdict_directory, out) for film in evidence.verdict.films]


def _copy_film(film: Film, source: Path, out: Path) -> dict[str, Any]:
    shown = film.model_dump()
    target = out / FILMS / Path(film.video).name
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source / film.video, target)
    return shown | {"video": f"{FILMS}/{target.name}", "strip": data_uri((source / film.strip).read_bytes())}


def _dataset_facts(evidence: Evidence) -> list[tuple[str, str]]:
    card = evidence.dataset
    if card is None:
        return []
    requests = Counter(episode.request for episode in card.episodes)
    held_out = len(card.split_episodes("validation"))
    sizes = sorted({f"{c.width_px} × {c.height_px} px" for c in card.cameras.values()})
    return [
        ("Demonstrations", f"{len(card.episodes)} kept, {len(card.dropped)} left out"),
        (
            "Frames",
            f"{card.frames:,} at {card.fps_declared:g} Hz ({card.frames / card.fps_declared / 60:.1f} min)",
        ),
        ("Cameras", f"{', '.join(sorted(card.cameras))}; {', '.join(sizes)}"),
        ("Requests", "; ".join(f"“{text}” × {n}" for text, n in sorted(requests.items()))),
        ("Held out", f"{held_out} demonstrations, whole ones" if held_out else "none"),
        ("Format", f"LeRobot v3, {card.robot_type}, {len(card.channels)} joints"),
    ]


def _spread_rows(evidence: Evidence) -> list[dict[str, str]]:
    if evidence.verdict is None:
        return []
    spreads = evidence.verdict.models[0].spreads
    return [_spread_row(name, spreads[name]) for name in METRICS if name in spreads]


def _spread_row(name: str, spread: Spread) -> dict[str, str]:
    label, unit, factor = METRICS[name]
    worst = spread.minimum if name in LOWEST_IS_WORST else spread.maximum
    values = {"p05": spread.p05, "p50": spread.p50, "p95": spread.p95, "worst": worst}
    return {"name": label, "unit": unit} | {key: _short(factor * value) for key, value in values.items()}


def _short(value: float) -> str:
    """Three digits, without an exponent for what people read at a glance."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.2f}"


def _policy_facts(evidence: Evidence) -> list[tuple[str, str]]:
    card = evidence.checkpoint
    if card is None:
        return []
    figures = card.get("figures", {})
    shown = [
        ("Policy", str(card.get("policy", "unknown"))),
        ("Parameters", f"{figures['parameters']:,}" if "parameters" in figures else ""),
        ("Inputs", ", ".join(str(tensor["name"]) for tensor in card.get("inputs", ()))),
        ("Steps", f"{figures['steps']:,}" if "steps" in figures else ""),
        (
            "Held-out loss",
            f"{figures['heldout_loss']:.4f}" if figures.get("heldout_loss") is not None else "",
        ),
        ("Seed", str(figures.get("seed", ""))),
    ]
    return [(name, value) for name, value in shown if value]


def _steps(evidence: Evidence, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The pipeline's steps with the fact that matters in each."""
    score = evidence.verdict.score if evidence.verdict else None
    bridge, difference = summary["bridge"], summary["onnx_max_abs_diff"]
    facts = [
        ("Demonstrate", "collect", summary["demos"] and f"{summary['demos']} demonstrations"),
        ("Convert", "dataset", summary["frames"] and f"{summary['frames']:,} frames"),
        ("Learn", "train", evidence.log and f"{evidence.log[-1].step:,} steps"),
        ("Export", "export", difference is not None and f"within {angle(difference)}"),
        ("Evaluate", "evaluate", score and f"{score.successes} of {score.trials}"),
        ("Deploy", "deploy", bridge["trials"] and f"{bridge['successes']} of {bridge['trials']} live"),
    ]
    return [
        {
            "name": name,
            "fact": fact or "no evidence",
            "missing": not fact,
            "wall_s": summary["wall_s"].get(stage),
        }
        for name, stage, fact in facts
    ]


def _lineage(evidence: Evidence) -> list[dict[str, Any]]:
    order = ["episodes", "parts", "dataset", "checkpoint", "model", "trials", "torch", "expert", "random"]
    order += ["verdict", "deployment"]
    roles = sorted(
        evidence.digests, key=lambda role: (order.index(role) if role in order else len(order), role)
    )
    return [{"role": role, "digests": evidence.digests[role]} for role in roles if evidence.digests[role]]
