"""The collect stage: shards cover the list exactly, and what is committed is never collected twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.episode import EpisodeFile, read_index
from sim2or.errors import ConfigError
from sim2or.messages.collect import CollectSpec
from sim2or_sim.collect import collect, shard_range


@dataclass
class WorkContext:
    work: Path
    shard: int = 0
    shards: int = 1
    inputs: dict[str, list[Path]] = field(default_factory=dict)
    digests: dict[str, list[str]] = field(default_factory=dict)
    reports: list[float] = field(default_factory=list)

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        self.reports.append(done)


@given(st.integers(1, 500), st.integers(1, 40))
def test_shards_cover_exactly(total, shards):
    """Every attempt belongs to exactly one shard, and shards differ by one attempt at most."""
    parts = [shard_range(total, shard, shards) for shard in range(shards)]
    assert [index for part in parts for index in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_too_many_demos_are_refused(tmp_path):
    """More attempts than the list holds are refused before anything is simulated, the bounds named."""
    with pytest.raises(ConfigError, match="it holds"):
        collect(CollectSpec(demos=10, offset=10**9), WorkContext(tmp_path))
    with pytest.raises(ValueError, match="greater than 0"):
        CollectSpec(demos=-3)


@pytest.mark.slow
def test_collect_and_resume(tmp_path):
    """Episodes fit the profiles; a second attempt keeps what is whole and repeats what is torn."""
    spec = CollectSpec(demos=4, offset=1)
    first = collect(spec, WorkContext(tmp_path / "a", shard=1, shards=2)).outputs["episodes"]
    entries = read_index(first)
    assert [entry.index for entry in entries] == [2, 3]
    assert [entry.seed for entry in entries] == [100003, 100004]
    robot, task = load_robot("so101"), load_task("handover")
    for entry in entries:
        with EpisodeFile(first / entry.file) as file:
            file.check(robot, task)
            episode = file.read()
        assert episode.time_s[0] == 0
        assert np.abs(np.diff(episode.actions_rad, axis=0)).max() < 0.2
        assert (episode.actions_rad >= robot.lower_rad - 1e-6).all()
        assert (
            len(np.unique(episode.images["wrist"].reshape(episode.steps, -1).mean(axis=1)))
            > episode.steps / 2
        )

    kept = first / entries[0].file
    stamp = kept.stat().st_mtime_ns
    lost = first / entries[1].file
    whole = lost.read_bytes()
    lost.write_bytes(whole[:5000])
    resumed = WorkContext(tmp_path / "a", shard=1, shards=2)
    collect(spec, resumed)
    assert resumed.reports[0] == 1
    assert kept.stat().st_mtime_ns == stamp
    with EpisodeFile(lost) as file:
        np.testing.assert_array_equal(file.actions_rad(), episode.actions_rad)
        np.testing.assert_array_equal(file.images("room"), episode.images["room"])


@pytest.mark.slow
def test_demonstrations_side_by_side_are_those_one_by_one(tmp_path):
    """Three worlds together record the episodes that one world records, to the bit, pictures included."""
    episodes = []
    for worlds in (1, 3):
        work = tmp_path / str(worlds)
        collect(CollectSpec(demos=4, num_envs=worlds), WorkContext(work))
        for entry in read_index(work / "episodes"):
            with EpisodeFile(work / "episodes" / entry.file) as file:
                episodes.append(file.read())
    for one, three in zip(episodes[:4], episodes[4:], strict=True):
        assert one.header == three.header
        for name in ("actions_rad", "position_rad", "velocity_radps", "time_s", "instrument", "taken"):
            np.testing.assert_array_equal(getattr(one, name), getattr(three, name))
        for camera, images in one.images.items():
            np.testing.assert_array_equal(images, three.images[camera])
