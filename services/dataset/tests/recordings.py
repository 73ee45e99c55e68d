"""Recordings as Isaac Lab's RecorderManager writes them, made by h5py: no simulator."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task

ROBOT, TASK = load_robot("so101"), load_task("handover")
STEPS = 6
SIM_ARGS = {"dt": 1 / 600, "decimation": 20, "render_interval": 20, "num_envs": 2}
BASE_M = (0.3, -0.2, 0.1)
"""Where the arm stands in its environment, turned by a quarter about the vertical."""
TURNED_XYZW = (0.0, 0.0, np.sin(np.pi / 4), np.cos(np.pi / 4))
LYING_M = (0.20, -0.05, 0.011)
"""Where the instrument lies, in the arm's base frame, its tip along the base's x."""

Demo = dict[str, Any]
Change = Callable[[Demo], None]


def demo(seed: int = 0) -> Demo:
    """Columns of one demonstration: joints move, the scalpel lies still, the other instruments are parked."""
    rng = np.random.default_rng(seed)
    position = np.array(ROBOT.home_rad) + np.cumsum(rng.uniform(-0.02, 0.02, (STEPS + 1, 6)), axis=0)
    velocity = rng.uniform(-0.3, 0.3, (STEPS + 1, 6))
    actions = position[1:] + 0.01
    size = (STEPS, TASK.images.height_px, TASK.images.width_px, 3)
    columns: Demo = {
        "actions": actions,
        "processed_actions": actions,
        "obs/actions": actions,
        "obs/joint_pos": position[:-1],
        "obs/joint_vel": velocity[:-1],
    }
    for number, camera in enumerate(TASK.cameras):
        images = np.full(size, 40 * number + 10, np.uint8)
        images += np.arange(STEPS, dtype=np.uint8)[:, None, None, None]
        columns[f"obs/{camera}"] = images
    x, y, z = BASE_M
    at_m = (x - LYING_M[1], y + LYING_M[0], z + LYING_M[2])  # a quarter turn takes (x, y) to (−y, x)
    poses = {
        "articulation/robot": (*BASE_M, *TURNED_XYZW),
        "rigid_object/scalpel": (*at_m, *TURNED_XYZW),
        "rigid_object/forceps": (0.5, 0.0, -5.0, 0.0, 0.0, 0.0, 1.0),
        "rigid_object/scissors": (1.0, 0.0, -5.0, 0.0, 0.0, 0.0, 1.0),
    }
    for where, rows in (("initial_state", slice(0, 1)), ("states", slice(1, None))):
        for name, pose in poses.items():
            columns[f"{where}/{name}/root_pose"] = np.tile(pose, (STEPS + 1, 1))[rows]
            columns[f"{where}/{name}/root_velocity"] = np.zeros((STEPS + 1, 6))[rows]
        columns[f"{where}/articulation/robot/joint_position"] = position[rows]
        columns[f"{where}/articulation/robot/joint_velocity"] = velocity[rows]
    return columns


def record(
    path: Path,
    demos: list[Demo] | None = None,
    *,
    version: int | None = 1,
    sim_args: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a recording; ``None`` as a version or an attribute leaves it out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [demo()] if demos is None else demos
    args = {"env_name": "", "type": 2, "sim_args": dict(sim_args or SIM_ARGS), **(env or {})}
    with h5py.File(path, "w") as file:
        if version is not None:
            file.attrs["format_version"] = version
        data = file.create_group("data")
        data.attrs["env_args"], data.attrs["total"] = json.dumps(args), len(columns) * STEPS
        for number, one in enumerate(columns):
            group = data.create_group(f"demo_{number}")
            told = {"num_samples": len(one["actions"]), "success": True, **(attrs or {})}
            for key, value in told.items():
                if value is not None:
                    group.attrs[key] = value
            for key, values in one.items():
                stored = values if values.dtype == np.uint8 else values.astype(np.float32)
                group.create_dataset(key, data=stored, compression="gzip", compression_opts=2)
    return path


def changed(key: str, value: Callable[[NDArray[Any]], NDArray[Any]] | None) -> Demo:
    """A demonstration with one column changed, or left out."""
    columns = demo()
    if value is None:
        del columns[key]
    else:
        columns[key] = value(columns[key])
    return columns
