"""The gap between engines, from motions whose distances are known by construction."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sim2or.errors import JobError
from sim2or.messages.gap import GAP_FILE, Gap, GapSpec
from sim2or.rollout.episode import Episode
from sim2or.rollout.motion import motion_path, write
from sim2or_evaluator.gap import measure, run
from sim2or_evaluator.gap_page import named
from sim2or_evaluator.statistics import wilson

from .conftest import DIGEST, FakeContext, trial_lines, write_trials

COMMANDS = "sha256:" + "c" * 64
TICKS, PERIOD_NS = 60, round(1e9 / 30)
GRASPED_S = 1.0

type Change = Callable[[Episode], None]


def rollouts(
    directory: Path,
    engine: str,
    *,
    actor: str = "replay",
    failed: tuple[int, ...] = (),
    change: Change = lambda episode: None,
    later_s: float = 0.0,
    frames: tuple[int, ...] = (),
    **keys: Any,
) -> Path:
    """Rollouts of six validation scenarios in an engine; replays have motions, which ``change`` alters."""
    lines = trial_lines("validation", 6, failed, actor=actor)
    for line in lines:
        line.update(engine=engine, commands=COMMANDS if actor == "replay" else "", latency_ticks=0)
        line.update(grasped_s=GRASPED_S + later_s, **keys)
    write_trials(directory, lines, frames)
    for line in lines if actor == "replay" else ():
        episode = still(line["seed"])
        change(episode)
        write(motion_path(directory, line["seed"]), episode)
    return directory


def still(seed: int) -> Episode:
    """An arm and an instrument that do not move for two seconds."""
    episode = Episode(f"replay-{seed}")
    for tick in range(TICKS):
        episode.measured_rad.append(np.zeros(6, np.float32))
        episode.velocity_radps.append(np.zeros(6, np.float32))
        episode.commanded_rad.append(np.full(6, 0.25, np.float32))
        episode.time_ns.append(tick * PERIOD_NS)
        episode.hold.append(False)
        episode.age_ns.append(0)
        episode.instrument.append(np.array([0.2, 0.0, 0.02, 1, 0, 0, 0, 0, 0, 1, 0, 0], np.float32))
        episode.taken.append(False)
    return episode


def job(tmp_path: Path, reference: list[Path], other: list[Path]) -> FakeContext:
    """The stage's context with these inputs."""
    inputs = {"reference": reference, "other": other}
    digests = {role: [f"sha256:{role}{n}" for n in range(len(paths))] for role, paths in inputs.items()}
    return FakeContext(tmp_path / "work", inputs, digests)


def gap(tmp_path: Path, reference: list[Path], other: list[Path]) -> Gap:
    """What the stage finds, without its page."""
    return measure(GapSpec(), job(tmp_path, reference, other)).gap


def test_the_same_motions_have_no_gap(tmp_path: Path) -> None:
    """An engine against itself: every error is exactly zero and nothing diverges."""
    one, two = rollouts(tmp_path / "a", "mujoco"), rollouts(tmp_path / "b", "mujoco")
    (found,) = gap(tmp_path, [one], [two]).open_loop
    errors = [*found.joints_rad.values(), found.tool_m, found.instrument_m, found.instrument_rad]
    assert {error.worst for error in errors} == {0.0}
    assert (found.tool_diverged.scenarios, found.instrument_diverged.scenarios) == (0, 0)
    assert {event.later_s.maximum for event in found.events.values() if event.later_s} == {0.0}
    assert (found.ticks, found.success.both, found.success.difference) == (6 * TICKS, 6, 0.0)


def test_errors_are_those_that_were_made(tmp_path: Path) -> None:
    """10 mrad in the second half have an RMS of 10/√2 mrad; an instrument off from 0.5 s diverges then."""

    def change(episode: Episode) -> None:
        for tick in range(TICKS):
            episode.measured_rad[tick][0] += 0.01 if tick >= TICKS // 2 else 0.0
            episode.instrument[tick][0] += 0.02 if tick >= 15 else 0.0
            episode.instrument[tick][3:6] = (np.cos(0.1), np.sin(0.1), 0.0)

    one, two = rollouts(tmp_path / "a", "mujoco"), rollouts(tmp_path / "b", "isaaclab", change=change)
    measured = gap(tmp_path, [one], [two])
    (found,) = measured.open_loop
    assert (measured.reference, measured.other) == ("mujoco", "isaaclab")
    assert found.joints_rad["shoulder_pan"].rms == pytest.approx(0.01 / np.sqrt(2), rel=1e-4)
    assert found.joints_rad["shoulder_pan"].worst == pytest.approx(0.01, rel=1e-4)
    assert found.joints_rad["gripper"].worst == 0.0
    assert found.joints_until_grasp_rad["shoulder_pan"].worst == 0.0  # both grasp when it begins
    assert found.instrument_m.worst == pytest.approx(0.02, rel=1e-4)
    assert found.instrument_rad.rms == pytest.approx(0.1, rel=1e-4)
    assert found.instrument_diverged.scenarios == 6
    assert found.instrument_diverged.at_s is not None
    assert found.instrument_diverged.at_s.p50 == pytest.approx(0.5, abs=1e-6)
    assert found.tool_diverged.scenarios == 0  # 10 mrad at less than 0.5 m is less than 5 mm
    assert {row.instrument_worst_m for row in found.scenarios} == {found.instrument_m.worst}


def test_a_shorter_motion_is_compared_as_long_as_it_lasts(tmp_path: Path) -> None:
    """Only ticks that both engines have count."""

    def change(episode: Episode) -> None:
        for rows in vars(episode).values():
            if isinstance(rows, list) and rows:
                del rows[40:]

    one, two = rollouts(tmp_path / "a", "mujoco"), rollouts(tmp_path / "b", "isaaclab", change=change)
    (found,) = gap(tmp_path, [one], [two]).open_loop
    assert found.ticks == 6 * 40
    assert found.tool_m.worst == 0.0


def test_events_are_compared_where_they_happened_in_both(tmp_path: Path) -> None:
    """A grasp 0.2 s later and one success less are said so; what happened nowhere has no time."""
    one = rollouts(tmp_path / "a", "mujoco")
    two = rollouts(tmp_path / "b", "isaaclab", later_s=0.2, failed=(1,))
    events = gap(tmp_path, [one], [two]).open_loop[0].events
    assert events["grasped"].later_s is not None
    assert events["grasped"].later_s.p50 == pytest.approx(0.2)
    assert (events["success"].both, events["success"].only_reference) == (5, 1)
    assert (events["taken"].neither, events["taken"].later_s) == (6, None)


def test_closed_loop_pairs_outcomes_by_scenario(tmp_path: Path) -> None:
    """The table of outcomes, both Wilson intervals, the paired difference and the causes by engine."""
    one = rollouts(tmp_path / "a", "mujoco", actor="policy", failed=(0,))
    two = rollouts(tmp_path / "b", "isaaclab", actor="policy", failed=(0, 2, 3, 5))
    found = gap(tmp_path, [one], [two])
    assert found.open_loop == ()
    (closed,) = found.closed_loop
    success = closed.success
    assert (success.both, success.only_reference, success.only_other, success.neither) == (2, 3, 0, 1)
    assert success.difference == pytest.approx(-0.5)
    assert success.interval[0] < -0.5 < success.interval[1]
    assert success.p_value == pytest.approx(2 * 0.5**3)
    assert success.other.interval == pytest.approx((wilson(2, 6).lower, wilson(2, 6).upper))
    assert (closed.actor, closed.artifact) == ("policy", DIGEST)
    assert (closed.failures_reference, closed.failures_other) == ({"dropped": 1}, {"dropped": 4})
    assert sum(part.reference.trials for part in closed.instruments.values()) == 6


def test_every_actor_is_compared_with_itself(tmp_path: Path) -> None:
    """Replays, expert and policy in one stage: each has its own comparison."""
    actors = ("replay", "expert", "policy")
    one = [rollouts(tmp_path / f"a{actor}", "mujoco", actor=actor) for actor in actors]
    two = [rollouts(tmp_path / f"b{actor}", "isaaclab", actor=actor) for actor in actors]
    found = gap(tmp_path, one, two)
    assert [part.actor for part in found.closed_loop] == ["expert", "policy"]
    assert [part.commands for part in found.open_loop] == [COMMANDS]


def test_the_page_works_offline_and_the_figures_are_pictures_too(tmp_path: Path) -> None:
    """Page, figures as PNG, and a film of each scenario that was recorded in both engines."""
    one = rollouts(tmp_path / "a", "mujoco", frames=(0, 1, 2))
    two = rollouts(tmp_path / "b", "isaaclab", failed=(1,), frames=(1, 2))
    out = run(GapSpec(films=5), job(tmp_path, [one], [two])).outputs["gap"]
    assert Gap.model_validate_json((out / GAP_FILE).read_bytes()).open_loop[0].success.only_reference == 1
    page = (out / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert "isaaclab: dropped" in page
    assert sorted(path.name for path in (out / "pictures").glob("*.png")) == [
        "distances-0.png",
        "events-0.png",
        "joints-0.png",
        "success.png",
    ]
    films = sorted(path.name for path in (out / "films").iterdir())
    assert films == ["0-900001.mp4", "1-900002.mp4"]  # the outcomes that differ come first


def other_scenario(line: dict[str, Any]) -> None:
    line["scenario"]["x_m"] += 0.001


def other_list(line: dict[str, Any]) -> None:
    line["seed"] += 100_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_scenario, r"another scenario .*differs in x_m"),
        (other_list, r"belongs to the list 'none', not 'validation'"),
        (lambda line: line.update(commands="sha256:other"), r"replay of sha256:c.* acted in mujoco but not"),
        (lambda line: line.update(actor="policy", artifact=DIGEST, commands=""), r"acted in mujoco but not"),
        (lambda line: line.update(latency_ticks=3), r"which has: .*3 ticks late"),
        (lambda line: line.update(engine=""), r"names no engine"),
        (lambda line: line.update(room=DIGEST), r"room='sha256:a+', but .* has room='';.* in one room"),
    ],
)
def test_trials_of_something_else_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Other scenarios, lists, commands, actors, latencies or no engine: the error names what differs."""
    one, two = rollouts(tmp_path / "a", "mujoco"), rollouts(tmp_path / "b", "isaaclab")
    lines = [json.loads(line) for line in (two / "trials.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    write_trials(two, lines)
    with pytest.raises(JobError, match=message):
        gap(tmp_path, [one], [two])


def test_two_engines_in_one_input_are_refused(tmp_path: Path) -> None:
    """An input is of one engine, or the pairing would be by chance."""
    one, two = rollouts(tmp_path / "a", "mujoco"), rollouts(tmp_path / "b", "isaaclab", actor="expert")
    with pytest.raises(JobError, match="takes rollouts of one engine"):
        gap(tmp_path, [one, two], [two])


@pytest.mark.parametrize("key", ["physics", "room"])
def test_two_worlds_in_one_input_are_refused(tmp_path: Path, key: str) -> None:
    """An input is of one physics and of one room: the error names both values."""
    one = rollouts(tmp_path / "a", "isaaclab")
    two = rollouts(tmp_path / "b", "isaaclab", actor="expert", **{key: "elsewhere"})
    with pytest.raises(JobError, match=rf"'elsewhere'.*'reference' takes rollouts of one {key}"):
        gap(tmp_path, [one, two], [one, two])


def test_an_actor_at_two_latencies_is_shown_twice(tmp_path: Path) -> None:
    """Each latency has its own row and section, named by it; an actor at one latency is named without."""
    sides = []
    for engine in ("mujoco", "isaaclab"):
        late = [rollouts(tmp_path / f"{engine}{n}", engine, actor="policy", latency_ticks=n) for n in (1, 3)]
        sides.append([*late, rollouts(tmp_path / f"{engine}-expert", engine, actor="expert")])
    out = run(GapSpec(), job(tmp_path, *sides)).outputs["gap"]
    found = Gap.model_validate_json((out / GAP_FILE).read_bytes())
    assert [closed.latency_ticks for closed in found.closed_loop] == [0, 1, 3]
    assert list(named(found)) == [
        "expert",
        "policy aaaaaaaa, answers 1 ticks late",
        "policy aaaaaaaa, answers 3 ticks late",
    ]
    page = (out / "index.html").read_text()
    assert re.findall(r">Closed loop: ([^<]*)<", page) == [
        "expert",
        "policy, answers 1 ticks late",
        "policy, answers 3 ticks late",
    ]


def test_missing_scenarios_are_refused(tmp_path: Path) -> None:
    """A scenario that only one engine ran is named, with the counts."""
    one, two = rollouts(tmp_path / "a", "mujoco"), rollouts(tmp_path / "b", "isaaclab")
    lines = (two / "trials.jsonl").read_text().splitlines(keepends=True)
    (two / "trials.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(JobError, match=r"seeds 900005\): mujoco has 6, isaaclab 5"):
        gap(tmp_path, [one], [two])


def slower(episode: Episode) -> None:
    episode.time_ns[:] = [2 * time_ns for time_ns in episode.time_ns]


def told_otherwise(episode: Episode) -> None:
    episode.commanded_rad[7][2] += 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [(slower, r"tick 1 is at 66666666 ns"), (told_otherwise, r"from tick 7 on the commands differ by 0.01")],
)
def test_motions_that_are_no_open_loop_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    """Another clock, or a command that was changed on the way, is found and said where."""
    one, two = rollouts(tmp_path / "a", "mujoco"), rollouts(tmp_path / "b", "isaaclab", change=change)
    with pytest.raises(JobError, match=message):
        gap(tmp_path, [one], [two])


def test_a_replay_without_its_motion_is_refused(tmp_path: Path) -> None:
    """The error names the file that is missing."""
    one, two = rollouts(tmp_path / "a", "mujoco"), rollouts(tmp_path / "b", "isaaclab")
    motion_path(two, 900003).unlink()
    with pytest.raises(JobError, match=r"900003.npy is missing"):
        gap(tmp_path, [one], [two])
