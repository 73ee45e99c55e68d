"""Room manifests: what is accepted, and what is refused with what to do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sim2or.consistency import spec_findings
from sim2or.contracts.room import (
    RoomManifest,
    RoomRecord,
    manifest_path,
    read_pinned,
    read_room,
    room_names,
)
from sim2or.errors import ConfigError
from sim2or.messages.collect import CollectSpec

DOCS = Path(__file__).parents[2] / "docs"
CUBE = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def _part(**change: Any) -> dict[str, Any]:
    base = {
        "name": "cart",
        "file": "cart.obj",
        "sha256": hashlib.sha256(CUBE).hexdigest(),
        "label": "cart",
        "license": "CC-BY-4.0",
        "at_m": [-1.0, 0.0, -0.85],
    }
    return {key: value for key, value in (base | change).items() if value is not None}


def _write(directory: Path, *parts: dict[str, Any], **change: Any) -> str:
    (directory / "cart.obj").write_bytes(CUBE)
    content = {"kind": "room", "name": "mine", "title": "Mine", "parts": list(parts) or [_part()]} | change
    (directory / "room.yaml").write_text(yaml.safe_dump(content))
    return str(directory / "room.yaml")


def test_a_room_is_read_with_its_files(tmp_path: Path) -> None:
    """A manifest gives its parts and the bytes of the files that it names, by path or by directory."""
    for name in (_write(tmp_path), str(tmp_path)):
        room = read_room(name)
        assert room.files == {"cart": {"cart.obj": CUBE}}
        assert (room.manifest.parts[0].format, room.manifest.parts[0].motion) == ("OBJ", "fixed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"license": None}, r"parts\.0\.license: missing key"),
        ({"license": "free"}, r"parts\.0\.license: .*Unknown license: 'free'; give an SPDX expression"),
        ({"label": "tabel"}, r"parts\.0\.label: .*'table'.*given: 'tabel'"),
        ({"turn_wxyz": [1, 1, 0, 0]}, r"turn_wxyz: .*length 1\.414; a turn has length 1"),
        ({"scale": -1}, r"parts\.0\.scale: .*greater than 0"),
        ({"scale": float("inf")}, r"parts\.0\.scale: .*finite"),
        ({"file": "../cart.obj"}, r"parts\.0\.file: .*outside the manifest's directory; copy the file"),
        ({"file": "/cart.obj"}, r"parts\.0\.file: .*outside the manifest's directory"),
        ({"beside": {"../cart.mtl": "0" * 64}}, r"beside.*outside the manifest's directory"),
        ({"file": "cart.stl"}, r"file 'cart\.stl': valid: \.glb, \.obj"),
        ({"sha256": "abc"}, r"parts\.0\.sha256: .*pattern"),
        (
            {"motion": "free"},
            r"motion 'free' needs mass_kg \(given: None\) and a collision \(given: 'none'\)",
        ),
        ({"name": "My Cart"}, r"parts\.0\.name: .*pattern"),
        ({"weight": 3}, r"parts\.0\.weight: unknown key"),
        ({"file": "kart.obj"}, r"part 'cart': kart\.obj: no such file in .*did you mean 'cart\.obj'"),
        ({"sha256": "0" * 64}, rf"sha256 is {hashlib.sha256(CUBE).hexdigest()}, the manifest says 0000"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """A wrong key, licence, label, turn, path, file or digest is refused, naming the part and what to do."""
    with pytest.raises(ConfigError, match=message):
        read_room(_write(tmp_path, _part(**change)))


def test_two_parts_of_one_name_are_refused(tmp_path: Path) -> None:
    """Names are those of bodies in both engines, so that each is used once."""
    with pytest.raises(ConfigError, match="parts with the same name: cart; give each part its own"):
        read_room(_write(tmp_path, _part(), _part()))


def test_a_link_does_not_lead_outside(tmp_path: Path) -> None:
    """A file that is a link to somewhere else is refused, though its digest is right."""
    (tmp_path / "room").mkdir()
    (tmp_path / "secret.obj").write_bytes(CUBE)
    name = _write(tmp_path / "room", _part(file="link.obj"))
    (tmp_path / "room" / "link.obj").symlink_to(tmp_path / "secret.obj")
    with pytest.raises(ConfigError, match="leads outside the manifest's directory"):
        read_room(name)


def test_a_room_that_is_none_is_refused(tmp_path: Path) -> None:
    """An unknown name, a missing manifest and a file of another kind say what there is."""
    with pytest.raises(ConfigError, match=r"'theater' is no bundled room.*did you mean 'theatre'"):
        manifest_path("theater")
    with pytest.raises(ConfigError, match=r"no manifest .*bundled rooms: theatre"):
        read_room(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="kind"):
        read_room(_write(tmp_path, kind="task"))


def test_a_job_names_a_room_by_content(tmp_path: Path) -> None:
    """A bundled name is enough; a path needs the manifest's digest, and another content is refused."""
    assert read_pinned("theatre").manifest.name == "theatre"
    name = _write(tmp_path)
    digest = read_room(name).manifest.digest()
    with pytest.raises(ConfigError, match=f"needs its digest.*{name}@{digest}"):
        read_pinned(name)
    assert read_pinned(f"{name}@{digest}").digests == {"room": digest}
    _write(tmp_path, _part(at_m=[-1.2, 0.0, -0.85]))
    with pytest.raises(ConfigError, match=f"the job names {digest}; restore the room"):
        read_pinned(f"{name}@{digest}")


def test_a_path_may_have_an_at_sign(tmp_path: Path) -> None:
    """A directory such as ``me@home`` is part of the path: its room is read with its digest, not without."""
    (tmp_path / "me@home").mkdir()
    name = _write(tmp_path / "me@home")
    digest = read_room(name).manifest.digest()
    assert read_pinned(f"{name}@{digest}").digests == {"room": digest}
    with pytest.raises(ConfigError, match=f"needs its digest.*{name}@{digest}"):
        read_pinned(name)
    with pytest.raises(ConfigError, match="a digest has 64 digits"):
        read_pinned(f"{name}@{digest[:-1]}")


def test_a_pipeline_with_an_impossible_room_is_refused(tmp_path: Path) -> None:
    """Before anything runs: an unknown room and a path without its digest are named; a whole name is fine."""

    def found(room: str) -> list[tuple[str, str]]:
        spec = CollectSpec(demos=2, room=room).model_dump()
        return list(spec_findings("collect", spec))

    name = _write(tmp_path)
    digest = "sha256:" + "0" * 64
    assert found("") == found("theatre") == found(f"/far@home/room.yaml@{digest}") == []
    assert [key for key, _ in found("theater")] == ["room"]
    assert f"`sim2or room check {name}` prints the whole name" in found(name)[0][1]
    assert "a digest has 64 digits of 0-9 and a-f, this one is '0'" in found(f"{name}@sha256:0")[0][1]
    (tmp_path / "me@home").mkdir()
    mine = _write(tmp_path / "me@home")
    assert f"{mine!r} needs its digest" in found(mine)[0][1]


def test_an_artifact_knows_its_room(tmp_path: Path) -> None:
    """The record names every file by digest and every licence; a record without a licence is refused."""
    record = read_room(_write(tmp_path)).record()
    told = record.model_dump(mode="json")
    assert told["parts"][0]["license"] == "CC-BY-4.0"
    assert told["parts"][0]["sha256"] == hashlib.sha256(CUBE).hexdigest()
    assert RoomRecord.model_validate(told) == record
    del told["parts"][0]["license"]
    with pytest.raises(ValueError, match="license"):
        RoomRecord.model_validate(told)


@pytest.mark.parametrize("name", room_names())
def test_bundled_rooms_are_whole_and_small(name: str) -> None:
    """Every file of a bundled room is there with its digest, under the project's licence, 300 kB together."""
    room = read_room(name)
    assert room.manifest.name == name
    assert {part.license for part in room.manifest.parts} == {"Apache-2.0"}
    assert sum(len(content) for files in room.files.values() for content in files.values()) < 300_000


def test_the_schema_in_the_docs_is_the_manifest_s() -> None:
    """docs/rooms.schema.json is what ``sim2or room schema`` prints."""
    assert json.loads((DOCS / "rooms.schema.json").read_text()) == RoomManifest.model_json_schema()
