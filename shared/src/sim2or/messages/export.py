"""The configuration of the export stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from sim2or.messages.message import Spec


class EngineProfile(Spec):
    """What an engine is built for.

    Attributes:
        min_batch: Smallest batch the engine takes.
        opt_batch: Batch it is tuned for.
        max_batch: Largest batch it takes.
        precision: Arithmetic inside; inputs and outputs keep their types.
        workspace_mib: Scratch memory the builder may use [MiB].
    """

    min_batch: PositiveInt = 1
    opt_batch: PositiveInt = 1
    max_batch: PositiveInt = 32
    precision: Literal["fp32", "fp16"] = "fp32"
    workspace_mib: PositiveInt = 1024

    @model_validator(mode="after")
    def _ordered(self) -> EngineProfile:
        if not self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"min_batch {self.min_batch}, opt_batch {self.opt_batch}, max_batch {self.max_batch}: "
                "they must not decrease"
            )
        return self


class ExportSpec(Spec):
    """How a checkpoint becomes a model that runs without its framework.

    Attributes:
        engine: What runs the model beside plain ONNX; TensorRT needs an NVIDIA GPU.
        profile: Batches and precision of the engine.
        parity_batches: Batch sizes at which the export is compared with the checkpoint.
        parity_frames: Recorded frames to compare on, when a dataset is given.
        max_abs_diff_rad: Largest accepted difference of a joint target [rad].
        latency_calls: Timed calls of each runtime at batch 1; 0 measures nothing.
        seed: Of the random inputs.
    """

    engine: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
    profile: EngineProfile = EngineProfile()
    parity_batches: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 7, 32)
    parity_frames: Annotated[int, Field(ge=0)] = 64
    max_abs_diff_rad: PositiveFloat = 1e-4
    latency_calls: Annotated[int, Field(ge=0)] = 300
    seed: Annotated[int, Field(ge=0)] = 0
