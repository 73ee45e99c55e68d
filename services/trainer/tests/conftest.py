"""A small LeRobot dataset, written by LeRobot: a square on both cameras shows where the joints must go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.contracts.units import to_lerobot
from sim2or.dataset_card import (
    ACTION,
    IMAGE_PREFIX,
    INSTRUMENT,
    STATE,
    CameraCard,
    DatasetCard,
    EpisodeCard,
    channels_of,
)
from sim2or.stage import Cancelled

ROBOT, TASK = load_robot("so101"), load_task("handover")
SIZE_PX = TASK.images.height_px


@dataclass
class WorkContext:
    """A context on local directories that keeps what was reported and may cancel at a step."""

    work: Path
    inputs: dict[str, list[Path]]
    digests: dict[str, list[str]] = field(default_factory=dict)
    shard: int = 0
    shards: int = 1
    cancel_at: float | None = None
    reports: list[tuple[float, float, str, dict[str, float]]] = field(default_factory=list)

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        self.reports.append((done, total, unit, metrics))
        if self.cancel_at is not None and done >= self.cancel_at:
            raise Cancelled


def write_dataset(
    root: Path, *, episodes: int = 5, frames: int = 24, validation: int = 1, seed: int = 0
) -> Path:
    """Writes a dataset whose pictures decide its actions."""
    from lerobot.datasets import LeRobotDataset

    joints = {"dtype": "float32", "shape": (6,), "names": list(ROBOT.lerobot_keys)}
    image = {"dtype": "video", "shape": (SIZE_PX, SIZE_PX, 3), "names": ["height", "width", "channels"]}
    truth = {"dtype": "float32", "shape": (12,), "names": [f"n{i}" for i in range(12)]}
    cameras = sorted(TASK.cameras)
    dataset = LeRobotDataset.create(
        "local/tiny",
        fps=round(TASK.control_hz),
        root=root,
        robot_type=ROBOT.robot_type,
        features={
            STATE: joints,
            ACTION: dict(joints),
            **{IMAGE_PREFIX + name: dict(image) for name in cameras},
            INSTRUMENT: truth,
        },
        use_videos=True,
    )
    rng = np.random.default_rng(0)
    requests = list(TASK.requests.values())
    for number in range(episodes):
        spot = rng.uniform(-1, 1, 2)
        for tick in range(frames):
            dataset.add_frame(_frame(spot, tick / frames, cameras, rng) | {"task": requests[number % 3]})
        dataset.save_episode()
    dataset.finalize()
    _card(cameras, requests, episodes, frames, validation).save(root)
    return root


def _frame(
    spot: np.ndarray, phase: float, cameras: list[str], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    home = np.array(ROBOT.home_rad)
    goal = home + 0.3 * np.array([spot[0], spot[1], -spot[0], -spot[1], 0.5 * spot[0], 0.2 * spot[1]])
    state = home + phase * (goal - home) + rng.normal(0, 0.01, 6)
    picture = np.full((SIZE_PX, SIZE_PX, 3), 60, np.uint8)
    row, column = (40 + 30 * spot).astype(int)
    picture[row : row + 16, column : column + 16] = (220, 60, 40)
    place = np.array([0.2 + 0.05 * spot[0], 0.05 * spot[1], 0.02])
    truth = np.concatenate([place, [1, 0, 0], place - [0.2, 0, 0.1], [0, 1, 0]])
    return {
        STATE: to_lerobot(ROBOT, state).astype(np.float32),
        ACTION: to_lerobot(ROBOT, goal).astype(np.float32),
        INSTRUMENT: truth.astype(np.float32),
        **{IMAGE_PREFIX + name: picture for name in cameras},
    }


def _card(
    cameras: list[str], requests: list[str], episodes: int, frames: int, validation: int
) -> DatasetCard:
    return DatasetCard(
        name="tiny",
        robot=ROBOT.name,
        robot_type=ROBOT.robot_type,
        task=TASK.name,
        calibration_id=ROBOT.calibration_id,
        channels=channels_of(ROBOT),
        cameras={
            name: CameraCard(key=IMAGE_PREFIX + name, height_px=SIZE_PX, width_px=SIZE_PX, codec="libsvtav1")
            for name in cameras
        },
        fps_declared=TASK.control_hz,
        fps_measured=TASK.control_hz,
        privileged={INSTRUMENT: tuple(f"n{i}" for i in range(12))},
        episodes=tuple(
            EpisodeCard(
                episode_index=n,
                file=f"episode_{n:06d}_{n}.hdf5",
                seed=n,
                parent=f"p{n}",
                request=requests[n % 3],
                frames=frames,
                fps_measured=TASK.control_hz,
            )
            for n in range(episodes)
        ),
        splits={"train": (0, episodes - validation), "validation": (episodes - validation, episodes)},
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five episodes of 24 frames, one of them held out; never written to."""
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def context(tmp_path: Path, dataset: Path) -> Callable[..., WorkContext]:
    """Makes contexts that share this test's work directory, as the attempts of one job do."""

    def make(work: str = "work", **options: float) -> WorkContext:
        directory = tmp_path / work
        directory.mkdir(exist_ok=True)
        return WorkContext(directory, {"dataset": [dataset]}, {"dataset": ["sha256:tiny"]}, **options)

    return make
