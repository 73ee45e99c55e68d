"""Synthetic evidence of a whole run, in the formats that the real stages write."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import scenario_list
from sim2or.contracts.task import load_task
from sim2or.dataset_card import CameraCard, DatasetCard, EpisodeCard, channels_of
from sim2or.episode import Episode, EpisodeHeader, write_episode, write_index

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
FRAMES = 24


@dataclass
class FakeContext:
    """A stage's context without a worker."""

    work: Path
    inputs: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    digests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shard: int = 0
    shards: int = 1

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        """Accepts any progress that is one."""
        assert 0 <= done <= total


def trial_lines(
    name: str = "heldout",
    count: int = 30,
    failed: Sequence[int] = (),
    artifact: str = DIGEST,
    offset: int = 0,
    actor: str = "policy",
) -> list[dict[str, Any]]:
    """Trials on a scenario list; those whose number is in ``failed`` failed."""
    lines = []
    for number, scenario in enumerate(scenario_list(load_task("handover"), name, count, offset)):
        lost = number in failed
        lines.append(
            {
                "seed": scenario.seed,
                "actor": actor,
                "scenario": scenario.model_dump(mode="json"),
                "instrument": scenario.instrument,
                "request": scenario.request,
                "success": not lost,
                "failure": "dropped" if lost else "",
                "dropped": lost,
                "steps": 240 if lost else 120 + number % 40,
                "time_s": 8.0 if lost else 4.0 + (number % 40) / 30,
                "artifact": artifact if actor == "policy" else "",
                "holds": number % 3,
                "safety": {"step": number % 2},
                "handle_angle_rad": 0.1 * math.sin(number),
                "path_length_m": 0.9 + 0.01 * (number % 7),
                "mean_squared_jerk_rad2ps6": 800.0 + number,
                "chunks": {"accepted": 24},
                "latency_ticks": 1,
            }
        )
    return lines


def write_trials(directory: Path, lines: Sequence[Mapping[str, Any]], frames: Sequence[int] = ()) -> Path:
    """Writes a rollouts artifact; trials whose number is in ``frames`` have recorded pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in frames:
        seed = lines[number]["seed"]
        pictures = film(seed, 120, 160)
        np.savez_compressed(
            directory / f"trial_{seed}.npz", frames_room=pictures, hold=np.zeros(FRAMES, bool)
        )
    return directory


def film(seed: int, height_px: int = 96, width_px: int = 96) -> np.ndarray:
    """Pictures of a disc that wanders over a teal cloth, shape (FRAMES, height_px, width_px, 3)."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    pictures = np.full((FRAMES, height_px, width_px, 3), (26, 107, 102), dtype=np.uint8)
    for t in range(FRAMES):
        centre = width_px * (0.2 + 0.6 * t / FRAMES), height_px * (0.5 + 0.2 * math.sin(seed + t / 4))
        pictures[t][(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 90] = (240, 240, 235)
    return pictures


def write_episodes(directory: Path, count: int = 3) -> Path:
    """Writes demonstrations in the real format; the last one failed."""
    robot, task = load_robot("so101"), load_task("handover")
    entries = []
    for number, scenario in enumerate(scenario_list(task, "train", count)):
        good = number < count - 1
        header = EpisodeHeader(
            index=number,
            seed=scenario.seed,
            robot=robot.name,
            task=task.name,
            joints=robot.joint_names,
            request=scenario.request,
            parent=f"demo-{scenario.seed}",
            success=good,
            failure="" if good else "dropped",
            control_hz=task.control_hz,
            physics_hz=task.physics_hz,
            scenario=scenario.model_dump(mode="json"),
        )
        wave = np.linspace(0, 1, FRAMES, dtype=np.float32)[:, None].repeat(6, axis=1)
        pictures = film(scenario.seed)
        episode = Episode(
            header=header,
            actions_rad=wave,
            position_rad=wave,
            velocity_radps=wave,
            time_s=np.arange(FRAMES) / task.control_hz,
            instrument=np.zeros((FRAMES, 12), np.float32),
            taken=np.zeros(FRAMES, np.uint8),
            images={"room": pictures, "wrist": pictures[::-1].copy()},
        )
        write_episode(episode, directory)
        entries.append(episode.index_entry())
    write_index(entries, directory)
    return directory


def write_dataset(directory: Path, episodes: int = 120) -> Path:
    """Writes the card of a dataset."""
    robot, task = load_robot("so101"), load_task("handover")
    card = DatasetCard(
        name="handover",
        robot=robot.name,
        robot_type=robot.robot_type,
        task=task.name,
        calibration_id=robot.calibration_id,
        channels=channels_of(robot),
        cameras={
            name: CameraCard(key=f"observation.images.{name}", height_px=96, width_px=96, codec="h264")
            for name in task.cameras
        },
        fps_declared=30.0,
        fps_measured=30.0,
        episodes=tuple(
            EpisodeCard(
                episode_index=i,
                file=f"episode_{i:06d}_{s.seed}.hdf5",
                seed=s.seed,
                parent=f"demo-{s.seed}",
                request=s.request,
                frames=140 + i % 20,
                fps_measured=30.0,
            )
            for i, s in enumerate(scenario_list(task, "train", episodes))
        ),
        splits={"train": (0, episodes - 6), "validation": (episodes - 6, episodes)},
    )
    card.save(directory)
    return directory


def write_checkpoint(directory: Path) -> Path:
    """Writes a card and a training log; the held-out loss repeats until it is measured again."""
    directory.mkdir(parents=True)
    lines = []
    for step in range(20, 3020, 20):
        measured = max(500, step // 500 * 500)
        held_out = {"heldout_loss": 0.95 * math.exp(-measured / 500) + 0.03} if step >= 500 else {}
        loss = 0.9 * math.exp(-step / 500) + 0.02
        lines.append({"step": step, "train_s": step / 10, "lr": 1e-3, "loss": loss} | held_out)
    (directory / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = {
        "policy": "compact_act",
        "privileged": False,
        "inputs": [{"name": "observation.state"}, {"name": "observation.images.room"}],
        "figures": {
            "parameters": 1_234_567,
            "steps": 3000,
            "train_s": 298.5,
            "heldout_loss": 0.0324,
            "seed": 0,
        },
    }
    (directory / "card.json").write_text(json.dumps(card))
    return directory


def write_model(directory: Path) -> Path:
    """Writes what the exporter measured."""
    directory.mkdir(parents=True)
    (directory / "export.json").write_text(
        json.dumps({"max_abs_diff_rad": 2.1e-6, "opset": 18, "parity": []})
    )
    return directory


def write_deployment(directory: Path) -> Path:
    """Writes twenty hand-overs in real time."""
    directory.mkdir(parents=True)
    trials = [
        {
            "seed": 3_000_000 + n,
            "success": n != 7,
            "failure": "" if n != 7 else "not_taken",
            "time_s": 4.6 + 0.1 * (n % 9),
            "work_ms": [2.0 + 0.01 * k + 8.0 * (k % 5 == 0) for k in range(140)],
        }
        for n in range(20)
    ]
    figures = {
        "trials": 20,
        "successes": 19,
        "ticks": 2890,
        "deadline_misses": 4,
        "stale_executed": 0,
        "violations": 0,
    }
    (directory / "deployment.json").write_text(json.dumps({**figures, "holds": 41, "per_trial": trials}))
    return directory


LATENCY_MS = {
    "torch": {"p50": 9.1, "p95": 11.8, "p99": 14.2},
    "onnx": {"p50": 4.2, "p95": 5.0, "p99": 6.3},
}
WALL_S = {
    "collect": 61.0,
    "dataset": 12.0,
    "train": 300.0,
    "export": 14.0,
    "rollout": 85.0,
    "evaluate": 90.0,
    "deploy": 100.0,
    "total": 600.0,
}


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., FakeContext]:
    """Makes contexts with inputs by role; a role's digest is DIGEST."""

    def make(name: str = "job", **inputs: Path | Sequence[Path]) -> FakeContext:
        work = tmp_path / name
        work.mkdir(exist_ok=True)
        lists = {role: [paths] if isinstance(paths, Path) else list(paths) for role, paths in inputs.items()}
        return FakeContext(work, lists, {role: [DIGEST] * len(paths) for role, paths in lists.items()})

    return make
