"""TensorRT: builds an engine for the GPU of this machine. Works with TensorRT 10 and 11.

Networks are strongly typed in both versions: the precision is written into the ONNX graph, never asked for by
a builder flag (TensorRT 11 has none any more).
"""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from sim2or.engine_manifest import EngineHost
from sim2or.errors import ConfigError, JobError
from sim2or.messages.export import EngineProfile

from sim2or_exporter.backends.engine import EngineReport, manifest_of

ENGINE_FILE = "model.engine"
TIMING_CACHE_FILE = "timing.cache"
OLDEST_MAJOR = 10
MIB = 1 << 20


class TensorRTBuilder:
    """Builds an engine from a graph.

    Raises:
        ConfigError: TensorRT or an NVIDIA GPU is missing here; said before any work is done.
    """

    def __init__(self) -> None:
        self._trt = _tensorrt()
        self._host = EngineHost(
            runtime="tensorrt",
            version=self._trt.__version__,
            device=torch.cuda.get_device_name(),
            architecture=".".join(map(str, torch.cuda.get_device_capability())),
        )

    def build(self, onnx_path: Path, out_dir: Path, profile: EngineProfile) -> EngineReport:
        """See ``EngineBuilder``."""
        start = time.perf_counter()
        typed_path = _typed_graph(onnx_path, out_dir / "typed.onnx", profile)
        plan = _build_plan(self._trt, typed_path, out_dir / TIMING_CACHE_FILE, profile)
        typed_path.unlink()
        (out_dir / ENGINE_FILE).write_bytes(plan)
        manifest = manifest_of(onnx_path, profile, self._host, file=ENGINE_FILE)
        manifest.write(out_dir)
        return EngineReport(manifest, time.perf_counter() - start, len(plan))


def _tensorrt() -> ModuleType:
    try:
        import tensorrt as trt
    except ImportError as error:
        raise ConfigError(
            f"engine 'tensorrt' needs the TensorRT libraries, which are missing here ({error}): install "
            f"NVIDIA TensorRT {OLDEST_MAJOR} or newer on a machine with an NVIDIA GPU, "
            "or set engine: onnxruntime"
        ) from error
    if not torch.cuda.is_available():
        raise ConfigError(
            "engine 'tensorrt' needs an NVIDIA GPU and none is visible here: set engine: onnxruntime"
        )
    if int(trt.__version__.split(".")[0]) < OLDEST_MAJOR:
        raise ConfigError(f"TensorRT {trt.__version__} is too old: install {OLDEST_MAJOR} or newer")
    return trt  # type: ignore[no-any-return]


def _typed_graph(onnx_path: Path, typed_path: Path, profile: EngineProfile) -> Path:
    """Writes the precision into the graph; inputs and outputs keep their types."""
    model = onnx.load(onnx_path)
    if profile.precision == "fp16":
        model = convert_float_to_float16(model, keep_io_types=True)
    onnx.save(model, typed_path)
    return typed_path


def _build_plan(trt: Any, onnx_path: Path, cache_path: Path, profile: EngineProfile) -> bytes:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    _parse(trt, network, logger, onnx_path)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, profile.workspace_mib * MIB)
    config.clear_flag(trt.BuilderFlag.TF32)  # its 10-bit mantissa breaks parity with the checkpoint
    config.add_optimization_profile(_optimization_profile(builder, network, profile))
    cache = config.create_timing_cache(cache_path.read_bytes() if cache_path.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise JobError(f"TensorRT could not build {onnx_path.name}; its own messages are in the log above")
    cache_path.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return bytes(plan)


def _network_flags(trt: Any) -> int:
    """Strongly typed: asked for in TensorRT 10, always so from 11 on."""
    major = int(trt.__version__.split(".")[0])
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if major < 11 else 0


def _parse(trt: Any, network: Any, logger: Any, onnx_path: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(onnx_path)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = "; ".join(f"{error.node_name() or 'graph'}: {error.desc()}" for error in errors)
    raise JobError(f"TensorRT cannot read {onnx_path.name}, {len(errors)} errors: {lines}")


def _optimization_profile(builder: Any, network: Any, profile: EngineProfile) -> Any:
    """One profile over every input: only the batch is dynamic."""
    optimization = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        optimization.set_shape(
            tensor.name,
            (profile.min_batch, *rest),
            (profile.opt_batch, *rest),
            (profile.max_batch, *rest),
        )
    return optimization
