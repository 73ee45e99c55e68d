"""The files under ``docs/messages``: made from the table and the classes, compared with what is committed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from sim2or.errors import ConfigError
from sim2or.messages.catalogue.asyncapi import asyncapi_text
from sim2or.messages.catalogue.compatibility import problems
from sim2or.messages.catalogue.inventory import messages
from sim2or.messages.catalogue.page import page
from sim2or.messages.catalogue.schema import committed, schema_of, schema_path, text_of, version_of
from sim2or.messages.topics import TOPICS, Topic

PAGE = "README.md"
ASYNCAPI = "asyncapi.yaml"

Table = Mapping[str, Topic]


def documents(directory: Path, table: Table = TOPICS) -> dict[Path, str]:
    """Makes every file of the catalogue: path to content."""
    schemas = {
        schema_path(directory, name, version_of(kind)): text_of(schema_of(kind))
        for name, kind in messages(table).items()
    }
    return schemas | {directory / PAGE: page(table), directory / ASYNCAPI: asyncapi_text(table)}


def write(directory: Path, table: Table = TOPICS) -> list[Path]:
    """Writes what is new or has changed, and returns it. Schemas of earlier versions stay as they are.

    Raises:
        ConfigError: A message changed in a way that its version does not say; nothing is written.
    """
    if found := list(incompatible(directory, table)):
        raise ConfigError("\n".join(found))
    stale = [(path, text) for path, text in documents(directory, table).items() if _differs(path, text)]
    for path, text in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [path for path, _ in stale]


def outdated(directory: Path, table: Table = TOPICS) -> Iterator[str]:
    """Names the files that are not as they would be made now, one line each."""
    for path, text in documents(directory, table).items():
        if _differs(path, text):
            state = "is not up to date" if path.exists() else "is missing"
            yield f"{path}: {state}; `make messages` makes it"


def incompatible(directory: Path, table: Table = TOPICS) -> Iterator[str]:
    """Names what changed in a message without its version saying so, or in a way no version may."""
    kinds = messages(table)
    for name, kind in kinds.items():
        yield from problems(name, committed(directory, name), version_of(kind), schema_of(kind))
    for path in sorted(directory.glob("*/")):
        if path.name not in kinds:
            yield (
                f"{path.name}: its schemas are in {directory}, but the message is gone: older services still "
                "send it; keep its class, or remove its directory when none is left"
            )


def _differs(path: Path, text: str) -> bool:
    if not path.exists():
        return True
    if path.suffix == ".json":
        return bool(json.loads(path.read_text()) != json.loads(text))
    return path.read_text() != text
