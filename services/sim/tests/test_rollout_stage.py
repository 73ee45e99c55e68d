"""The rollout stage: every scenario once, resumable, and films that show what was judged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sim2or.contracts.room import read_pinned, room_names
from sim2or.errors import JobError
from sim2or.messages.rollout import RolloutSpec
from sim2or.rollout.motion import motion_path, read
from sim2or.stage import Cancelled
from sim2or_sim.rollout import FILMS, TRIALS, physics_of, run


@dataclass
class Job:
    """A context without a bus; it can be told to stop after some trials."""

    work: Path
    shard: int = 0
    shards: int = 1
    stop_after: int = 1000
    inputs: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    digests: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        if done >= self.stop_after:
            raise Cancelled


def spec(**changes: object) -> RolloutSpec:
    return RolloutSpec.model_validate(
        {"trials": 4, "actor": "expert", "list": "validation", "films_successes": 0, "films_failures": 0}
        | changes
    )


def lines(work: Path, file: str = TRIALS) -> list[dict]:
    return [json.loads(line) for line in (work / "rollouts" / file).read_text().splitlines()]


def timeless(trials: list[dict]) -> dict[int, dict]:
    kept = [{k: v for k, v in trial.items() if not k.startswith("inference")} for trial in trials]
    return {trial["seed"]: trial for trial in kept}


def test_the_expert_succeeds_and_the_kernel_does_not_touch_its_motion(tmp_path: Path) -> None:
    """The safety limits leave room for nominal motion: no reason is given in any trial."""
    result = run(spec(), Job(tmp_path))
    assert (result.summary["trials"], result.summary["successes"]) == (4, 4)
    for trial in lines(tmp_path):
        assert trial["safety"] == {}
        assert trial["holds"] == trial["stale"] == 0
        assert 0.2 < trial["path_length_m"] < 1.5
        assert trial["time_s"] == pytest.approx(trial["steps"] / 30, abs=1e-5)


def test_shards_cover_the_list_exactly_once(tmp_path: Path) -> None:
    """Three shards of four scenarios: every seed in exactly one of them, offset respected."""
    seeds = []
    for shard in range(3):
        work = tmp_path / str(shard)
        work.mkdir()
        run(spec(actor="random", offset=2), Job(work, shard, 3))
        seeds += [trial["seed"] for trial in lines(work)]
    assert sorted(seeds) == [900002, 900003, 900004, 900005]


def test_a_stopped_job_goes_on_where_it_was_and_ends_the_same(tmp_path: Path) -> None:
    """Finished trials are kept, a torn line is done again, the record equals an undisturbed job's."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    run(spec(), Job(whole))
    with pytest.raises(Cancelled):
        run(spec(), Job(broken, stop_after=2))
    assert len(lines(broken)) == 2
    with (broken / "rollouts" / TRIALS).open("a") as file:
        file.write('{"seed": 900002, "succ')
    run(spec(), Job(broken))
    assert timeless(lines(broken)) == timeless(lines(whole))


def test_a_film_replays_the_trial_that_was_judged(tmp_path: Path) -> None:
    """The pictures come from a replay of the recorded commands, which ends as the trial did."""
    run(spec(trials=2, films_successes=1, film_height_px=48), Job(tmp_path))
    assert lines(tmp_path, FILMS) == [{"seed": 900000, "replayed_alike": True}]
    with np.load(tmp_path / "rollouts" / "trial_900000.npz") as film:
        frames = film["frames_room"]
    steps = next(trial["steps"] for trial in lines(tmp_path) if trial["seed"] == 900000)
    assert frames.shape == ((steps + 1) // 2 + 1, 48, 64, 3)
    assert frames.std() > 10


def test_trials_side_by_side_are_those_one_by_one(tmp_path: Path) -> None:
    """Three worlds together give the lines, the motions and the films that one world gives, to the bit."""
    for name, worlds in (("one", 1), ("three", 3)):
        (tmp_path / name).mkdir()
        run(spec(trials=5, num_envs=worlds, films_successes=2, film_height_px=48), Job(tmp_path / name))
    one, three = tmp_path / "one", tmp_path / "three"
    assert timeless(lines(one)) == timeless(lines(three))
    assert len(lines(one)) == 5
    assert lines(one, FILMS) == lines(three, FILMS)
    for seed in range(900000, 900005):
        motions = [read(motion_path(work / "rollouts", seed)) for work in (one, three)]
        assert motions[0].tobytes() == motions[1].tobytes()
    films = [np.load(work / "rollouts" / "trial_900001.npz")["frames_room"] for work in (one, three)]
    np.testing.assert_array_equal(*films)


def test_a_trial_names_its_world(tmp_path: Path) -> None:
    """Every line has engine, physics and the room's digest, which is empty for the built-in room."""
    name = room_names()[0]
    for room in ("", name):
        (tmp_path / f"in-{room}").mkdir()
        run(spec(actor="random", trials=1, room=room), Job(tmp_path / f"in-{room}"))
    worlds = [
        [line[key] for key in ("engine", "physics", "room")]
        for room in ("", name)
        for line in lines(tmp_path / f"in-{room}")
    ]
    assert worlds == [["mujoco", "mujoco", ""], ["mujoco", "mujoco", read_pinned(name).digests["room"]]]


def test_physics_of_isaac_lab_are_those_of_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton where nothing is set; MuJoCo has one physics, whatever Isaac Lab's setting says."""
    monkeypatch.delenv("SIM2OR_ISAAC_PHYSICS", raising=False)
    assert physics_of("isaaclab") == "newton"
    monkeypatch.setenv("SIM2OR_ISAAC_PHYSICS", "ovphysx")
    assert (physics_of("isaaclab"), physics_of("mujoco")) == ("ovphysx", "mujoco")


def test_chance_does_not_hand_over_instruments(tmp_path: Path) -> None:
    """The random baseline fails, within every limit, and is recorded as a failure."""
    result = run(spec(actor="random", trials=2), Job(tmp_path))
    assert result.summary["successes"] == 0
    assert all(trial["failure"] for trial in lines(tmp_path))


def test_a_policy_without_an_artifact_is_refused(tmp_path: Path) -> None:
    """The error names the missing input and the actors that need none."""
    with pytest.raises(JobError, match=r"input 'policy'.*expert, random"):
        run(spec(actor="policy"), Job(tmp_path))


def test_a_policy_without_a_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the setting."""
    monkeypatch.delenv("SIM2OR_POLICY_ENDPOINT", raising=False)
    with pytest.raises(JobError, match="SIM2OR_POLICY_ENDPOINT"):
        run(spec(actor="policy"), Job(tmp_path, digests={"policy": ["sha256:1"]}))
