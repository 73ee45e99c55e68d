"""What we write is what LeRobot writes, and its own classes and tools take it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.units import from_lerobot
from sim2or.dataset_card import load_card
from sim2or.episode import EpisodeFile
from sim2or.messages.convert import ConvertSpec, VideoSpec
from sim2or.messages.dataset import DatasetSpec
from sim2or_dataset.stage import STAGES

pytestmark = pytest.mark.slow

PARENTS = ["a", "a", "b", "c", "d", "e", "e", "f"]


@pytest.fixture
def made(tmp_path, shard, episode, context):
    """Two shards with failures and siblings, merged: (dataset's directory, episode files by name)."""
    episodes = [
        episode(i, steps=30 + 7 * i, success=i != 5, parent=parent) for i, parent in enumerate(PARENTS)
    ]
    shards = [shard("one", episodes[:4]), shard("two", episodes[4:])]
    parts = []
    for number, directory in enumerate(shards):
        work = context(tmp_path / f"convert{number}", {"episodes": [directory]})
        spec = ConvertSpec(video=VideoSpec(frames_per_file=100))
        parts.append(STAGES["convert"].run(spec, work).outputs["part"])
    work = context(tmp_path / "merge", {"parts": parts}, digests={"parts": ["sha256:1", "sha256:2"]})
    result = STAGES["dataset"].run(DatasetSpec(validation_fraction=0.2), work)
    files = {path.name: path for directory in shards for path in directory.glob("*.hdf5")}
    return result.outputs["dataset"], files


def test_every_frame_survives(made, spelled):
    """LeRobot reads each row's state, action, time, task and the very image of that row, in both cameras."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, files = made
    dataset, card, robot = LeRobotDataset("local/made", root=root), load_card(root), load_robot("so101")
    assert dataset.num_episodes == 7
    assert dataset.num_frames == card.frames
    at = 0
    for entry in card.episodes:
        with EpisodeFile(files[entry.file]) as file:
            original = file.read()
        assert original.header.parent == entry.parent
        for row in range(original.steps):
            item = dataset[at]
            state = from_lerobot(robot, item["observation.state"].numpy())
            action = from_lerobot(robot, item["action"].numpy())
            np.testing.assert_allclose(state, original.position_rad[row], atol=1e-5)
            np.testing.assert_allclose(action, original.actions_rad[row], atol=1e-5)
            np.testing.assert_array_equal(
                item["observation.privileged.instrument"].numpy(), original.instrument[row]
            )
            assert item["task"] == original.header.request
            assert int(item["episode_index"]) == entry.episode_index
            assert int(item["index"]) == at
            assert float(item["timestamp"]) == pytest.approx(row / 30, abs=1e-6)
            for camera, offset in (("wrist", 1), ("room", 2)):
                image = item[f"observation.images.{camera}"].numpy().transpose(1, 2, 0) * 255
                assert spelled(image) == (row, (entry.seed + offset) % 16)
                assert np.abs(image - original.images[camera][row]).mean() < 6
            at += 1


def test_statistics_are_lerobots(made):
    """Statistics equal LeRobot's own computation on the same pictures, within one histogram bin."""
    import pyarrow.parquet as pq
    from lerobot.datasets.compute_stats import aggregate_stats, compute_episode_stats, get_feature_stats
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.utils.utils import unflatten_dict
    from sim2or_dataset.backends.statistics import sampled_frames

    root, files = made
    meta = LeRobotDatasetMetadata("local/made", root=root)
    collected = []
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for entry, row in zip(load_card(root).episodes, rows, strict=True):
        flat = {k: np.array(v) for k, v in row.items() if k.startswith("stats/")}
        ours = unflatten_dict(flat)["stats"]
        collected.append(ours)
        with EpisodeFile(files[entry.file]) as file:
            images, truth = file.images("wrist"), file.instrument()
        sample = images[sampled_frames(len(images))].transpose(0, 3, 1, 2)
        # In double precision: LeRobot sums a million pixels in single precision, off in the fourth digit.
        theirs = get_feature_stats(sample.astype(np.float64), axis=(0, 2, 3), keepdims=True)
        wide = (theirs["max"] - theirs["min"]).max() / 255 / 5000
        for name, value in theirs.items():
            right = value if name == "count" else np.squeeze(value / 255, axis=0)
            np.testing.assert_allclose(
                ours["observation.images.wrist"][name], right, atol=max(1.1 * wide, 1e-5)
            )
        key = "observation.privileged.instrument"
        theirs = compute_episode_stats({key: truth}, meta.features)[key]
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[key][name], value, atol=np.ptp(truth) / 5000, err_msg=name)
    total = aggregate_stats(collected)
    for key, stats in total.items():
        for name, value in stats.items():
            np.testing.assert_allclose(
                meta.stats[key][name], value, rtol=1e-6, atol=1e-9, err_msg=f"{key} {name}"
            )


def test_metadata_is_what_lerobot_writes(made, tmp_path):
    """info.json and the columns and types of every table are those of a dataset that LeRobot recorded."""
    import pyarrow.parquet as pq
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, _ = made
    info = json.loads((root / "meta/info.json").read_text())
    keep = {k: {n: v for n, v in f.items() if n != "info"} for k, f in info["features"].items()}
    features = {k: f | {"shape": tuple(f["shape"])} for k, f in keep.items() if f["shape"] != [1]}
    encoder = RGBEncoderConfig(vcodec="h264", g=30, crf=14, preset="ultrafast")
    other = LeRobotDataset.create(
        "local/theirs",
        fps=30,
        features=features,
        root=tmp_path / "theirs",
        robot_type="so101_follower",
        rgb_encoder=encoder,
    )
    for number in range(4):
        frame = {
            k: np.full(f["shape"], number, "float32") for k, f in features.items() if f["dtype"] == "float32"
        }
        frame |= {
            k: np.full(f["shape"], 9 * number, "uint8") for k, f in features.items() if f["dtype"] == "video"
        }
        other.add_frame({**frame, "task": "Hand me the scalpel"})
    other.save_episode()
    other.finalize()
    theirs = json.loads((tmp_path / "theirs/meta/info.json").read_text())
    assert info["features"] == theirs["features"]
    totals = {"total_episodes", "total_frames", "total_tasks", "splits"}
    assert {k: v for k, v in info.items() if k not in totals} == {
        k: v for k, v in theirs.items() if k not in totals
    }
    for table in (
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/tasks.parquet",
    ):
        ours, reference = pq.read_schema(root / table), pq.read_schema(tmp_path / "theirs" / table)
        assert {f.name: str(f.type) for f in ours} == {f.name: str(f.type) for f in reference}, table


def test_lerobots_tools_take_it(made, tmp_path, spelled):
    """`lerobot-edit-dataset` describes it and deletes episodes from it, rows and images still in step."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, _ = made
    command = [
        str(Path(sys.executable).parent / "lerobot-edit-dataset"),
        "--repo_id",
        "local/made",
        "--root",
        str(root),
    ]
    told = subprocess.run(
        [*command, "--operation.type", "info"], capture_output=True, text=True, timeout=200, check=False
    )
    assert told.returncode == 0, told.stderr[-2000:]
    smaller = tmp_path / "smaller"
    cut = [*command, "--new_root", str(smaller), "--new_repo_id", "local/smaller"]
    cut += ["--operation.type", "delete_episodes", "--operation.episode_indices", "[1, 3]"]
    done = subprocess.run(cut, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    dataset = LeRobotDataset("local/smaller", root=smaller)
    kept = [entry for entry in load_card(root).episodes if entry.episode_index not in (1, 3)]
    assert dataset.num_frames == sum(entry.frames for entry in kept)
    at = 0
    for entry in kept:
        for row in (0, entry.frames - 1):
            image = dataset[at + row]["observation.images.room"].numpy().transpose(1, 2, 0) * 255
            assert spelled(image) == (row, (entry.seed + 2) % 16)
        at += entry.frames
