"""A result's key follows the code that makes it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from sim2or import code_digest as module
from sim2or.code_digest import code_digest, code_files, codes_digest, lock_digest, locks_digest
from sim2or.errors import ConfigError
from sim2or.runner import busy_s, result_key

TOY = Path(__file__).parent / "toy" / "sim2or_toy"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private copy of the toy service under another name."""
    root = tmp_path / "sim2or_copy"
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__"))
    for file in root.glob("*.py"):
        file.write_text(file.read_text().replace("sim2or_toy", "sim2or_copy"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(TOY.parent))
    module.package_root.cache_clear()
    yield root
    module.package_root.cache_clear()


def test_a_changed_line_changes_the_digest(package: Path) -> None:
    """One changed line of the service asks every question again; undone, the old answers count again."""
    before = code_digest("sim2or_copy")
    file = package / "join.py"
    text = file.read_text()
    file.write_text(text.replace("spec.times *", "2 * spec.times *"))
    assert code_digest("sim2or_copy") != before
    file.write_text(text)
    assert code_digest("sim2or_copy") == before


def test_data_files_count(package: Path) -> None:
    """A model or a profile beside the code is part of the answer."""
    before = code_digest("sim2or_copy")
    (package / "scene.xml").write_text("<scene/>")
    assert code_digest("sim2or_copy") != before


def test_wiring_does_not_count(package: Path) -> None:
    """What starts the service cannot change a result."""
    before = code_digest("sim2or_copy")
    (package / "__main__.py").write_text("# other\n")
    assert code_digest("sim2or_copy") == before


def test_shared_code_counts_where_it_is_imported(package: Path) -> None:
    """Modules of ours count when they are imported, directly or not, wherever the import stands."""
    names = set(code_files("sim2or_copy"))
    assert {"sim2or/stage.py", "sim2or/messages/message.py", "sim2or/errors.py"} <= names
    assert "sim2or/contracts/robot.py" not in names
    join = package / "join.py"
    join.write_text(join.read_text() + "\n\ndef late():\n    from sim2or.contracts.robot import load_robot\n")
    names = set(code_files("sim2or_copy"))
    assert {"sim2or/contracts/robot.py", "sim2or/contracts/profiles/so101.yaml"} <= names


def test_relative_imports_are_followed() -> None:
    """``from . import x`` inside our packages means what it means to Python."""
    import ast

    root = module.package_root("sim2or")
    node = ast.parse("from ..messages import job").body[0]
    assert module._absolute(node, root / "bus" / "jobs.py", "sim2or") == "sim2or.messages"


def test_nothing_heavy_is_imported() -> None:
    """Digests of every service are found without importing it."""
    import subprocess

    code = (
        "import sys; from sim2or.code_digest import code_digest; from sim2or.stages import load_table\n"
        "for s in load_table().services.values(): code_digest(s.module)\n"
        "heavy = ('torch', 'mujoco', 'lerobot', 'h5py', 'sim2or_sim', 'sim2or_trainer')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"


def test_locks_are_found() -> None:
    """The locked requirements of a service are part of the question."""
    assert lock_digest("sim2or_sim", "sim") != lock_digest("sim2or_sim", "core")


def test_the_code_of_servers_counts(package: Path) -> None:
    """A question to a service and its server changes with either's code, and not with their order."""
    before = codes_digest(["sim2or_toy", "sim2or_copy"])
    assert before == codes_digest(["sim2or_copy", "sim2or_toy", "sim2or_toy"])
    assert before != codes_digest(["sim2or_toy"])
    (package / "join.py").write_text((package / "join.py").read_text() + "\n# other\n")
    assert codes_digest(["sim2or_toy", "sim2or_copy"]) != before
    sim, core = ("sim2or_sim", "sim"), ("sim2or_sim", "core")
    assert locks_digest([sim]) != locks_digest([sim, core])


def test_an_unknown_package_is_named() -> None:
    """A service that is not installed here is named."""
    with pytest.raises(ConfigError, match="sim2or_none"):
        code_digest("sim2or_none")


QUESTION = {
    "stage": "a",
    "code": "c",
    "lock": "l",
    "inputs": {"x": ("d",)},
    "spec": {"n": 1},
    "shard": 0,
    "shards": 2,
}


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "b"},
        {"code": "e"},
        {"lock": "m"},
        {"inputs": {"x": ("e",)}},
        {"spec": {"n": 2}},
        {"shard": 1},
        {"settings": {"SIM2OR_POLICY_BACKEND": "tensorrt"}},
        {"again": "z"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_a_question_is_in_its_key(change: dict[str, object]) -> None:
    """Equal questions have equal keys; any difference gives another."""
    assert result_key(**QUESTION) == result_key(**QUESTION)
    assert result_key(**(QUESTION | change)) != result_key(**QUESTION)


def test_busy_time_is_the_union_of_spans() -> None:
    """Work side by side is counted once, and pauses not at all: 0–4 and 2–6 and 10–11 s are 7 s."""
    assert busy_s([(10_000, 11_000), (0, 4_000), (2_000, 6_000)]) == 7.0
