"""Datasets that do not fit are refused before training: file, key, value and choices are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sim2or.dataset_card import CARD_FILE
from sim2or.errors import ConfigError, JobError
from sim2or.messages.train import TrainSpec
from sim2or_trainer.stage import run


@pytest.fixture
def spoilt(dataset: Path, tmp_path: Path, context: Callable) -> Callable[[str, Callable[[Any], None]], Any]:
    """Makes a context on a copy of the dataset in which one JSON file was changed."""

    def make(file: str, change: Callable[[Any], None]) -> Any:
        root = tmp_path / "copy"
        shutil.copytree(dataset, root)
        content = json.loads((root / file).read_text())
        change(content)
        (root / file).write_text(json.dumps(content))
        attempt = context()
        attempt.inputs = {"dataset": [root]}
        return attempt

    return make


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CARD_FILE, lambda card: card.update(fps_measured=25.0), "fps_measured = 25 Hz; valid: 30 Hz"),
        (CARD_FILE, lambda card: card.update(calibration_id="other"), "calibration_id = 'other'; valid: "),
        (CARD_FILE, lambda card: card["cameras"].pop("wrist"), "cameras = room; valid: room, wrist"),
        (CARD_FILE, lambda card: card["channels"][0].update(unit="percent"), "unit = 'percent'; valid: "),
        ("meta/info.json", lambda info: info.update(fps=15), "fps = 15; valid: 30"),
    ],
    ids=["measured rate", "calibration", "camera", "unit", "declared rate"],
)
def test_mismatch_is_named(spoilt: Callable, file: str, change: Callable[[Any], None], message: str) -> None:
    """A rate, calibration, camera or unit that does not fit the robot and the task stops the job."""
    with pytest.raises(ConfigError, match=message) as caught:
        run(TrainSpec(steps=1), spoilt(file, change))
    assert file in str(caught.value)


def test_channel_that_never_moves_is_refused(spoilt: Callable) -> None:
    """A joint without any spread would be divided by zero: it is named instead."""

    def still(stats: dict[str, Any]) -> None:
        stats["action"]["std"][2] = 0.0

    with pytest.raises(ConfigError, match=r"action elbow_flex\.pos has a standard deviation of 0"):
        run(TrainSpec(steps=1), spoilt("meta/stats.json", still))


def test_video_that_lacks_frames_is_refused(spoilt: Callable) -> None:
    """A video shorter than the table is damage, not something to train on."""
    attempt = spoilt("meta/stats.json", lambda stats: None)
    (root,) = attempt.inputs["dataset"]
    videos = sorted((root / "videos").rglob("*.mp4"))
    shutil.copyfile(_first_file_shorter(videos, root), videos[0])
    with pytest.raises(JobError, match="frames are missing"):
        run(TrainSpec(steps=1), attempt)


def _first_file_shorter(videos: list[Path], root: Path) -> Path:
    """A video of the first file's first ten frames."""
    import av

    path = root / "short.mp4"
    with av.open(str(videos[0])) as source, av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for number, frame in enumerate(source.decode(video=0)):
            if number == 10:
                break
            target.mux(stream.encode(frame.reformat(format="yuv420p")))
        target.mux(stream.encode())
    return path
