"""The gap as a page that works offline, its figures as pictures, and films of both engines side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.messages.gap import ClosedLoop, Gap, Paired

from sim2or_evaluator import gap_figures
from sim2or_evaluator.film import Frames, find_recording, frames_per_s, read_frames, strip_jpeg, write_video
from sim2or_evaluator.gap_figures import Picture
from sim2or_evaluator.gap_motion import Apart
from sim2or_evaluator.gap_pairs import Pair, Subject
from sim2or_evaluator.page import data_uri, environment

PAGE, PICTURES, FILMS = "index.html", "pictures", "films"
STRIP_PICTURES = 7
SHORT = 15
"""Characters of a digest that people are shown."""


def write_page(
    gap: Gap,
    motions: Sequence[Sequence[Apart]],
    pairs: Mapping[Subject, Sequence[Pair]],
    films: int,
    out: Path,
) -> None:
    """Writes ``index.html``, ``pictures/`` and ``films/``.

    Args:
        gap: What was found.
        motions: Per entry of ``gap.open_loop``, one a scenario.
        pairs: Who acted, to the trials.
        films: Most scenarios that are shown from both engines.
        out: An existing directory.
    """
    rows = named(gap)
    pictures = {"success": gap_figures.successes(gap, rows)}
    joints = load_robot(gap.robot).joint_names
    for number, found in enumerate(motions):
        pictures[f"joints-{number}"] = gap_figures.joints(found, joints)
        pictures[f"distances-{number}"] = gap_figures.distances(found)
        pictures[f"events-{number}"] = gap_figures.events(
            [motion.pair for motion in found], list(gap.open_loop[number].events)
        )
    _save(pictures, out / PICTURES)
    page = (
        environment()
        .get_template("gap.html.j2")
        .render(
            gap=gap,
            task=load_task(gap.task),
            rows=rows,
            late=[lateness(gap, closed) for closed in gap.closed_loop],
            figures={name: Markup(picture.svg) for name, picture in pictures.items()},
            films=_films(gap, pairs, films, out),
            short=SHORT,
        )
    )
    (out / PAGE).write_text(page, encoding="utf-8")


def named(gap: Gap) -> dict[str, Paired]:
    """Every comparison of successes by a name for people, closed loop first."""
    rows: dict[str, Paired] = {}
    for closed in gap.closed_loop:
        rows[f"{closed.actor} {closed.artifact[7:SHORT]}".strip() + lateness(gap, closed)] = closed.success
    for replayed in gap.open_loop:
        rows[f"replay {replayed.commands[7:SHORT]}".strip()] = replayed.success
    return rows


def lateness(gap: Gap, closed: ClosedLoop) -> str:
    """How late an actor's answers arrived, where it acted at more than one latency; else ""."""
    who = closed.actor, closed.artifact
    latencies = {other.latency_ticks for other in gap.closed_loop if (other.actor, other.artifact) == who}
    return f", answers {closed.latency_ticks} ticks late" if len(latencies) > 1 else ""


def _save(pictures: Mapping[str, Picture], directory: Path) -> None:
    directory.mkdir()
    for name, picture in pictures.items():
        (directory / f"{name}.png").write_bytes(picture.png)


def _films(gap: Gap, pairs: Mapping[Subject, Sequence[Pair]], most: int, out: Path) -> list[dict[str, Any]]:
    """Films of scenarios that were recorded in both engines; outcomes that differ first."""
    recorded = [
        (subject, pair, paths)
        for subject, found in pairs.items()
        for pair in found
        if (paths := _recordings(pair)) is not None
    ]
    recorded.sort(key=lambda item: item[1].reference.trial.success == item[1].other.trial.success)
    if recorded[:most]:
        (out / FILMS).mkdir()
    return [_film(gap, number, *item, out) for number, item in enumerate(recorded[:most])]


def _recordings(pair: Pair) -> tuple[Path, Path] | None:
    one, two = (
        find_recording(recorded.directory, recorded.trial.seed) for recorded in (pair.reference, pair.other)
    )
    return None if one is None or two is None else (one, two)


def _film(
    gap: Gap, number: int, subject: Subject, pair: Pair, paths: tuple[Path, Path], out: Path
) -> dict[str, Any]:
    one, two = (next(iter(read_frames(path).values())) for path in paths)
    longest = max(len(one), len(two))
    frames = {"reference": lasting(one, longest), "other": lasting(two, longest)}
    trials = (pair.reference.trial, pair.other.trial)
    video = out / FILMS / f"{number}-{trials[0].seed}.mp4"
    write_video(video, frames, frames_per_s(longest, max(trial.time_s for trial in trials)))
    return {
        "actor": subject.actor,
        "seed": trials[0].seed,
        "instrument": trials[0].instrument,
        "outcomes": list(zip((gap.reference, gap.other), trials, strict=True)),
        "video": f"{FILMS}/{video.name}",
        "strip": data_uri(strip_jpeg(frames, STRIP_PICTURES)),
    }


def lasting(frames: Frames, count: int) -> Frames:
    """Frames that last as long as another film: the last one stays."""
    return np.concatenate([frames, np.repeat(frames[-1:], count - len(frames), axis=0)])
