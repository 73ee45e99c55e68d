"""The stages refuse what does not fit, and leave out what failed."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.dataset_card import load_card
from sim2or.errors import ConfigError, JobError
from sim2or.messages.convert import ConvertSpec, VideoSpec
from sim2or.messages.dataset import DatasetSpec
from sim2or.stage import Cancelled
from sim2or_dataset.audit import audit_dataset
from sim2or_dataset.backends.video import VideoWriter, check_frames
from sim2or_dataset.stage import STAGES

ROBOT, TASK = load_robot("so101"), load_task("handover")


@pytest.fixture
def part(tmp_path, shard, episode, context):
    """Converts episodes into a part and gives its directory."""

    def convert(name, episodes):
        work = context(tmp_path / f"work-{name}", {"episodes": [shard(name, episodes)]})
        return STAGES["convert"].run(ConvertSpec(), work).outputs["part"]

    return convert


@pytest.fixture
def merged(tmp_path, context):
    """Merges parts into a dataset and gives the result."""

    def merge(parts, **spec):
        work = context(tmp_path / "merged", {"parts": parts}, digests={"parts": ["sha256:a"]})
        return STAGES["dataset"].run(DatasetSpec(**spec), work)

    return merge


def test_failures_are_kept_out_and_told(part, merged, episode):
    """A failed episode is not in the dataset; the card and the summary say which and why."""
    result = merged([part("a", [episode(0), episode(1, success=False), episode(2)])], validation_fraction=0.0)
    card = audit_dataset(result.outputs["dataset"], ROBOT, TASK)
    assert [entry.seed for entry in card.episodes] == [100000, 100002]
    assert [(d.seed, d.reason) for d in card.dropped] == [(100001, "dropped")]
    assert result.summary["dropped_by_reason"] == {"dropped": 1}
    assert card.parents == ("sha256:a",)
    assert "left out: 1; 1 × dropped" in (result.outputs["dataset"] / "README.md").read_text()


def test_splits_are_ranges_by_parent(part, merged, episode):
    """Siblings of two shards land in one split; info.json and the card name the same ranges."""
    one = part("a", [episode(i, parent=f"p{i}") for i in range(3)])
    two = part("b", [episode(3 + i, parent=f"p{i}") for i in range(3)])
    root = merged([one, two], validation_fraction=0.34).outputs["dataset"]
    card, info = load_card(root), json.loads((root / "meta/info.json").read_text())
    assert card.splits == {"train": (0, 4), "validation": (4, 6)}
    assert info["splits"] == {"train": "0:4", "validation": "4:6"}
    assert len({card.episodes[i].parent for i in card.split_episodes("validation")}) == 1


def test_a_part_without_success_is_left_out(part, merged, episode):
    """A shard in which everything failed does no harm; when nothing succeeded, the reasons are told."""
    empty, full = part("a", [episode(0, success=False)]), part("b", [episode(1)])
    assert merged([empty, full]).summary["episodes"] == 1
    with pytest.raises(JobError, match=r"0 successful episodes .*'dropped': 1"):
        merged([empty])


def test_an_empty_shard_makes_an_empty_part(part, merged, episode):
    """More shards than demonstrations are no mistake: a shard without episodes adds nothing."""
    assert merged([part("a", []), part("b", [episode(1)])]).summary["episodes"] == 1


def test_a_wrong_rate_is_refused(tmp_path, shard, episode, context):
    """Rows taken at 60 Hz but declared 30 Hz are refused, both rates named: they would play at half speed."""
    work = context(tmp_path / "w", {"episodes": [shard("a", [episode(0, hz=60.0)])]})
    with pytest.raises(JobError, match=r"60.000 Hz .* declares 30 Hz"):
        STAGES["convert"].run(ConvertSpec(), work)


def test_an_index_that_lies_is_refused(tmp_path, shard, episode, context):
    """An index line that disagrees with its file is refused."""
    directory = shard("a", [episode(0, success=False)])
    index = directory / "index.jsonl"
    index.write_text(index.read_text().replace('"success":false', '"success":true'))
    with pytest.raises(JobError, match="differs from its line"):
        STAGES["convert"].run(ConvertSpec(), context(tmp_path / "w", {"episodes": [directory]}))


def test_a_lost_frame_is_noticed(part, merged, episode):
    """A video with fewer frames than the table has rows is refused with both numbers."""
    root = part("a", [episode(0, steps=30)])
    path = root / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    writer = VideoWriter(lambda _: path, fps=30, spec=VideoSpec())
    writer.add(np.zeros((29, 96, 96, 3), np.uint8))
    writer.close()
    with pytest.raises(JobError, match="29 frames of video for 30 rows"):
        merged([root])


def test_a_contradicting_info_is_refused(part, merged, episode):
    """An info.json that names another rate than the card is refused by file and key."""
    root = merged([part("a", [episode(0)])]).outputs["dataset"]
    info = root / "meta/info.json"
    info.write_text(info.read_text().replace('"fps": 30,', '"fps": 60,'))
    with pytest.raises(ConfigError, match=r"info.json: fps = 60; valid: 30.0"):
        audit_dataset(root, ROBOT, TASK)


def test_cancelled_midway(tmp_path, shard, episode, context):
    """A cancelled job stops at the next episode, and a second attempt starts clean and finishes."""
    directory = shard("a", [episode(i) for i in range(3)])

    class Cancels(context):
        def progress(self, done, total, unit, **metrics):
            if done == 1:
                raise Cancelled

    with pytest.raises(Cancelled):
        STAGES["convert"].run(ConvertSpec(), Cancels(tmp_path / "w", {"episodes": [directory]}))
    result = STAGES["convert"].run(ConvertSpec(), context(tmp_path / "w", {"episodes": [directory]}))
    assert result.summary["episodes"] == 3


@pytest.mark.parametrize("codec", ["h264", "libsvtav1"])
def test_each_codec_keeps_every_frame(tmp_path, episode, codec):
    """Files rotate at an episode's start when full, and every file holds its frames at their times."""
    writer = VideoWriter(
        lambda number: tmp_path / f"{number}.mp4", fps=30, spec=VideoSpec(codec=codec, frames_per_file=50)
    )
    clips = [writer.add(episode(i, steps=20).images["room"]) for i in range(3)]
    writer.close()
    assert {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")} == {
        os.SCHED_OTHER
    }
    assert [(clip.file, clip.first) for clip in clips] == [(0, 0), (0, 20), (1, 0)]
    check_frames(tmp_path / "0.mp4", 40, 30)
    check_frames(tmp_path / "1.mp4", 20, 30)
