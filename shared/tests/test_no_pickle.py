"""Nothing that arrives is ever unpickled: shown by watching a process, and by reading the source."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sim2or.bus.server import PrivateRedis

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for place in ("shared/src", "shared/lerobot_policy_sim2or/src", *map(str, ROOT.glob("services/*/src")))
    for path in (ROOT / place).rglob("*.py")
)
FORBIDDEN = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
UNSAFE = {"read_pickle", "unsafe_load", "full_load", "UnsafeLoader", "FullLoader"}


def test_no_wire_entry_unpickles(redis_server: PrivateRedis, tmp_path: Path) -> None:
    """A process takes valid, hostile and pickled bytes at every entry, counts and refuses, unpickles nothing;
    and its watch would have seen it."""
    program = Path(__file__).with_name("hostile_bytes.py")
    command = [sys.executable, program, redis_server.url, tmp_path]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["unpickled"] == []
    assert seen["control"] == ["pickle.find_class", "pickle.loads"]
    assert {name: count for name, count in seen["refused"].items() if count == 0} == {}
    assert {name: count for name, count in seen["accepted"].items() if count == 0} == {}
    assert set(seen["refused"]) == {"router", "client", "subscriber", "receiver", "jobs", "events"}


def test_the_source_names_no_unpickler() -> None:
    """No module of ours imports an unpickler, or asks numpy, torch or yaml to run what it reads."""
    found = {str(path.relative_to(ROOT)): list(_unsafe(ast.parse(path.read_text()))) for path in SOURCES}
    assert len(found) > 150
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from marshal import loads",
        "import importlib\nimportlib.import_module('dill')",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import yaml\nyaml.unsafe_load(text)",
    ],
)
def test_the_reader_of_sources_finds_each_kind(text: str) -> None:
    """What must not stand in the source is found when it does."""
    assert list(_unsafe(ast.parse(text)))


def test_harmless_loads_are_left_alone() -> None:
    """Weights and arrays without objects may be read."""
    text = "np.load(p, allow_pickle=False)\nnp.load(p)\ntorch.load(p, weights_only=True)\nyaml.safe_load(t)"
    assert list(_unsafe(ast.parse(text))) == []


def _unsafe(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] in FORBIDDEN)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module] if (node.module or "").partition(".")[0] in FORBIDDEN else []
        elif isinstance(node, ast.Constant) and node.value in FORBIDDEN:
            yield str(node.value)
        elif isinstance(node, ast.Attribute) and node.attr in UNSAFE:
            yield node.attr
        elif isinstance(node, ast.Call):
            yield from _unsafe_call(node)


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if options.get("allow_pickle", "False") != "False":
        yield f"{called}(allow_pickle)"
    if called.endswith("torch.load") and options.get("weights_only") != "True":
        yield called
