"""JSON Schemas of the messages, as they are written: ``<type>/<version>.schema.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from sim2or.errors import ConfigError
from sim2or.messages.catalogue.inventory import attributes, paragraphs, parts
from sim2or.messages.message import Message

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SUFFIX = ".schema.json"

Schema = dict[str, Any]


class Version(NamedTuple):
    """Version of a schema: a minor one only adds optional fields."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


def parse_version(text: str) -> Version:
    """Reads ``major.minor``.

    Raises:
        ConfigError: It is written otherwise.
    """
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise ConfigError(f"version {text!r}: expected major.minor, for example 1.0")
    return Version(int(major), int(minor))


def version_of(kind: type[Message]) -> Version:
    """The version of a message type in this code."""
    return parse_version(kind.schema_version)


def schema_of(kind: type[Message]) -> Schema:
    """The schema of what a sender of this version writes; the docstrings describe its fields."""
    schema = kind.model_json_schema(mode="validation")
    _describe(schema, kind)
    for part in parts(kind):
        _describe(schema.get("$defs", {}).get(part.__name__, {}), part)
    return {
        "$schema": DIALECT,
        "$id": f"urn:sim2or:message:{kind.type_name}:{kind.schema_version}",
        "x-type": kind.type_name,
        "x-version": kind.schema_version,
        **schema,
    }


def schema_path(directory: Path, name: str, version: Version) -> Path:
    """Where the schema of a message type's version is kept."""
    return directory / name / f"{version}{SUFFIX}"


def committed(directory: Path, name: str) -> dict[Version, Schema]:
    """The schemas of a message type that are kept in a directory, oldest first.

    Raises:
        ConfigError: A file's name is no version, or its content is no schema.
    """
    found = {}
    for path in (directory / name).glob(f"*{SUFFIX}"):
        try:
            found[parse_version(path.name.removesuffix(SUFFIX))] = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path}: no JSON: {error}") from error
    return dict(sorted(found.items()))


def text_of(schema: Schema) -> str:
    """A schema as the text of its file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _describe(schema: Schema, kind: type[Message]) -> None:
    schema["description"] = " ".join(filter(None, paragraphs(kind)))
    told = attributes(kind)
    for name, field in schema.get("properties", {}).items():
        text = [told.get(name, ""), field.get("description", "")]
        if any(text):
            field["description"] = " ".join(filter(None, text))
