"""Demonstrations that Isaac Lab's RecorderManager wrote become a LeRobot dataset."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.contracts.units import to_lerobot
from sim2or_sim.backends.isaaclab.record import record
from sim2or_sim.backends.isaaclab.tasks import HAND_OVER
from sim2or_sim.backends.isaaclab.tasks.demonstrations import demonstrations
from sim2or_sim.backends.isaaclab.tasks.hand_over import HandOverEnvCfg

ROBOT, TASK = load_robot("so101"), load_task("handover")
ROOT = Path(__file__).parents[4]
PYTHON = ROOT / ".venv/bin/python"
"""The environment that has the dataset service: it and Isaac Lab live apart."""
LOOK = """
import json, sys
from lerobot.datasets.lerobot_dataset import LeRobotDataset
data = LeRobotDataset("local/recorded", root=sys.argv[1])
lengths = [int(n) for n in data.meta.episodes["length"]]
firsts = [data[sum(lengths[:i])] for i in range(len(lengths))]
print(json.dumps({
    "fps": data.fps,
    "lengths": lengths,
    "names": data.features["observation.state"]["names"],
    "states": [item["observation.state"].tolist() for item in firsts],
    "actions": [item["action"].tolist() for item in firsts],
    "tasks": [item["task"] for item in firsts],
    "images": {key: list(firsts[0][key].shape) for key in data.meta.camera_keys},
}))
"""

pytestmark = [pytest.mark.isaac, pytest.mark.slow]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recording goes, alone in its directory as in an artifact."""
    return tmp_path_factory.mktemp("recording") / "demos.hdf5"


@pytest.fixture(scope="module")
def env(file: Path) -> Iterator[Any]:
    """Two rooms whose expert has handed over at least twice."""
    cfg = HandOverEnvCfg(recorders=demonstrations(file))
    cfg.scene.num_envs, cfg.seed = 2, 3
    env = gymnasium.make(HAND_OVER, cfg=cfg).unwrapped
    print(json.dumps(record(env, 2)))
    yield env
    env.close()


def test_what_succeeded_is_in_the_file(env: Any, file: Path) -> None:
    """Rows are before their action, states after it; joints, rate and truth are in the file."""
    kinematics = Kinematics(ROBOT)
    with h5py.File(file) as recorded:
        data = recorded["data"]
        args = json.loads(data.attrs["env_args"])
        assert (args["env_name"], args["joints"]) == (HAND_OVER, list(ROBOT.joint_names))
        sim = args["sim_args"]
        assert sim["dt"] * sim["decimation"] == pytest.approx(TASK.period_s)
        assert len(data) == env.recorder_manager.exported_successful_episode_count >= 2
        for demo in data.values():
            assert demo.attrs["success"]
            after = demo["states/articulation/robot/joint_position"][:]
            np.testing.assert_array_equal(demo["obs/joint_pos"][1:], after[:-1])
            truth, position = demo["privileged/instrument"][:], demo["obs/joint_pos"][:]
            tool = kinematics.body_poses(position)[:, kinematics.body_names.index(ROBOT.tool.body), :3, :3]
            seen = kinematics.grasp_position(position) + np.einsum("tij,tj->ti", tool, truth[:, 6:9])
            np.testing.assert_allclose(seen, truth[:, :3], atol=2e-5)
            lift_m = truth[:, 2] - truth[0, 2]
            assert lift_m.max() > TASK.success.lift_m
            assert demo["privileged/taken"][-1] == 1


def test_no_picture_is_of_the_past(env: Any) -> None:
    """Pictures of a step, and the first ones after an environment started anew, are of that instant."""
    home = torch.tensor([ROBOT.home_rad] * 2)
    env.episode_length_buf[0] = env.max_episode_length - 1
    for expected in ([True, False], [False, False]):
        observation, _, _, late, _ = env.step(home)
        assert late.tolist() == expected
        seen = {name: observation["policy"][name].clone() for name in TASK.cameras}
        env.sim.forward()
        for name, picture in seen.items():
            camera = env.scene[f"camera_{name}"]
            camera.reset()
            torch.testing.assert_close(picture, camera.data.output["rgb"].torch[..., :3], atol=0, rtol=0)


def test_a_recording_becomes_a_dataset(env: Any, file: Path, tmp_path: Path) -> None:
    """Imported, converted and merged, LeRobot loads it: rows, rate, names and first states are right."""
    env.recorder_manager.close()
    for stage, given, made in (
        ("import", f"recording={file.parent}", "episodes"),
        ("convert", f"episodes={tmp_path / 'import/episodes'}", "part"),
        ("dataset", f"parts={tmp_path / 'convert/part'}", "dataset"),
    ):
        command = ["-m", "sim2or_dataset", "run", "--stage", stage, "--input", given]
        _python(*command, "--out", str(tmp_path / stage))
        assert (tmp_path / stage / made).is_dir()
    seen = json.loads(_python("-c", LOOK, str(tmp_path / "dataset/dataset")))
    assert (seen["fps"], tuple(seen["names"])) == (TASK.control_hz, ROBOT.lerobot_keys)
    with h5py.File(file) as recorded:
        demos = sorted(recorded["data"].values(), key=lambda demo: int(demo.name.rsplit("_")[-1]))
        assert sorted(seen["lengths"]) == sorted(len(demo["actions"]) for demo in demos)
        first = {tuple(np.round(state, 3)) for state in seen["states"]}
        for demo in demos:
            start = demo["initial_state/articulation/robot/joint_position"][0]
            assert tuple(np.round(to_lerobot(ROBOT, start).astype(np.float32).astype(float), 3)) in first
    assert set(seen["tasks"]) <= set(TASK.requests.values())
    assert set(seen["images"]) == {f"observation.images.{name}" for name in TASK.cameras}


def _python(*arguments: str) -> str:
    """What the other environment's Python prints, its last line."""
    done = subprocess.run([str(PYTHON), *arguments], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]
