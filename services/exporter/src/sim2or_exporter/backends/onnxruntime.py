"""ONNX Runtime on the CPU: reads the graph itself, so building is checking."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from sim2or.engine_manifest import EngineHost
from sim2or.errors import ConfigError, JobError
from sim2or.messages.export import EngineProfile

from sim2or_exporter.backends.engine import EngineReport, manifest_of

PROVIDERS = ("CPUExecutionProvider",)
_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class OnnxSession:
    """A graph in ONNX Runtime, on one thread."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=list(PROVIDERS))

    def __call__(self, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """Runs the graph and gives its first output."""
        output: NDArray[Any] = self._session.run(None, inputs)[0]
        return output

    def zeros(self, batch: int) -> dict[str, NDArray[Any]]:
        """Inputs of zeros in the graph's own shapes and types."""
        return {
            value.name: np.zeros((batch, *value.shape[1:]), _DTYPES[value.type])
            for value in self._session.get_inputs()
        }


class OnnxRuntimeBuilder:
    """Checks that the graph runs at every batch of the profile."""

    def build(self, onnx_path: Path, out_dir: Path, profile: EngineProfile) -> EngineReport:
        """See ``EngineBuilder``."""
        if profile.precision != "fp32":
            raise ConfigError(
                f"profile.precision {profile.precision!r}: on a CPU only fp32; use engine tensorrt"
            )
        start = time.perf_counter()
        session = OnnxSession(onnx_path)
        for batch in sorted({profile.min_batch, profile.opt_batch, profile.max_batch}):
            rows = len(session(session.zeros(batch)))
            if rows != batch:
                raise JobError(f"{onnx_path.name} answered a batch of {batch} with {rows} rows")
        host = EngineHost(
            runtime="onnxruntime",
            version=onnxruntime.__version__,
            device="cpu",
            architecture=platform.machine(),
        )
        manifest = manifest_of(onnx_path, profile, host, file=None)
        manifest.write(out_dir)
        return EngineReport(manifest, time.perf_counter() - start, 0)
