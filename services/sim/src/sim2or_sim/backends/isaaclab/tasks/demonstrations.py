"""Recording of demonstrations with Isaac Lab's RecorderManager, and what a converter needs beside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from isaaclab.envs.mdp.recorders.recorders_cfg import ActionStateRecorderManagerCfg
from isaaclab.managers import DatasetExportMode, RecorderTerm, RecorderTermCfg
from isaaclab.utils import configclass

if TYPE_CHECKING:
    from sim2or_sim.backends.isaaclab.tasks.hand_over import HandOverEnv


class PreStepTruthRecorder(RecorderTerm):
    """What only the simulator knows, at the observation: labels for judges, never a policy's input."""

    _env: HandOverEnv

    def record_pre_step(self) -> tuple[str, dict[str, torch.Tensor]]:
        """Where the instrument is, shape (num_envs, 12), and whether the surgeon's hand holds it."""
        taken = self._env.surgeon.taken.to(torch.uint8)
        return "privileged", {"instrument": self._env.tray.truth(), "taken": taken}


@configclass
class DemonstrationsCfg(ActionStateRecorderManagerCfg):
    """Actions, observations and states of what succeeded, in one file."""

    dataset_export_mode: DatasetExportMode = DatasetExportMode.EXPORT_SUCCEEDED_ONLY
    record_pre_step_truth: RecorderTermCfg = RecorderTermCfg(class_type=PreStepTruthRecorder)


def demonstrations(file: Path) -> Any:
    """The recorder's configuration for a file, which is overwritten."""
    return DemonstrationsCfg(dataset_export_dir_path=str(file.parent), dataset_filename=file.name)
