"""Video files: one continuous file per camera, each episode beginning with a keyframe.

LeRobot appends to a growing file by rewriting it after every episode and, when it streams, drops frames if
its queue is full. Here every frame is encoded in the calling thread: none is dropped, none written twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray
from sim2or.errors import JobError
from sim2or.messages.convert import VideoSpec

PIXEL_FORMAT = "yuv420p"
_PRESETS: dict[str, str | int] = {"h264": "ultrafast", "libsvtav1": 12}


@dataclass(frozen=True)
class Clip:
    """Where an episode lies in its camera's video files.

    Attributes:
        file: Number of the file.
        first: Its first frame in that file.
    """

    file: int
    first: int


class VideoWriter:
    """Encodes the episodes of one camera, one after the other.

    Args:
        path_of: Number of a file to its path.
        fps: Frames per second [Hz].
        spec: How to encode.
    """

    def __init__(self, path_of: Callable[[int], Path], *, fps: int, spec: VideoSpec) -> None:
        self._path_of, self._fps, self._spec = path_of, fps, spec
        self._container: Any = None
        self._stream: Any = None
        self._file, self._frames = -1, 0
        self.written: dict[Path, int] = {}

    def add(self, images: NDArray[np.uint8]) -> Clip:
        """Encodes an episode.

        Args:
            images: Shape (T, height, width, 3), RGB.

        Returns:
            Where it lies.
        """
        if self._container is None or self._frames + len(images) > self._spec.frames_per_file:
            self._open(height=images.shape[1], width=images.shape[2])
        clip = Clip(self._file, self._frames)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = self._frames
            frame.time_base = Fraction(1, self._fps)
            if number == 0:
                frame.pict_type = PictureType.I
            self._container.mux(self._stream.encode(frame))
            self._frames += 1
        return clip

    def close(self) -> None:
        """Finishes the file and checks that it holds every frame at its time.

        Raises:
            JobError: Frames are missing or misplaced.
        """
        if self._container is None:
            return
        self._container.mux(self._stream.encode())
        self._container.close()
        self._container = None
        path = self._path_of(self._file)
        self.written[path] = self._frames
        check_frames(path, self._frames, self._fps)

    def _open(self, *, height: int, width: int) -> None:
        self.close()
        self._file, self._frames = self._file + 1, 0
        path = self._path_of(self._file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream(
            self._spec.codec, rate=self._fps, options=codec_options(self._spec)
        )
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, PIXEL_FORMAT
        self._stream.codec_context.thread_count = 1
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        try:
            self._stream.codec_context.open()
        finally:
            schedule_all_threads(*before)


def schedule_all_threads(policy: int, parameters: os.sched_param) -> None:
    """Puts every thread of this process into a scheduling class.

    SVT-AV1 makes a root process real-time, with all its threads, at the highest priority of all: everything
    else on the machine would wait for the encoder, a robot's control loop too.
    """
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setscheduler(int(thread), policy, parameters)


def codec_options(spec: VideoSpec) -> dict[str, str]:
    """The encoder's options, one thread: processes share the cores, not encoders."""
    options = {"g": str(spec.keyframe_interval), "crf": str(spec.crf), "preset": str(_preset(spec))}
    threads = {"threads": "1"} if spec.codec == "h264" else {"svtav1-params": "fast-decode=0:lp=1"}
    return options | threads


def video_info(spec: VideoSpec, *, height: int, width: int, fps: int) -> dict[str, Any]:
    """What LeRobot's ``info.json`` says about a camera's files."""
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": {"h264": "h264", "libsvtav1": "av1"}[spec.codec],
        "video.pix_fmt": PIXEL_FORMAT,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
        "video.g": spec.keyframe_interval,
        "video.crf": spec.crf,
        "video.preset": _preset(spec),
        "video.fast_decode": 0,
        "video.video_backend": "pyav",
        "video.extra_options": {},
        "is_depth_map": False,
    }


def check_frames(path: Path, frames: int, fps: int) -> None:
    """Checks that a video file holds exactly so many frames, frame k at k / fps.

    Args:
        path: The file.
        frames: How many rows of the table belong to it.
        fps: Frames per second [Hz].

    Raises:
        JobError: It does not.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            times = [
                packet.pts * stream.time_base for packet in container.demux(stream) if packet.pts is not None
            ]
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise JobError(f"{path}: cannot be read as a video ({error})") from error
    if len(times) != frames:
        raise JobError(f"{path}: {len(times)} frames of video for {frames} rows of the table; valid: equal")
    late = [k for k, time in enumerate(sorted(times)) if time != Fraction(k, fps)]
    if late:
        raise JobError(
            f"{path}: frame {late[0]} is not at {late[0]}/{fps} s; the video does not run at {fps} frames/s"
        )


def _preset(spec: VideoSpec) -> str | int:
    return _PRESETS[spec.codec] if spec.preset is None else spec.preset
