"""The export stage: a checkpoint becomes a model that runs without its framework."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot_policy_sim2or.served import ServedCheckpoint
from sim2or.artifacts.store import fresh_directory
from sim2or.engine_manifest import ENGINE_DIRECTORY
from sim2or.errors import ConfigError
from sim2or.messages.export import ExportSpec
from sim2or.model_card import MODEL_FILE, SELF_TEST_FILE, ModelCard
from sim2or.stage import Context, Stage, StageResult

from sim2or_exporter.backends.engine import EngineBuilder
from sim2or_exporter.backends.onnxruntime import OnnxRuntimeBuilder, OnnxSession
from sim2or_exporter.backends.tensorrt import TensorRTBuilder
from sim2or_exporter.graph import OPSET, check_graph, write_graph
from sim2or_exporter.latency import latency_ms
from sim2or_exporter.parity import Comparison, compare, require
from sim2or_exporter.raw_policy import RawPolicy
from sim2or_exporter.samples import Inputs, random_inputs, recorded_inputs, take

REPORT_FILE = "export.json"
THREADS = 1
BUILDERS: dict[str, type[EngineBuilder]] = {"onnxruntime": OnnxRuntimeBuilder, "tensorrt": TensorRTBuilder}
_STEPS = 5


def run(spec: ExportSpec, context: Context) -> StageResult:
    """Exports a checkpoint, compares it with the checkpoint, times both and builds the engine.

    Args:
        spec: How.
        context: Inputs ``checkpoint`` and, if there is one, ``dataset``.

    Returns:
        Output ``model``: ``model.onnx``, ``card.json``, ``export.json``, ``selftest.npz``, ``engine/``.
        Timings are in the summary only, so that the same checkpoint gives the same artifact.
    """
    torch.set_num_threads(THREADS)
    checkpoint = ServedCheckpoint.load(_checkpoint_directory(context))
    out = fresh_directory(context.work / "model")
    builder = BUILDERS[spec.engine]()
    context.progress(1, _STEPS, "steps")

    start = time.perf_counter()
    module = write_graph(checkpoint, out / MODEL_FILE)
    check_graph(out / MODEL_FILE, checkpoint.card)
    export_s = time.perf_counter() - start
    session = OnnxSession(out / MODEL_FILE)
    context.progress(2, _STEPS, "steps")

    batches = list(_batches(spec, context, checkpoint))
    comparisons = compare(checkpoint.actions_rad, session, batches)
    worst_rad = require(comparisons, max_abs_diff_rad=spec.max_abs_diff_rad)
    context.progress(3, _STEPS, "steps", max_abs_diff_rad=worst_rad)

    latency = _latency(spec, module, session, take(batches[0][1], 1)) if spec.latency_calls else {}
    context.progress(4, _STEPS, "steps")

    engine = builder.build(out / MODEL_FILE, fresh_directory(out / ENGINE_DIRECTORY), spec.profile)
    _write_evidence(out, checkpoint, context, comparisons, session)
    context.progress(5, _STEPS, "steps")
    return StageResult(
        outputs={"model": out},
        summary={
            "onnx_max_abs_diff": worst_rad,
            "parity": [asdict(comparison) for comparison in comparisons],
            "latency_ms": latency,
            "latency_threads": THREADS,
            "latency_calls": spec.latency_calls,
            "export_s": round(export_s, 3),
            "model_bytes": (out / MODEL_FILE).stat().st_size,
            "engine": engine.manifest.host.model_dump() | {"build_s": round(engine.build_s, 3)},
        },
    )


STAGE = Stage("export", ExportSpec, run)


def _checkpoint_directory(context: Context) -> Path:
    given = context.inputs.get("checkpoint", ())
    if len(given) != 1:
        raise ConfigError(f"export takes exactly one input checkpoint; {len(given)} were given")
    return given[0]


def _batches(spec: ExportSpec, context: Context, checkpoint: ServedCheckpoint) -> list[tuple[str, Inputs]]:
    """Inputs to compare on; the first batch is the smallest."""
    card, robot = checkpoint.card, checkpoint.robot
    sizes = sorted(set(spec.parity_batches))
    batches = [("random", random_inputs(card, robot, batch=n, seed=spec.seed + n)) for n in sizes]
    for dataset in context.inputs.get("dataset", ())[:1]:
        if spec.parity_frames:
            frames = recorded_inputs(card, robot, dataset, frames=spec.parity_frames)
            batches += [("recorded", take(frames, n)) for n in sorted({1, spec.parity_frames})]
    return batches


def _latency(
    spec: ExportSpec, module: RawPolicy, session: OnnxSession, inputs: Inputs
) -> dict[str, dict[str, float]]:
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    with torch.inference_mode():
        calls = {"torch": partial(module, *tensors), "onnx": partial(session, inputs)}
        return latency_ms(calls, count=spec.latency_calls)


def _write_evidence(
    out: Path,
    checkpoint: ServedCheckpoint,
    context: Context,
    comparisons: tuple[Comparison, ...],
    session: OnnxSession,
) -> None:
    worst_rad = max(comparison.max_abs_diff_rad for comparison in comparisons)
    card = ModelCard.model_validate(
        checkpoint.card.model_dump()
        | {
            "sources": {**checkpoint.card.sources, **{k: tuple(v) for k, v in context.digests.items()}},
            "figures": {**checkpoint.card.figures, "onnx_max_abs_diff_rad": worst_rad},
        }
    )
    card.write(out)
    inputs = random_inputs(card, checkpoint.robot, batch=2, seed=0)
    arrays: dict[str, Any] = {**inputs, "action": session(inputs)}
    np.savez(out / SELF_TEST_FILE, **arrays)
    report = {
        "opset": OPSET,
        "torch": torch.__version__,
        "max_abs_diff_rad": worst_rad,
        "parity": [asdict(comparison) for comparison in comparisons],
    }
    (out / REPORT_FILE).write_text(json.dumps(report, indent=1, sort_keys=True, allow_nan=False) + "\n")
