"""Synthetic episodes: plausible pictures, no simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.episode import Episode, EpisodeHeader, write_episode, write_index

ROBOT, TASK = load_robot("so101"), load_task("handover")


@dataclass
class WorkContext:
    """A context on local directories that keeps what was reported."""

    work: Path
    inputs: dict[str, list[Path]]
    digests: dict[str, list[str]] = field(default_factory=dict)
    shard: int = 0
    shards: int = 1
    reports: list[tuple[float, float, str]] = field(default_factory=list)

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        self.reports.append((done, total, unit))


def canary(steps: int, camera: int, seed: int, size: int = 96) -> np.ndarray:
    """Pictures that spell frame number, seed and camera in three patches: shape (T, size, size, 3)."""
    frame = np.arange(steps)
    ramp = np.linspace(40, 180, size, dtype=np.float64)
    images = np.empty((steps, size, size, 3), np.uint8)
    images[:] = (
        ramp[None, :, None, None] * 0.5 + ramp[None, None, :, None] * 0.4 + np.array([0, 15, 30])
    ).astype(np.uint8)
    half = size // 2
    images[:, :half, :half] = (16 + 12 * (frame % 16))[:, None, None, None]
    images[:, :half, half:] = (16 + 12 * (frame // 16 % 16))[:, None, None, None]
    images[:, half:, :half] = 16 + 12 * ((seed + camera) % 16)
    return images


def canary_number(image: np.ndarray) -> tuple[int, int]:
    """What a canary spells: (frame number, (seed + camera) % 16); image is (height, width, 3), 0–255."""
    half = image.shape[0] // 2
    inner = slice(half // 4, 3 * half // 4)
    outer = slice(half + half // 4, half + 3 * half // 4)
    digits = [
        round((float(image[a, b].mean()) - 16) / 12)
        for a, b in ((inner, inner), (inner, outer), (outer, inner))
    ]
    return digits[0] + 16 * digits[1], digits[2]


def make_episode(
    index: int,
    *,
    steps: int = 40,
    success: bool = True,
    seed: int | None = None,
    parent: str | None = None,
    hz: float = 30.0,
) -> Episode:
    """An episode of smooth joint motion and canary pictures."""
    seed = 100000 + index if seed is None else seed
    rng = np.random.default_rng(seed)
    span = ROBOT.upper_rad - ROBOT.lower_rad
    phase = np.linspace(0, 3, steps)[:, None] + rng.uniform(0, 6, 6)
    position = ROBOT.lower_rad + span * (0.5 + 0.4 * np.sin(phase))
    names = list(TASK.instruments)
    header = EpisodeHeader(
        index=index,
        seed=seed,
        robot="so101",
        task="handover",
        joints=ROBOT.joint_names,
        request=TASK.requests[names[seed % len(names)]],
        parent=parent or f"train:{seed}",
        success=success,
        failure="" if success else "dropped",
        control_hz=30.0,
        physics_hz=600.0,
        digests={"robot": ROBOT.digest(), "task": TASK.digest()},
        scenario={"seed": seed},
        metrics={"time_s": steps / 30},
    )
    return Episode(
        header=header,
        actions_rad=(position + 0.01).astype(np.float32),
        position_rad=position.astype(np.float32),
        velocity_radps=rng.normal(size=(steps, 6)).astype(np.float32),
        time_s=np.arange(steps) / hz,
        instrument=rng.normal(size=(steps, 12)).astype(np.float32),
        taken=(np.arange(steps) > steps * 0.7).astype(np.uint8),
        images={"wrist": canary(steps, 1, seed), "room": canary(steps, 2, seed)},
    )


@pytest.fixture
def episode() -> Callable[..., Episode]:
    """Makes synthetic episodes."""
    return make_episode


@pytest.fixture
def spelled() -> Callable[[np.ndarray], tuple[int, int]]:
    """Reads a canary picture."""
    return canary_number


@pytest.fixture
def context() -> type[WorkContext]:
    """Makes stage contexts."""
    return WorkContext


@pytest.fixture
def shard(tmp_path: Path) -> Callable[[str, Sequence[Episode]], Path]:
    """Writes a shard of episodes as the collect stage does."""

    def write(name: str, episodes: Sequence[Episode]) -> Path:
        directory = tmp_path / name
        for item in episodes:
            write_episode(item, directory)
        write_index([item.index_entry() for item in episodes], directory)
        return directory

    return write
