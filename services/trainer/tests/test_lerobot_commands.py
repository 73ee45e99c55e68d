"""LeRobot's own commands take our policy and datasets like ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class


@pytest.mark.slow
def test_lerobot_train_trains_compact_act(dataset: Path, tmp_path: Path) -> None:
    """``lerobot-train --policy.type=compact_act`` takes steps and saves what loads strictly."""
    output = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "lerobot.scripts.lerobot_train",
        "--policy.type=compact_act",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/tiny",
        f"--dataset.root={dataset}",
        "--dataset.eval_split=0.4",
        "--eval_steps=2",
        "--env_eval_freq=0",
        "--steps=4",
        "--save_freq=2",
        "--batch_size=4",
        "--num_workers=0",
        f"--output_dir={output}",
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=os.environ | offline, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    directory = output / "checkpoints" / "last" / "pretrained_model"
    config = PreTrainedConfig.from_pretrained(directory)
    assert config.type == "compact_act"
    assert not any(key.startswith("observation.privileged") for key in config.input_features)
    get_policy_class(config.type).from_pretrained(directory, strict=True)
