"""Golden samples: what a version of a message looked like on its road, kept for ever and never edited.

``<type>/<version>.json`` holds what was on the wire and what it means; ``<version>.bin`` beside it holds the
raw frames of its arrays, one after the other. Today's code must read every one of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import numpy as np

from sim2or.errors import ConfigError
from sim2or.messages.catalogue.inventory import messages, wholes
from sim2or.messages.catalogue.samples import sample, sample_envelope
from sim2or.messages.catalogue.schema import Version, parse_version, version_of
from sim2or.messages.codec import encode
from sim2or.messages.event import Event
from sim2or.messages.job import JobRecord
from sim2or.messages.message import Message
from sim2or.messages.topics import TOPICS

Wire = Literal["frames", "json", "redis"]


@dataclass(frozen=True)
class Golden:
    """One sample of one version.

    Attributes:
        name: The message type.
        version: Which version of it.
        wire: ``frames``: header and raw arrays of a live message; ``json``: a text in Redis; ``redis``: the
            fields of a stream's entry or of a hash.
        content: The header, the text's content, or id and fields.
        frames: One for each array.
        values: What it means: every field, arrays as lists.
    """

    name: str
    version: Version
    wire: Wire
    content: dict[str, Any]
    frames: tuple[bytes, ...]
    values: dict[str, Any]


def golden_of(kind: type[Message]) -> Golden:
    """Makes the sample of a message type's current version."""
    message, wire = sample(kind), wire_of(kind)
    content, frames = _written(message, wire)
    return Golden(kind.type_name, version_of(kind), wire, content, frames, plain(message))


def wire_of(kind: type[Message]) -> Wire:
    """How a message type travels: parts travel as what they are part of."""
    if kind in (Event, JobRecord):
        return "redis"
    row = TOPICS.get(kind.type_name)
    roads = {row.road} if row else {TOPICS[name].road for name in wholes(kind)}
    return "frames" if roads & {"rpc", "pubsub"} else "json"


def plain(message: Message) -> dict[str, Any]:
    """A message's values as JSON would hold them, arrays as lists."""
    content: dict[str, Any] = _plain(message.model_dump())
    return content


def golden_path(directory: Path, name: str, version: Version) -> Path:
    """Where a sample is kept."""
    return directory / name / f"{version}.json"


def add_missing(directory: Path) -> list[Path]:
    """Writes the sample of every current version that has none yet; never touches one that exists."""
    added = []
    for kind in messages().values():
        path = golden_path(directory, kind.type_name, version_of(kind))
        if not path.exists():
            _write(path, golden_of(kind))
            added.append(path)
    return added


def missing(directory: Path, kinds: Mapping[str, type[Message]]) -> Iterator[str]:
    """Names the current versions that have no sample, one line each."""
    for name, kind in kinds.items():
        path = golden_path(directory, name, version_of(kind))
        if not path.exists():
            yield f"{name}: {path} is missing; `sim2or bus golden --add` makes it"


def read(path: Path) -> Golden:
    """Reads a sample.

    Raises:
        ConfigError: It is no sample, or its frames do not fit.
    """
    try:
        content = json.loads(path.read_text())
        sizes = content["frame_bytes"]
        raw = path.with_suffix(".bin").read_bytes() if sizes else b""
        if len(raw) != sum(sizes):
            raise ConfigError(f"{path.with_suffix('.bin')}: {len(raw)} bytes; {sum(sizes)} are announced")
        ends = np.cumsum(sizes, dtype=int).tolist()
        frames = tuple(raw[end - size : end] for size, end in zip(sizes, ends, strict=True))
        return Golden(
            name=content["type"],
            version=parse_version(content["version"]),
            wire=content["wire"],
            content=content["content"],
            frames=frames,
            values=content["values"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: no golden sample: {error!r}") from error


def read_all(directory: Path) -> dict[Path, Golden]:
    """Reads every sample of a directory."""
    return {path: read(path) for path in sorted(directory.glob("*/*.json"))}


def _written(message: Message, wire: Wire) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    if wire == "frames":
        _, header, *frames = encode(message, sample_envelope(type(message)))
        return json.loads(bytes(header)), tuple(bytes(frame) for frame in frames)
    if wire == "json":
        return json.loads(message.model_dump_json()), ()
    identity = "id" if isinstance(message, Event) else "job_id"
    content = json.loads(message.model_dump_json())
    fields = {name: _field(value) for name, value in content.items() if value not in (None, False)}
    return {"id": fields.pop(identity), "fields": fields}, ()


def _field(value: object) -> str:
    """A value as Redis holds it: text and numbers as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _write(path: Path, golden: Golden) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "type": golden.name,
        "version": str(golden.version),
        "wire": golden.wire,
        "content": golden.content,
        "frame_bytes": [len(frame) for frame in golden.frames],
        "values": golden.values,
    }
    if golden.frames:
        path.with_suffix(".bin").write_bytes(b"".join(golden.frames))
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
