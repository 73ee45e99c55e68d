"""The audit of a dataset: does it fit the robot and the task, and do its files agree with each other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from sim2or.dataset_card import DatasetCard, check_dataset

from sim2or_dataset.backends.lerobot import Record, read_info, read_records, video_path
from sim2or_dataset.backends.video import check_frames


def audit_dataset(root: Path, robot: RobotProfile, task: TaskProfile) -> DatasetCard:
    """Checks a dataset against a robot, a task and itself.

    Args:
        root: The dataset's directory.
        robot: The robot it is to be used for.
        task: The task it is to be used for.

    Returns:
        Its card.

    Raises:
        ConfigError: A camera, joint, unit or rate does not fit: names file, key, value and valid choices.
        JobError: Its files contradict each other: names the file and both numbers.
    """
    card = check_dataset(root, robot, task)
    if card.episodes:
        check_videos(root, read_records(root, card.episodes), read_info(root)["fps"])
    return card


def check_videos(root: Path, records: list[Record], fps: int) -> None:
    """Checks that every video file holds as many frames as the table has rows for it.

    Raises:
        JobError: It does not.
    """
    rows: Counter[tuple[str, int]] = Counter()
    for record in records:
        for key, clip in record.clips.items():
            rows[key, clip.file] += record.frames
    for (key, number), frames in rows.items():
        check_frames(video_path(root, key, number), frames, fps)
