"""Engine manifests: what an engine was built with, so that it is rebuilt where it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt, ValidationError

from sim2or.artifacts.manifest import Digest
from sim2or.errors import ConfigError
from sim2or.messages.message import Spec

ENGINE_DIRECTORY = "engine"
MANIFEST_FILE = "engine.json"


class EngineHost(Spec):
    """The part of a machine that an engine is bound to.

    Attributes:
        runtime: For example ``"tensorrt"``.
        version: The runtime's full version.
        device: For example ``"NVIDIA H200"`` or ``"cpu"``.
        architecture: GPU compute capability such as ``"9.0"``; the machine's architecture for a CPU.
    """

    runtime: Literal["tensorrt", "onnxruntime"]
    version: str
    device: str
    architecture: str


class EngineManifest(Spec):
    """What an engine was built with.

    Attributes:
        host: Where it was built.
        onnx: Digest of the graph it was built from.
        file: The engine file beside the manifest; None where the runtime reads the graph itself.
        precision: Arithmetic inside.
        min_batch: Smallest batch it takes.
        opt_batch: Batch it was tuned for.
        max_batch: Largest batch it takes.
    """

    host: EngineHost
    onnx: Digest
    file: str | None
    precision: Literal["fp32", "fp16"]
    min_batch: PositiveInt
    opt_batch: PositiveInt
    max_batch: PositiveInt

    def check_host(self, host: EngineHost) -> None:
        """Refuses a machine other than the one the engine was built for.

        Raises:
            ConfigError: Runtime, version, device or architecture differ.
        """
        differing = [
            f"{name} {getattr(self.host, name)!r}, here {getattr(host, name)!r}"
            for name in EngineHost.model_fields
            if getattr(self.host, name) != getattr(host, name)
        ]
        if differing:
            raise ConfigError(
                f"the engine was built with {'; '.join(differing)}: export again on this machine"
            )

    def write(self, directory: Path) -> None:
        """Writes ``engine.json`` into a directory."""
        (directory / MANIFEST_FILE).write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> EngineManifest:
        """Reads ``engine.json`` from a directory.

        Raises:
            ConfigError: It is missing or malformed.
        """
        path = directory / MANIFEST_FILE
        if not path.exists():
            raise ConfigError(
                f"{path} is missing: the model was exported without an engine; export it with one"
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ConfigError(f"{path} is no engine manifest: {error}") from error
