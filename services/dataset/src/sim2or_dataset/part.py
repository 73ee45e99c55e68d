"""A part of a dataset: the successful episodes of some shards, converted."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from sim2or.contracts.units import to_lerobot
from sim2or.dataset_card import (
    ACTION,
    INSTRUMENT,
    STATE,
    CameraCard,
    DatasetCard,
    DroppedCard,
    EpisodeCard,
    channels_of,
)
from sim2or.episode import INSTRUMENT_NAMES, EpisodeFile, measured_hz
from sim2or.errors import JobError
from sim2or.messages.convert import VideoSpec

from sim2or_dataset.backends.lerobot import Record, camera_key, features_of, video_path, write_dataset
from sim2or_dataset.backends.statistics import column_stats, image_stats
from sim2or_dataset.backends.video import VideoWriter, video_info


class PartWriter:
    """Converts episodes one by one into a LeRobot dataset.

    Args:
        root: Where; empty.
        robot: The robot the episodes must come from.
        task: The task the episodes must come from.
        video: How images are encoded.
    """

    def __init__(self, root: Path, robot: RobotProfile, task: TaskProfile, video: VideoSpec) -> None:
        if task.control_hz != round(task.control_hz):
            raise JobError(
                f"task {task.name}: control_hz = {task.control_hz}; valid: a whole number, as LeRobot's fps"
            )
        self._root, self._robot, self._task, self._video = root, robot, task, video
        self._fps = round(task.control_hz)
        self._records: list[Record] = []
        self._dropped: list[DroppedCard] = []
        self._profiles: dict[str, set[str]] = {}
        self._writers = {
            name: VideoWriter(partial(video_path, root, camera_key(name)), fps=self._fps, spec=video)
            for name in sorted(task.cameras)
        }

    @property
    def frames(self) -> int:
        """Rows so far."""
        return sum(record.frames for record in self._records)

    @property
    def kept(self) -> int:
        """Episodes so far."""
        return len(self._records)

    def add(self, file: EpisodeFile) -> None:
        """Converts an episode; a failed one is noted and left out.

        Raises:
            JobError: It does not fit the robot or the task, or is damaged.
        """
        file.check(self._robot, self._task)
        for kind, digest in file.header.digests.items():
            self._profiles.setdefault(kind, set()).add(digest)
        if not file.header.success:
            reason = file.header.failure or "not successful"
            self._dropped.append(DroppedCard(file=file.path.name, seed=file.header.seed, reason=reason))
            return
        columns = {
            STATE: to_lerobot(self._robot, file.position_rad()).astype(np.float32),
            ACTION: to_lerobot(self._robot, file.actions_rad()).astype(np.float32),
            INSTRUMENT: file.instrument(),
        }
        stats = {key: column_stats(values) for key, values in columns.items()}
        clips = {}
        for name, writer in self._writers.items():
            images = file.images(name)
            clips[camera_key(name)] = writer.add(images)
            stats[camera_key(name)] = image_stats(images)
        self._records.append(Record(columns=columns, stats=stats, clips=clips, card=self._card(file)))

    def finish(self, *, name: str, parents: tuple[str, ...]) -> DatasetCard:
        """Finishes videos, tables and the card.

        Raises:
            JobError: A video lacks frames.
        """
        for writer in self._writers.values():
            writer.close()
        episodes: tuple[EpisodeCard, ...] = ()
        if self._records:
            episodes = write_dataset(
                self._root,
                self._records,
                features=features_of(self._robot.lerobot_keys, self._camera_info()),
                fps=self._fps,
                robot_type=self._robot.robot_type,
                splits={"train": (0, len(self._records))},
            )
        card = self._dataset_card(name, episodes, parents)
        card.save(self._root)
        return card

    def _card(self, file: EpisodeFile) -> EpisodeCard:
        header = file.header
        return EpisodeCard(
            episode_index=len(self._records),
            file=file.path.name,
            seed=header.seed,
            parent=header.parent,
            request=header.request,
            frames=file.steps,
            fps_measured=measured_hz(file.time_s()),
        )

    def _camera_info(self) -> dict[str, dict[str, object]]:
        size = self._task.images
        info = video_info(self._video, height=size.height_px, width=size.width_px, fps=self._fps)
        return {camera_key(name): dict(info) for name in self._writers}

    def _dataset_card(
        self, name: str, episodes: tuple[EpisodeCard, ...], parents: tuple[str, ...]
    ) -> DatasetCard:
        size = self._task.images
        return DatasetCard(
            name=name,
            robot=self._robot.name,
            robot_type=self._robot.robot_type,
            task=self._task.name,
            calibration_id=self._robot.calibration_id,
            profiles={kind: tuple(sorted(digests)) for kind, digests in self._profiles.items()},
            channels=channels_of(self._robot),
            cameras={
                name: CameraCard(
                    key=camera_key(name),
                    height_px=size.height_px,
                    width_px=size.width_px,
                    codec=self._video.codec,
                )
                for name in self._writers
            },
            fps_declared=float(self._fps),
            fps_measured=float(np.mean([e.fps_measured for e in episodes])) if episodes else float(self._fps),
            privileged={INSTRUMENT: INSTRUMENT_NAMES},
            episodes=episodes,
            dropped=tuple(self._dropped),
            splits={"train": (0, len(episodes))},
            parents=parents,
        )
