"""Episode files: what is committed is complete, and what is wrong is named."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.episode import (
    Episode,
    EpisodeFile,
    EpisodeHeader,
    measured_hz,
    read_index,
    write_episode,
    write_index,
)
from sim2or.errors import JobError

ROBOT, TASK = load_robot("so101"), load_task("handover")
STEPS = 12
DEMO = "data/demo_0"


def make(index: int = 3, hz: float = 30.0, **header) -> Episode:
    rng = np.random.default_rng(index)
    values = {
        "index": index,
        "seed": 100 + index,
        "robot": "so101",
        "task": "handover",
        "joints": ROBOT.joint_names,
        "request": "Hand me the scalpel",
        "parent": f"train:{100 + index}",
        "success": True,
        "control_hz": 30.0,
        "physics_hz": 600.0,
        "scenario": {"seed": 100 + index},
        "metrics": {"lift_max_m": 0.09},
    }
    return Episode(
        header=EpisodeHeader(**{**values, **header}),
        actions_rad=rng.normal(size=(STEPS, 6)).astype(np.float32),
        position_rad=rng.normal(size=(STEPS, 6)).astype(np.float32),
        velocity_radps=rng.normal(size=(STEPS, 6)).astype(np.float32),
        time_s=np.arange(STEPS) / hz,
        instrument=rng.normal(size=(STEPS, 12)).astype(np.float32),
        taken=np.zeros(STEPS, np.uint8),
        images={name: rng.integers(0, 255, (STEPS, 96, 96, 3), np.uint8) for name in ("room", "wrist")},
    )


def test_what_was_written_is_read_back(tmp_path):
    """Every column, image and header field comes back bit for bit, and no temporary file is left."""
    episode = make(failure="", success=True)
    path = write_episode(episode, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["episode_000003_103.hdf5"]
    with EpisodeFile(path) as file:
        file.check(ROBOT, TASK)
        back = file.read()
    assert back.header == episode.header
    for field in dataclasses.fields(Episode):
        if field.name not in ("header", "images"):
            np.testing.assert_array_equal(getattr(back, field.name), getattr(episode, field.name))
    for name, images in episode.images.items():
        np.testing.assert_array_equal(back.images[name], images)


def test_the_layout_is_isaac_labs(tmp_path):
    """Isaac Lab's names are where its tools look for them, and images lie in chunks of one frame."""
    path = write_episode(make(), tmp_path)
    with h5py.File(path) as file:
        assert file["data"].attrs["total"] == 1
        demo = file[DEMO]
        assert {"num_samples", "seed", "success"} <= set(demo.attrs)
        assert demo["obs/actions"] == demo["actions"]
        assert demo["obs/wrist"].chunks == (1, 96, 96, 3)
        assert demo["states/articulation/robot/joint_position"].shape == (STEPS, 6)
        assert demo["initial_state/articulation/robot/joint_position"].shape == (1, 6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_torn_file_is_named(tmp_path, share):
    """A file cut at any place is refused with a line that says what to do."""
    path = write_episode(make(), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with (
        pytest.raises(JobError, match=r"episode_000003_103.hdf5.*(torn|damaged|missing)"),
        EpisodeFile(path) as file,
    ):
        file.read()


def _drop(file):
    del file[f"{DEMO}/obs/joint_pos"]


def _reshape(file):
    _drop(file)
    file[f"{DEMO}/obs/joint_pos"] = np.zeros((STEPS, 7), np.float32)


def _retype(file):
    _drop(file)
    file[f"{DEMO}/obs/joint_pos"] = np.zeros((STEPS, 6), np.float64)


def _reunit(file):
    file[f"{DEMO}/obs/joint_pos"].attrs["unit"] = "deg"


def _infinite(file):
    file[f"{DEMO}/obs/joint_pos"][4, 2] = np.inf


def _soft(file):
    _drop(file)
    file[f"{DEMO}/obs/joint_pos"] = h5py.SoftLink("/data/demo_0/actions")


def _external(file):
    _drop(file)
    file[f"{DEMO}/obs/joint_pos"] = h5py.ExternalLink("other.hdf5", "/x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop, r"obs/joint_pos is missing"),
        (_reshape, r"obs/joint_pos is float32\(12, 7\); valid: float32\(12, 6\)"),
        (_retype, r"obs/joint_pos is float64.*valid: float32"),
        (_reunit, r"obs/joint_pos has unit 'deg'; valid: 'rad'"),
        (_infinite, r"obs/joint_pos\[4, 2\] = inf; valid: finite"),
        (_soft, r"obs/joint_pos is a SoftLink"),
        (_external, r"obs/joint_pos is a ExternalLink"),
    ],
)
def test_a_wrong_column_is_named(tmp_path, spoil, message):
    """A missing, misshapen, mistyped, mis-united, infinite or linked column is refused by file and key."""
    path = write_episode(make(), tmp_path)
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(JobError, match=message), EpisodeFile(path) as file:
        file.position_rad()


@pytest.mark.parametrize(
    ("header", "hz", "message"),
    [
        ({"robot": "so100"}, 30.0, r"env_args.robot = 'so100'; valid: 'so101'"),
        ({"joints": ROBOT.joint_names[::-1]}, 30.0, r"env_args.joints"),
        ({"control_hz": 60.0}, 60.0, r"env_args.control_hz = 60; valid: 30"),
        ({}, 60.0, r"taken at 60.000 Hz but env_args.control_hz declares 30 Hz"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path, header, hz, message):
    """Another robot, joint order, declared rate or measured rate is refused, both values named."""
    path = write_episode(make(hz=hz, **header), tmp_path)
    with EpisodeFile(path) as file, pytest.raises(JobError, match=message):
        file.check(ROBOT, TASK)


def test_an_uneven_clock_is_refused(tmp_path):
    """A missed tick shows in the rows' times and is refused by row, though the mean rate is right."""
    episode = make()
    episode.time_s[5] += 0.01
    path = write_episode(episode, tmp_path)
    with EpisodeFile(path) as file, pytest.raises(JobError, match="between rows"):
        file.check(ROBOT, TASK)


def test_measured_rate():
    """Four rows at 0, 0.1, 0.2 and 0.3 s were taken at 10 Hz."""
    assert measured_hz(np.array([0.0, 0.1, 0.2, 0.3])) == pytest.approx(10.0)


def test_the_index_names_what_is_missing(tmp_path):
    """An index comes back sorted; a file it names but that is gone is reported."""
    episodes = [make(2), make(1)]
    paths = [write_episode(episode, tmp_path) for episode in episodes]
    write_index([episode.index_entry() for episode in episodes], tmp_path)
    assert [entry.index for entry in read_index(tmp_path)] == [1, 2]
    paths[0].unlink()
    with pytest.raises(JobError, match=r"index.jsonl: line 2: episode_000002_102.hdf5 is missing"):
        read_index(tmp_path)
