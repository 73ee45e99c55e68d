"""The export stage on tiny checkpoints with random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from sim2or.engine_manifest import ENGINE_DIRECTORY, EngineManifest
from sim2or.errors import ConfigError, JobError
from sim2or.messages.export import EngineProfile, ExportSpec
from sim2or.model_card import STATE, ModelCard
from sim2or.stage import StageResult
from sim2or.worker import StageContext
from sim2or_exporter.export import run
from sim2or_exporter.graph import check_graph

QUICK = ExportSpec(latency_calls=0)
DIGEST = "sha256:" + "1" * 64

# What a stranger with ONNX Runtime and the card can do; runs with no other package of ours or of torch.
STRANGER = """
import json, sys
import numpy, onnxruntime
folder, batch = sys.argv[1], int(sys.argv[2])
card = json.load(open(folder + "/card.json"))
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
inputs = {t["name"]: numpy.zeros([batch, *t["shape"]], t["dtype"]) for t in card["inputs"]}
(action,) = session.run(None, inputs)
assert list(action.shape) == [batch, *card["outputs"][0]["shape"]], action.shape
assert str(action.dtype) == card["outputs"][0]["dtype"]
assert numpy.isfinite(action).all()
assert not {"sim2or", "torch", "lerobot"} & set(sys.modules)
"""


def job(work: Path, directory: Path, **digests: str) -> StageContext:
    """A job on one checkpoint."""
    return StageContext(
        work=work,
        inputs={"checkpoint": [directory]},
        digests={role: [digest] for role, digest in digests.items()},
        report=lambda *_: None,
    )


@pytest.fixture(scope="module")
def exported(checkpoint_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    """The tiny pixels checkpoint, exported."""
    return run(QUICK, job(tmp_path_factory.mktemp("work"), checkpoint_directory, checkpoint=DIGEST))


def test_export_agrees_with_the_checkpoint(exported: StageResult) -> None:
    """Radians and pixels in, radians out: the graph does what LeRobot does, at every batch."""
    assert exported.summary["onnx_max_abs_diff"] <= 1e-5
    assert [c["batch"] for c in exported.summary["parity"]] == [1, 2, 7, 32]


def test_report_and_card_keep_the_parity(exported: StageResult) -> None:
    """The figure that decides about the export stays with the model, with its sources."""
    directory = exported.outputs["model"]
    report, card = json.loads((directory / "export.json").read_text()), ModelCard.read(directory)
    assert report["max_abs_diff_rad"] == card.figures["onnx_max_abs_diff_rad"] <= 1e-5
    assert card.sources["checkpoint"] == (DIGEST,)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_stranger_can_run_it(exported: StageResult, batch: int) -> None:
    """ONNX Runtime alone, without our code, runs the model with the shapes its card states."""
    command = [sys.executable, "-c", STRANGER, str(exported.outputs["model"]), str(batch)]
    subprocess.run(command, check=True, timeout=60)


def test_graph_has_no_privileged_input(exported: StageResult) -> None:
    """The pixels model sees joints and cameras, nothing of the simulator's truth."""
    graph = onnx.load(exported.outputs["model"] / "model.onnx").graph
    names = [value.name for value in graph.input]
    assert names == [STATE, "observation.images.wrist", "observation.images.room"]


def test_model_is_one_file(exported: StageResult) -> None:
    """Weights travel inside the graph's file."""
    assert sorted(p.name for p in exported.outputs["model"].iterdir()) == [
        "card.json",
        ENGINE_DIRECTORY,
        "export.json",
        "model.onnx",
        "selftest.npz",
    ]


def test_state_preset_says_that_it_is_privileged(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """A model that takes simulator truth is exported with that input and a card that says so."""
    result = run(QUICK, job(tmp_path, make_checkpoint(privileged=True)))
    card = ModelCard.read(result.outputs["model"])
    graph = onnx.load(result.outputs["model"] / "model.onnx").graph
    assert card.privileged
    assert [value.name for value in graph.input] == [STATE, "observation.privileged.instrument"]


def test_graph_with_an_input_beside_the_card_is_refused(exported: StageResult, tmp_path: Path) -> None:
    """An input that the card does not state stops the export."""
    model = onnx.load(exported.outputs["model"] / "model.onnx")
    extra = onnx.helper.make_tensor_value_info("observation.privileged.instrument", 1, ["batch", 12])
    model.graph.input.append(extra)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(JobError, match=r"privileged\.instrument"):
        check_graph(tmp_path / "model.onnx", ModelCard.read(exported.outputs["model"]))


def test_too_large_a_difference_fails_the_job(checkpoint_directory: Path, tmp_path: Path) -> None:
    """An export that strays from its checkpoint is no artifact."""
    spec = ExportSpec(latency_calls=0, parity_batches=(1,), max_abs_diff_rad=1e-15)
    with pytest.raises(JobError, match=r"differs from the checkpoint by .* rad"):
        run(spec, job(tmp_path, checkpoint_directory))


def test_missing_weight_is_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """A checkpoint that does not fit its policy is never exported with random weights in the gap."""
    from safetensors.torch import load_file, save_file

    directory = make_checkpoint()
    weights = load_file(directory / "model.safetensors")
    weights.pop("model.action_head.weight")
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ConfigError, match=r"action_head\.weight"):
        run(QUICK, job(tmp_path, directory))


def test_other_calibration_is_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """A checkpoint from another calibration would mean other radians."""
    directory = make_checkpoint()
    card = ModelCard.read(directory)
    ModelCard.model_validate(card.model_dump() | {"calibration_id": "older"}).write(directory)
    with pytest.raises(ConfigError, match="calibration_id 'older'; valid: "):
        run(QUICK, job(tmp_path, directory))


def test_engine_manifest_names_what_it_was_built_with(exported: StageResult) -> None:
    """Runtime, version, machine and graph are on record, and another machine is refused."""
    manifest = EngineManifest.read(exported.outputs["model"] / ENGINE_DIRECTORY)
    assert (manifest.host.runtime, manifest.host.device, manifest.max_batch) == ("onnxruntime", "cpu", 32)
    other = manifest.host.model_copy(update={"architecture": "9.0"})
    with pytest.raises(ConfigError, match=r"architecture .* here '9\.0': export again"):
        manifest.check_host(other)


def test_half_precision_needs_a_gpu(checkpoint_directory: Path, tmp_path: Path) -> None:
    """The CPU engine says that it has full precision only."""
    spec = ExportSpec(latency_calls=0, parity_batches=(1,), profile=EngineProfile(precision="fp16"))
    with pytest.raises(ConfigError, match=r"fp16.*only fp32"):
        run(spec, job(tmp_path, checkpoint_directory))


def test_latency_of_both_runtimes_is_reported(checkpoint_directory: Path, tmp_path: Path) -> None:
    """Percentiles of torch and ONNX Runtime at batch 1, threads stated."""
    spec = ExportSpec(latency_calls=20, parity_batches=(1,))
    summary = run(spec, job(tmp_path, checkpoint_directory)).summary
    assert set(summary["latency_ms"]) == {"torch", "onnx"}
    assert all(0 < q["p50"] <= q["p95"] <= q["p99"] for q in summary["latency_ms"].values())
    assert summary["latency_threads"] == 1


def test_the_same_checkpoint_gives_the_same_bytes(
    exported: StageResult, checkpoint_directory: Path, tmp_path: Path
) -> None:
    """Exporting twice gives the same graph and the same self-test."""
    again = run(QUICK, job(tmp_path, checkpoint_directory))
    first, second = exported.outputs["model"], again.outputs["model"]
    assert (first / "model.onnx").read_bytes() == (second / "model.onnx").read_bytes()
    with np.load(first / "selftest.npz") as a, np.load(second / "selftest.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a.files)
