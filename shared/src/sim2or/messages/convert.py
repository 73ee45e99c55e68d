"""The configuration of the convert stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from sim2or.messages.message import Spec


class VideoSpec(Spec):
    """How camera images become video.

    Attributes:
        codec: h264 encodes fastest; libsvtav1 makes smaller files.
        preset: The encoder's own speed setting; null: the fastest that keeps its quality.
        keyframe_interval: Frames between keyframes at most; an episode always begins with one.
        crf: Quality, smaller is better.
        frames_per_file: A video file holds at most so many frames, so that time stamps stay exact.
    """

    codec: Literal["h264", "libsvtav1"] = "h264"
    preset: str | int | None = None
    keyframe_interval: PositiveInt = 30
    crf: int = Field(default=14, ge=0, le=63)
    frames_per_file: int = Field(default=18_000, gt=0, le=30_000)


class ConvertSpec(Spec):
    """How episodes become a part of a LeRobot dataset.

    Attributes:
        robot: Robot profile the episodes must come from.
        task: Task profile the episodes must come from.
        video: How images are encoded.
    """

    robot: str = "so101"
    task: str = "handover"
    video: VideoSpec = VideoSpec()
