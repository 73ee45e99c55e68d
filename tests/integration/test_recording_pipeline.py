"""A person's recording goes into the store, and a pipeline makes a dataset of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sim2or.artifacts.store import Store
from sim2or.cli.main import app
from sim2or.dataset_card import load_card
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "services/dataset/tests"))
from recordings import STEPS, demo, record

Command = Callable[..., str]

PIPELINE = """
name: imported
stages:
  - {stage: import, inputs: {recording: DIGEST}}
  - {stage: convert, inputs: {episodes: import}}
  - stage: dataset
    inputs: {parts: convert}
    with: {name: imported, validation_fraction: 0.5}
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs ``sim2or …`` in a directory of its own and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    for name in ("SIM2OR_STORE", "SIM2OR_MIRROR", "SIM2OR_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == status, (done.output, done.exception)
        return done.output

    return run


def add(command: Command, path: Path, kind: str) -> str:
    """Puts a file into the run's store and returns its digest."""
    return command("store", "add", str(path), "--kind", kind, "--run", "mine").strip()


def test_a_recording_becomes_a_dataset(command: Command, tmp_path: Path) -> None:
    """Added to the store and named by its digest, a recording is imported, converted and split."""
    file = record(tmp_path / "demos.hdf5", [demo(1), demo(2)])
    digest = add(command, file, "recording")
    assert digest == add(command, file, "recording")
    assert file.stat().st_mode & 0o200, "the person's own file stays writable"
    (tmp_path / "p.yaml").write_text(PIPELINE.replace("DIGEST", digest))
    command("run", "p.yaml", "--in-process", "--run", "mine")
    store = Store(tmp_path / "runs/mine/store")
    (dataset,) = [one for one in store.digests() if store.manifest(one).kind == "dataset"]
    card = load_card(store.checkout(dataset))
    assert [episode.frames for episode in card.episodes] == [STEPS, STEPS]
    assert {episode.parent for episode in card.episodes} == {
        f"{digest[:19]}:demos.hdf5:demo_{number}" for number in (0, 1)
    }
    assert {name: end - first for name, (first, end) in card.splits.items()} == {"train": 1, "validation": 1}


def test_what_is_stored_must_fit(command: Command, tmp_path: Path) -> None:
    """An artifact of another kind, one that is not there, and an unknown kind are refused in one line."""
    (tmp_path / "x").write_text("x")
    digest = add(command, tmp_path / "x", "episodes")
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(PIPELINE.replace("DIGEST", digest))
    said = command("run", "p.yaml", "--in-process", "--run", "mine", status=2)
    assert f"import: inputs.recording: {digest} is of kind 'episodes'; valid: recording" in said
    pipeline.write_text(PIPELINE.replace("DIGEST", "sha256:" + "0" * 64))
    said = command("run", "p.yaml", "--in-process", "--run", "mine", status=2)
    assert "no artifact sha256:0000" in said
    said = command("store", "add", "x", "--kind", "recordin", "--run", "mine", status=2)
    assert "did you mean 'recording'?" in said
    said = command("store", "add", "y", "--kind", "recording", "--run", "mine", status=2)
    assert "y: no such file or directory" in said
