"""Training is one process: torchrun may start it, not several of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sim2or.errors import ConfigError
from sim2or.messages.train import TrainSpec
from sim2or.worker import StageContext
from sim2or_trainer.stage import run


def test_one_of_several_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With WORLD_SIZE above 1 nothing is trained, and the message says what is valid."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    context = StageContext(work=tmp_path, inputs={}, digests={}, report=lambda progress: None)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2: .*valid: 1 "):
        run(TrainSpec(steps=10), context)


def test_torchrun_with_one_process_is_welcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With WORLD_SIZE 1 the trainer goes on to what it needs, here its dataset."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    context = StageContext(work=tmp_path, inputs={}, digests={}, report=lambda progress: None)
    with pytest.raises(ConfigError, match="takes one input of role dataset"):
        run(TrainSpec(steps=10), context)
