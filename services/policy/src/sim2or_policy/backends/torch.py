"""A checkpoint in torch, as LeRobot runs it: the reference that an export is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lerobot_policy_sim2or.served import ServedCheckpoint
from numpy.typing import NDArray

from sim2or_policy.backends.backend import NO_CHANNELS, Channels, Images, named_inputs

MAX_BATCH = 32


class TorchBackend:
    """A trained checkpoint, on one CPU thread."""

    def __init__(self, directory: Path) -> None:
        torch.set_num_threads(1)
        self._checkpoint = ServedCheckpoint.load(directory)
        self.card = self._checkpoint.card
        self.max_batch = MAX_BATCH

    def infer(
        self, state_rad: NDArray[np.float32], images: Images, channels: Channels = NO_CHANNELS
    ) -> NDArray[np.float32]:
        """See ``PolicyBackend``."""
        actions_rad: NDArray[np.float32] = self._checkpoint.actions_rad(
            named_inputs(self.card, state_rad, images, channels)
        )
        return actions_rad
