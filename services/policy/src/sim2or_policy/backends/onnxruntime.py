"""ONNX Runtime on one CPU thread: the default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from sim2or.model_card import MODEL_FILE, ModelCard

from sim2or_policy.backends.backend import (
    NO_CHANNELS,
    TOLERANCE_RAD,
    Channels,
    Images,
    named_inputs,
    self_test,
)

MAX_BATCH = 32


class OnnxRuntimeBackend:
    """An exported model."""

    def __init__(self, directory: Path) -> None:
        self.card = ModelCard.read(directory)
        self.max_batch = MAX_BATCH
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(directory / MODEL_FILE), options, providers=["CPUExecutionProvider"]
        )
        self_test(self, directory, tolerance_rad=TOLERANCE_RAD["fp32"])

    def infer(
        self, state_rad: NDArray[np.float32], images: Images, channels: Channels = NO_CHANNELS
    ) -> NDArray[np.float32]:
        """See ``PolicyBackend``."""
        actions_rad: NDArray[np.float32] = self._session.run(
            None, named_inputs(self.card, state_rad, images, channels)
        )[0]
        return actions_rad
