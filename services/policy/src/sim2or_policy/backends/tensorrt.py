"""A TensorRT engine on the GPU it was built for."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sim2or.engine_manifest import ENGINE_DIRECTORY, EngineHost, EngineManifest
from sim2or.errors import ConfigError, HardwareError
from sim2or.model_card import ACTION, ModelCard

from sim2or_policy.backends.backend import (
    NO_CHANNELS,
    TOLERANCE_RAD,
    Channels,
    Images,
    named_inputs,
    self_test,
)


class TensorRTBackend:
    """An exported model's engine; refused where it was not built."""

    def __init__(self, directory: Path) -> None:
        manifest = EngineManifest.read(directory / ENGINE_DIRECTORY)
        trt = _tensorrt()
        manifest.check_host(_host(trt))
        if manifest.file is None:
            raise ConfigError(f"{directory} holds no engine file: export it with engine: tensorrt")
        self.card = ModelCard.read(directory)
        self.max_batch = manifest.max_batch
        self._model = Engine(trt, (directory / ENGINE_DIRECTORY / manifest.file).read_bytes())
        self._model.check_card(self.card)
        self_test(self, directory, tolerance_rad=TOLERANCE_RAD[manifest.precision])

    def infer(
        self, state_rad: NDArray[np.float32], images: Images, channels: Channels = NO_CHANNELS
    ) -> NDArray[np.float32]:
        """See ``PolicyBackend``."""
        return self._model.run(named_inputs(self.card, state_rad, images, channels))[ACTION]


class Engine:
    """A deserialised engine with one execution context and one stream.

    Args:
        trt: The tensorrt module.
        plan: The engine file's bytes.

    Raises:
        ConfigError: TensorRT refuses the plan.
    """

    def __init__(self, trt: Any, plan: bytes) -> None:
        self._logger = trt.Logger(trt.Logger.WARNING)  # must outlive the runtime
        self._runtime = trt.Runtime(self._logger)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ConfigError(
                "TensorRT cannot load the engine (its messages are above): export the model again here"
            )
        self._engine = engine
        self._context = engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = tuple(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        self.outputs = tuple(name for name in names if name not in self.inputs)

    def check_card(self, card: ModelCard) -> None:
        """Refuses an engine whose inputs are not those of the card."""
        expected = {tensor.name for tensor in card.inputs}
        if set(self.inputs) != expected:
            raise ConfigError(f"the engine takes {sorted(self.inputs)}; the card states {sorted(expected)}")

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Copies the inputs to the GPU, runs the engine and copies the outputs back.

        Args:
            inputs: Name to array, shape (batch, …).

        Raises:
            HardwareError: The GPU did not run it.
        """
        with torch.cuda.stream(self._stream):
            held = [self._bind_input(name, value) for name, value in inputs.items()]
            outputs = {name: self._bind_output(name) for name in self.outputs}
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise HardwareError("TensorRT did not run the engine; its messages are in the log above")
            results = {name: value.to("cpu", non_blocking=True) for name, value in outputs.items()}
        self._stream.synchronize()
        del held  # the engine read these device buffers until now
        return {name: value.numpy() for name, value in results.items()}

    def _bind_input(self, name: str, value: NDArray[Any]) -> torch.Tensor:
        on_device = torch.from_numpy(np.array(value)).to("cuda")
        self._context.set_input_shape(name, tuple(value.shape))
        self._context.set_tensor_address(name, on_device.data_ptr())
        return on_device

    def _bind_output(self, name: str) -> torch.Tensor:
        buffer = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=torch.float32, device="cuda")
        self._context.set_tensor_address(name, buffer.data_ptr())
        return buffer


def _tensorrt() -> ModuleType:
    try:
        import tensorrt as trt
    except ImportError as error:
        raise ConfigError(
            f"backend 'tensorrt' needs the TensorRT libraries, which are missing here ({error}): "
            "install NVIDIA TensorRT 10 or newer on a machine with an NVIDIA GPU, "
            "or set SIM2OR_POLICY_BACKEND=onnxruntime"
        ) from error
    if not torch.cuda.is_available():
        raise ConfigError(
            "backend 'tensorrt' needs an NVIDIA GPU and none is visible here: "
            "set SIM2OR_POLICY_BACKEND=onnxruntime"
        )
    return trt  # type: ignore[no-any-return]


def _host(trt: Any) -> EngineHost:
    return EngineHost(
        runtime="tensorrt",
        version=trt.__version__,
        device=torch.cuda.get_device_name(),
        architecture=".".join(map(str, torch.cuda.get_device_capability())),
    )
