"""The store keeps what it is given, and notices when it was altered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sim2or.artifacts.lineage import chain
from sim2or.artifacts.manifest import FileEntry, canonical_json
from sim2or.artifacts.store import Store, fresh_directory
from sim2or.errors import ConfigError, JobError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def tree(path: Path, **files: str) -> Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def test_same_content_has_the_same_digest(store: Store, tmp_path: Path) -> None:
    """Two puts of equal trees give one artifact, whoever made it."""
    first = store.put(tree(tmp_path / "a", x="1"), kind="thing", producer={"job": "1"})
    second = store.put(tree(tmp_path / "b", x="1"), kind="thing", producer={"job": "2"})
    assert first.digest == second.digest
    assert list(store.digests()) == [first.digest]


@pytest.mark.parametrize("change", [{"kind": "other"}, {"meta": {"fps": 30}}, {"key": "k"}])
def test_digest_covers_kind_meta_and_key(store: Store, tmp_path: Path, change: dict[str, object]) -> None:
    """Anything that gives the bytes another meaning gives the artifact another name."""
    path = tree(tmp_path / "a", x="1")
    plain = store.put(path, kind="thing")
    assert store.put(path, **({"kind": "thing"} | change)).digest != plain.digest  # type: ignore[arg-type]


def test_checkout_gives_the_files_back(store: Store, tmp_path: Path) -> None:
    """A checkout holds every file under its own path."""
    digest = store.put(tree(tmp_path / "a", **{"x": "1", "sub/y": "2"}), kind="thing").digest
    out = store.checkout(digest)
    assert {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file()} == {
        "x": "1",
        "sub/y": "2",
    }
    assert store.checkout(digest) == out


@pytest.mark.parametrize("damage", ["removed", "shortened", "replaced"])
def test_a_damaged_checkout_is_made_again(store: Store, tmp_path: Path, damage: str) -> None:
    """A checkout that lost a file, or holds another in its place, is replaced by a whole one."""
    digest = store.put(tree(tmp_path / "a", x="12", y="2"), kind="thing").digest
    damaged = store.checkout(digest) / "x"
    damaged.unlink()
    if damage != "removed":
        damaged.write_text({"shortened": "1", "replaced": "21"}[damage])
    out = store.checkout(digest)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"x": "12", "y": "2"}
    assert [p.name for p in (store.root / "checkouts").iterdir()] == [out.name]


def test_an_artifact_without_its_objects_is_not_held(store: Store, tmp_path: Path) -> None:
    """An artifact counts as held only while each of its files is there."""
    digest = store.put(tree(tmp_path / "a", x="1"), kind="thing").digest
    assert store.holds(digest)
    next(p for p in (store.root / "objects").rglob("*") if p.is_file()).unlink()
    assert not store.holds(digest)
    assert not store.holds("sha256:" + "0" * 64)


def test_a_fresh_directory_is_empty(tmp_path: Path) -> None:
    """What an earlier attempt left there is gone."""
    assert list(fresh_directory(tree(tmp_path / "a", x="1")).iterdir()) == []


def test_a_single_file_is_an_artifact(store: Store, tmp_path: Path) -> None:
    """A file is stored under its own name."""
    manifest = store.put(tree(tmp_path / "a", x="1") / "x", kind="thing")
    assert [entry.path for entry in manifest.files] == ["x"]


def test_altered_bytes_are_quarantined(store: Store, tmp_path: Path) -> None:
    """A flipped byte is found before anyone reads it, and the object leaves the store."""
    manifest = store.put(tree(tmp_path / "a", x="1"), kind="thing")
    stored = next(p for p in (store.root / "objects").rglob("*") if p.is_file())
    os.chmod(stored, 0o644)
    stored.write_text("2")
    with pytest.raises(JobError, match="quarantine"):
        store.checkout(manifest.digest)
    assert not stored.exists()


def test_bytes_that_change_after_a_checkout_are_found_too(store: Store, tmp_path: Path) -> None:
    """A checkout that was verified once is verified again when a file is not as old as it was then."""
    digest = store.put(tree(tmp_path / "a", x="1"), kind="thing").digest
    held = store.checkout(digest) / "x"
    held.chmod(0o644)
    held.write_text("2")
    with pytest.raises(JobError, match="x: stored bytes have digest"):
        store.checkout(digest)
    assert not store.holds(digest)


def test_a_file_that_is_only_touched_stays(store: Store, tmp_path: Path) -> None:
    """A new date on the same bytes costs a verification, and nothing else."""
    digest = store.put(tree(tmp_path / "a", x="1"), kind="thing").digest
    out = store.checkout(digest)
    os.utime(out / "x", ns=(0, 0))
    assert store.checkout(digest) == out
    assert (out / "x").read_text() == "1"


def test_nothing_unfinished_is_left(store: Store, tmp_path: Path) -> None:
    """Writers clear up after themselves, a failing one too; what a killed one left is swept."""
    digest = store.put(tree(tmp_path / "a", x="1"), kind="thing").digest
    store.checkout(digest)
    (tmp_path / "a" / "link").symlink_to("/etc/hostname")
    with pytest.raises(JobError):
        store.put(tmp_path / "a", kind="thing")
    partial = store.root / "partial"
    assert list(partial.iterdir()) == []
    (partial / "killed").mkdir()
    tree(partial, **{"killed.lock": "", "killed/half": "1"})
    assert store.sweep() == 1
    assert list(partial.iterdir()) == []


def test_an_altered_manifest_is_refused(store: Store, tmp_path: Path) -> None:
    """A manifest that no longer hashes to its name is not believed."""
    digest = store.put(tree(tmp_path / "a", x="1"), kind="thing").digest
    path = next((store.root / "manifests").rglob("*.json"))
    path.write_text(path.read_text().replace("thing", "thong"))
    with pytest.raises(JobError, match="altered"):
        store.manifest(digest)


def test_links_are_refused(store: Store, tmp_path: Path) -> None:
    """An artifact never points outside itself."""
    (tree(tmp_path / "a", x="1") / "link").symlink_to("/etc/hostname")
    with pytest.raises(JobError, match="link"):
        store.put(tmp_path / "a", kind="thing")


def test_paths_that_leave_the_artifact_are_refused() -> None:
    """A manifest cannot write above its checkout."""
    with pytest.raises(ValueError, match="leaves the artifact"):
        FileEntry(path="../x", digest="sha256:" + "0" * 64, size_bytes=0)


def test_unknown_parents_are_refused(store: Store, tmp_path: Path) -> None:
    """Nothing is stored whose origin the store does not hold."""
    with pytest.raises(JobError, match="parent data=sha256"):
        store.put(tree(tmp_path / "a", x="1"), kind="thing", parents={"data": ["sha256:" + "0" * 64]})


def test_lineage_names_every_ancestor_once(store: Store, tmp_path: Path) -> None:
    """A diamond of parents lists the shared root's own parents only once."""
    root = store.put(tree(tmp_path / "r", x="r"), kind="root").digest
    left = store.put(tree(tmp_path / "l", x="l"), kind="left", parents={"from": [root]}).digest
    right = store.put(tree(tmp_path / "q", x="q"), kind="right", parents={"from": [root]}).digest
    top = store.put(tree(tmp_path / "t", x="t"), kind="top", parents={"a": [left], "b": [right]}).digest
    steps = [(a.depth, a.role, a.manifest.kind, a.repeated) for a in chain(store, top)]
    assert steps == [
        (0, "", "top", False),
        (1, "a", "left", False),
        (2, "from", "root", False),
        (1, "b", "right", False),
        (2, "from", "root", True),
    ]


def test_find_completes_a_prefix_or_says_why_not(store: Store, tmp_path: Path) -> None:
    """A short digest is enough while only one artifact starts with it."""
    digest = store.put(tree(tmp_path / "a", x="1"), kind="thing").digest
    assert store.find(digest[:15]) == digest
    with pytest.raises(ConfigError, match="give more digits"):
        store.find("sha256:")


def test_canonical_json_refuses_nan() -> None:
    """A digest never depends on how a library spells NaN."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})
