"""TensorRT without a GPU: what is said where it is missing, and our names against the real bindings."""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from lerobot_policy_sim2or.served import ServedCheckpoint
from sim2or.errors import ConfigError
from sim2or.messages.export import EngineProfile, ExportSpec
from sim2or.worker import StageContext
from sim2or_exporter.backends.onnxruntime import OnnxSession
from sim2or_exporter.backends.tensorrt import TensorRTBuilder, _typed_graph
from sim2or_exporter.export import run
from sim2or_exporter.graph import write_graph
from sim2or_exporter.samples import random_inputs

SERVICES = Path(__file__).parents[2]
SOURCES = {
    "builder": SERVICES / "exporter/src/sim2or_exporter/backends/tensorrt.py",
    "runtime": SERVICES / "policy/src/sim2or_policy/backends/tensorrt.py",
}
EXPECTED = {"builder": "build_serialized_network", "runtime": "execute_async_v3"}


def root_of(node: ast.AST) -> str:
    """The variable that an expression starts from: ``self._engine`` of ``self._engine.f(x)[0].g``."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        node = node.func if isinstance(node, ast.Call) else node.value
    name = node.id if isinstance(node, ast.Name) else ""
    return f"self.{parts[-1]}" if name == "self" and parts else name


def tensorrt_names(source: str) -> set[str]:
    """Every attribute and keyword that a module uses of ``trt`` and of what it got out of ``trt``.

    A variable counts as TensorRT's when it is assigned from an expression that starts from one that does.
    Names of variables stand for the same thing in the whole module.
    """
    tree, ours = ast.parse(source), {"trt"}
    bindings: list[tuple[ast.AST, ast.AST]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            bindings += [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.For | ast.comprehension):
            bindings.append((node.target, node.iter))
    for _ in bindings:
        for target, value in bindings:
            items = value.elt if isinstance(value, ast.ListComp) else value
            if root_of(items) in ours and not _is_plain(items):
                ours.add(root_of(target))
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Call) and root_of(n) in ours]
    attributes = {n.attr for n in nodes if isinstance(n, ast.Attribute) and not _is_plain(n.value)}
    keywords = {
        keyword.arg for n in nodes if isinstance(n, ast.Call) for keyword in n.keywords if keyword.arg
    }
    return (attributes | keywords) - {name.removeprefix("self.") for name in ours}


def _is_plain(value: ast.AST) -> bool:
    """Whether an expression gives text, whose methods are Python's own."""
    called = value.func if isinstance(value, ast.Call) else value
    return isinstance(called, ast.Attribute) and called.attr in {"__version__", "get_tensor_name"}


def missing_names(names: set[str], binary: bytes) -> set[str]:
    """Names that the compiled bindings do not define: pybind11 keeps each as a C string with a zero byte."""
    return {name for name in names if f"{name}\0".encode() not in binary}


@pytest.fixture(scope="module")
def bindings() -> bytes:
    """The compiled module of the ``tensorrt-cu13-bindings`` wheel, read without importing it."""
    found = importlib.util.find_spec("tensorrt_bindings")
    if found is None or found.origin is None:
        if os.environ.get("CI"):
            pytest.fail("tensorrt-cu13-bindings is missing; it belongs to requirements/dev.in")
        pytest.skip("tensorrt-cu13-bindings is not installed")
    return Path(found.origin).with_name("tensorrt.so").read_bytes()


@pytest.mark.parametrize("part", SOURCES)
def test_every_tensorrt_name_exists(part: str, bindings: bytes) -> None:
    """What the code calls is what TensorRT 11 offers: no name is misspelt or removed."""
    names = tensorrt_names(SOURCES[part].read_text())
    assert EXPECTED[part] in names
    assert not missing_names(names, bindings)


def test_removed_names_are_noticed(bindings: bytes) -> None:
    """Names that TensorRT 11 dropped, and invented ones, are reported wherever the variable came from."""
    source = "c = trt.Builder(x).create_builder_config()\nc.set_flag(trt.BuilderFlag.FP16)\nc.go(fast=True)"
    assert missing_names(tensorrt_names(source), bindings) == {"FP16", "go", "fast"}


def test_missing_tensorrt_is_said_in_one_line() -> None:
    """Where TensorRT is missing, the error says what to install or to set."""
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    with pytest.raises(ConfigError, match=r"install NVIDIA TensorRT .* or set engine: onnxruntime") as caught:
        TensorRTBuilder()
    assert "\n" not in str(caught.value)


def test_missing_tensorrt_stops_before_any_work(checkpoint_directory: Path, tmp_path: Path) -> None:
    """An export that asks for TensorRT without one fails before a graph is written."""
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    context = StageContext(
        work=tmp_path, inputs={"checkpoint": [checkpoint_directory]}, digests={}, report=lambda *_: None
    )
    with pytest.raises(ConfigError, match="TensorRT"):
        run(ExportSpec(engine="tensorrt"), context)
    assert not list(tmp_path.rglob("model.onnx"))


def test_half_precision_is_written_into_the_graph(checkpoint_directory: Path, tmp_path: Path) -> None:
    """A half-precision graph keeps its inputs and outputs and stays within 0.02 rad of the full one."""
    checkpoint = ServedCheckpoint.load(checkpoint_directory)
    write_graph(checkpoint, tmp_path / "full.onnx")
    _typed_graph(tmp_path / "full.onnx", tmp_path / "half.onnx", EngineProfile(precision="fp16"))
    full, half = onnx.load(tmp_path / "full.onnx").graph, onnx.load(tmp_path / "half.onnx").graph
    assert list(half.input) == list(full.input)
    assert list(half.output) == list(full.output)
    assert any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in half.initializer)
    inputs = random_inputs(checkpoint.card, checkpoint.robot, batch=3, seed=1)
    difference_rad = OnnxSession(tmp_path / "half.onnx")(inputs) - OnnxSession(tmp_path / "full.onnx")(inputs)
    assert np.abs(difference_rad).max() < 0.02
