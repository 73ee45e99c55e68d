"""``sim2or store`` and ``sim2or lineage`` as a person uses them, with a mirror in a shared directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sim2or.artifacts.mirror import Mirror
from sim2or.artifacts.store import Store, object_name
from sim2or.cli.main import app
from typer.testing import CliRunner

Command = Callable[..., str]
KIND = ("--kind", "recording")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs ``sim2or …`` in a directory of runs, with a mirror, and returns what it printed."""
    (tmp_path / "share").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIM2OR_STORE", raising=False)
    monkeypatch.setenv("SIM2OR_MIRROR", (tmp_path / "share").as_uri())

    def run(*arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == status, done.output
        return done.output

    return run


def stored(run: str, text: str, **rest: object) -> str:
    """Stores an artifact of one file in the store of a run."""
    root = Path("runs") / run
    root.mkdir(parents=True, exist_ok=True)
    (root / "x").write_text(text)
    return Store(root / "store").put(root / "x", kind="thing", **rest).digest  # type: ignore[arg-type]


def places(printed: str) -> dict[str, str]:
    """Digest to the column that says where, from the list."""
    rows = [line.strip().split("  ") for line in printed.splitlines() if "sha256:" in line]
    return {
        cells[0]: next(c.strip() for c in cells if "mirror" in c or c.strip() == "here") for cells in rows
    }


def test_the_list_says_where_artifacts_are(command: Command) -> None:
    """An artifact is here, in the mirror, or in both."""
    here, both, far = stored("a", "1"), stored("a", "2"), stored("b", "3")
    command("store", "push", both, far)
    listed = places(command("store", "ls", "--run", "a"))
    assert listed == {here[:19]: "here", both[:19]: "here, mirror", far[:19]: "mirror"}


def test_an_artifact_is_pulled_by_its_first_digits(command: Command) -> None:
    """What another run sent comes into the store of this one; its lineage is known."""
    root = stored("a", "1")
    end = stored("a", "2", parents={"from": [root]})
    command("store", "push", end[:15], "--run", "a")
    Path("runs/b").mkdir()
    command("store", "pull", end[:15], "--run", "b")
    assert next(Store(Path("runs/b/store")).checkout(end).iterdir()).read_text() == "2"
    told = command("lineage", end, "--run", "b").splitlines()
    assert [line.split()[-6:][0] for line in told] == ["thing", "thing"]
    assert root[:19] in told[1]


def test_altered_files_are_sent_anew(command: Command) -> None:
    """--anew puts whole files in place of altered ones in the mirror."""
    digest = stored("a", "right")
    command("store", "push", digest)
    (entry,) = Store(Path("runs/a/store")).manifest(digest).files
    far = Path("share") / object_name(entry.digest)
    far.write_text("wrong")
    command("store", "push", digest)
    assert far.read_text() == "wrong"
    command("store", "push", "--anew", digest)
    assert far.read_text() == "right"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("store", "push", "sha256:12"), "no artifact starts with 'sha256:12'"),
        (("store", "pull", "sha256:12", "--run", "a"), "no artifact starts with 'sha256:12'"),
        (("store", "pull", "sha256:12"), "into which store? give --run NAME (runs: a, b)"),
        (("lineage", "sha256:12"), "no artifact starts with 'sha256:12'"),
    ],
)
def test_what_cannot_be_done_is_one_line(command: Command, arguments: tuple[str, ...], said: str) -> None:
    """An unknown digest, or no store to put it into, costs one line that says what to give."""
    stored("a", "1")
    stored("b", "2")
    assert said in command(*arguments, status=2)


def test_without_a_mirror_the_setting_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no mirror is set, nothing is sent, and the list shows what is here."""
    digest = stored("a", "1")
    monkeypatch.delenv("SIM2OR_MIRROR")
    assert "set SIM2OR_MIRROR=s3://BUCKET/PREFIX" in command("store", "push", digest, status=2)
    assert places(command("store", "ls")) == {digest[:19]: "here"}


def test_lineage_reaches_into_the_mirror(command: Command, tmp_path: Path) -> None:
    """An artifact that no store here has is explained from the mirror."""
    other = Store(tmp_path / "other")
    (tmp_path / "y").write_text("far")
    digest = other.put(tmp_path / "y", kind="far-thing").digest
    Mirror((tmp_path / "share").as_uri()).push(other, digest)
    stored("a", "1")
    assert "far-thing" in command("lineage", digest[:15])


def test_a_directory_is_added_from_within(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """``add .`` takes the directory by its name; one that has the store in it is refused in one line."""
    Path("runs/a").mkdir(parents=True)
    root = Path("runs/a/store").absolute()
    monkeypatch.setenv("SIM2OR_STORE", str(root))
    Path("mine/deeper").mkdir(parents=True)
    Path("mine/x").write_text("1")
    assert "is in it; give a directory without it" in command("store", "add", ".", *KIND, status=2)
    assert [path.name for path in root.parent.glob("add-*")] == []
    monkeypatch.chdir("mine")
    here = command("store", "add", ".", *KIND).strip()
    monkeypatch.chdir("deeper")
    assert command("store", "add", "..", *KIND).strip() == here
    assert Store(root).manifest(here).producer == {"file": "mine"}


def test_a_file_is_added_to_the_store_that_a_run_reads(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--run means that run's own store, or SIM2OR_STORE where it is set, as for ``sim2or run``."""
    Path("x").write_text("1")
    digest = command("store", "add", "x", *KIND, "--run", "mine").strip()
    assert list(Store(Path("runs/mine/store")).digests()) == [digest]
    monkeypatch.setenv("SIM2OR_STORE", str(tmp_path / "shared" / "store"))
    Path("x").write_text("2")
    other = command("store", "add", "x", *KIND, "--run", "mine").strip()
    assert list(Store(tmp_path / "shared" / "store").digests()) == [other]
    assert "recording" in command("lineage", other, "--run", "mine")


def test_a_plugin_brings_its_kinds(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that only a stage of SIM2OR_PLUGINS takes can be added; without the plugin it is refused."""
    Path("x").write_text("1")
    arguments = ("store", "add", "x", "--kind", "numbers", "--run", "a")
    assert "--kind 'numbers': valid: " in command(*arguments, status=2)
    monkeypatch.syspath_prepend(Path(__file__).parent / "toy")
    monkeypatch.setenv("SIM2OR_PLUGINS", "sim2or_toy.plugin")
    assert command(*arguments).startswith("sha256:")
