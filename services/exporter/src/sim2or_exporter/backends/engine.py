"""What every engine builder does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sim2or.artifacts.manifest import digest_of
from sim2or.engine_manifest import EngineHost, EngineManifest
from sim2or.messages.export import EngineProfile


@dataclass(frozen=True)
class EngineReport:
    """How a build went.

    Attributes:
        manifest: What was built; also written beside the engine.
        build_s: Time it took [s].
        size_bytes: Of the engine file; 0 where there is none.
    """

    manifest: EngineManifest
    build_s: float
    size_bytes: int


class EngineBuilder(Protocol):
    """Prepares a graph for one runtime."""

    def build(self, onnx_path: Path, out_dir: Path, profile: EngineProfile) -> EngineReport:
        """Builds, checks that every batch of the profile runs, and writes the engine with its manifest.

        Args:
            onnx_path: The graph.
            out_dir: An existing empty directory.
            profile: Batches and precision.

        Raises:
            ConfigError: The runtime, a device or a precision is not available here.
            JobError: The graph cannot be built.
        """


def manifest_of(
    onnx_path: Path, profile: EngineProfile, host: EngineHost, *, file: str | None
) -> EngineManifest:
    """The manifest of an engine that was just built."""
    return EngineManifest(
        host=host,
        onnx=digest_of(onnx_path.read_bytes()),
        file=file,
        precision=profile.precision,
        min_batch=profile.min_batch,
        opt_batch=profile.opt_batch,
        max_batch=profile.max_batch,
    )
