"""Films: recorded camera frames as a video that browsers play, and as a strip of pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sim2or.episode import EpisodeFile
from sim2or.errors import JobError

type Frames = NDArray[np.uint8]
"""Shape (n_frames, height, width, 3), RGB."""

CAMERAS = ("room", "wrist")
VIDEO_HEIGHT_PX = 384
STRIP_HEIGHT_PX = 200
GAP_PX = 6


def find_recording(directory: Path, seed: int) -> Path | None:
    """Finds the frames of a trial: an HDF5 episode or an ``.npz`` whose name ends with its seed."""
    found = sorted(p for p in directory.rglob(f"*{seed}.*") if p.suffix in (".hdf5", ".npz"))
    return found[0] if found else None


def read_frames(path: Path) -> dict[str, Frames]:
    """Reads the camera frames of a recording, the room camera first.

    Raises:
        JobError: The file holds no camera frames.
    """
    frames = _read_hdf5(path) if path.suffix == ".hdf5" else _read_npz(path)
    if not frames:
        raise JobError(f"{path}: no camera frames; valid cameras: {', '.join(CAMERAS)}")
    order = sorted(frames, key=lambda name: (CAMERAS.index(name) if name in CAMERAS else len(CAMERAS), name))
    return {name: frames[name] for name in order}


def write_video(path: Path, frames: Mapping[str, Frames], fps: int) -> None:
    """Writes the cameras side by side as H.264 in 4:2:0, which every browser plays; same frames, same bytes.

    Args:
        path: The ``.mp4`` file to write.
        frames: Camera to frames; the shortest decides the length.
        fps: Frames per second.
    """
    count = min(len(images) for images in frames.values())
    first = side_by_side([images[0] for images in frames.values()], VIDEO_HEIGHT_PX)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = first.shape[1], first.shape[0], "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast", "threads": "1"}
        for index in range(count):
            picture = side_by_side([images[index] for images in frames.values()], VIDEO_HEIGHT_PX)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def side_by_side(images: list[NDArray[np.uint8]], height_px: int) -> NDArray[np.uint8]:
    """Puts pictures beside each other at one height, both sizes even as the codec needs."""
    scaled = [resize(image, height_px) for image in images]
    gap = np.full((height_px, GAP_PX, 3), 255, dtype=np.uint8)
    joined = np.concatenate([part for image in scaled for part in (image, gap)][:-1], axis=1)
    return joined[: height_px // 2 * 2, : joined.shape[1] // 2 * 2]


def frames_per_s(count: int, time_s: float) -> int:
    """The rate at which ``count`` pictures spread over ``time_s`` play in real time [Hz], at least 1."""
    return max(1, round((count - 1) / time_s)) if time_s > 0 else 30


def strip_jpeg(frames: Mapping[str, Frames], pictures: int) -> bytes:
    """Makes a film strip of evenly spaced pictures as JPEG: one row a camera, two rows of a single camera.

    Args:
        frames: Camera to frames.
        pictures: How many of each camera.
    """
    chosen = columns(min(len(images) for images in frames.values()), pictures)
    rows = [[images[index] for index in chosen] for images in frames.values()]
    if len(rows) == 1 and len(chosen) % 2 == 0:
        rows = [rows[0][: len(chosen) // 2], rows[0][len(chosen) // 2 :]]
    lines = [side_by_side(row, STRIP_HEIGHT_PX) for row in rows]
    gap = np.full((GAP_PX, lines[0].shape[1], 3), 255, dtype=np.uint8)
    return jpeg(np.concatenate([part for line in lines for part in (line, gap)][:-1], axis=0))


def columns(count: int, pictures: int) -> list[int]:
    """Frame numbers evenly spread over a recording, its ends included."""
    return [round(float(x)) for x in np.linspace(0, count - 1, min(count, pictures))]


def resize(image: NDArray[np.uint8], height_px: int) -> NDArray[np.uint8]:
    """Scales a picture to a height and keeps its proportions."""
    width_px = round(image.shape[1] * height_px / image.shape[0])
    return np.asarray(Image.fromarray(image).resize((width_px, height_px), Image.Resampling.LANCZOS))


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encodes a picture as JPEG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=86, optimize=True)
    return out.getvalue()


def _read_hdf5(path: Path) -> dict[str, Frames]:
    with EpisodeFile(path) as episode:
        return {camera: episode.images(camera) for camera in episode.cameras}


def _read_npz(path: Path) -> dict[str, Frames]:
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    return {
        name.removeprefix("frames_"): value
        for name, value in found.items()
        if value.ndim == 4 and value.shape[-1] == 3 and value.dtype == np.uint8 and len(value)
    }
