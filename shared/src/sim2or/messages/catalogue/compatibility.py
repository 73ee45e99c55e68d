"""What may change in a message: a minor version adds optional fields; nothing else changes, ever.

An older receiver ignores what it does not know, and an older sender leaves it out; so whatever was there
stays as it was: neither narrower (the older sender would be refused) nor wider (the older receiver would
refuse). Everything else is a new message type with a name of its own, ``…_v2``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sim2or.messages.catalogue.schema import Schema, Version

UNITS = (
    "m",
    "rad",
    "s",
    "ms",
    "us",
    "ns",
    "kg",
    "n",
    "nm",
    "hz",
    "mps",
    "radps",
    "px",
    "mm",
    "deg",
    "mib",
    "mb",
)
"""Unit suffixes of field names. Source: the house style."""

_ANNOTATIONS = frozenset(
    {"title", "description", "examples", "$schema", "$id", "$comment", "$defs", "x-type", "x-version"}
)
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_INSIDE = {"items": "[]", "additionalProperties": "{}", "propertyNames": "{key}"}
_COMPARED = frozenset(
    {"type", "const", "enum", "anyOf", "prefixItems", "properties", "required", *_LOWER, *_UPPER, *_INSIDE}
)
_MAX_DEPTH = 40


@dataclass(frozen=True)
class Change:
    """One difference between two versions of a message.

    Attributes:
        field: Dotted path of the field; ``[]`` is a list's item, ``{}`` a mapping's value.
        text: What became of it.
        breaking: Whether an older or a newer peer would be refused.
    """

    field: str
    text: str
    breaking: bool = True

    def __str__(self) -> str:
        return f"{self.field or 'message'}: {self.text}"


def compare(old: Schema, new: Schema) -> list[Change]:
    """Lists what differs between two schemas of one message; descriptions and titles do not count."""
    return list(_compare(structure(old), structure(new), ""))


def problems(
    name: str, committed: Mapping[Version, Schema], version: Version, schema: Schema
) -> Iterator[str]:
    """Says why a message's schema does not follow from the versions that exist already, one line each.

    Args:
        name: The message type.
        committed: The schema of every earlier version.
        version: The version that this code claims to be.
        schema: Its schema.
    """
    majors = {old.major for old in committed}
    if majors and version.major not in majors:
        yield (
            f"{name}: version {version}, but {', '.join(map(str, committed))} exist: another major version "
            f"is another message; name it {name}_v{version.major}"
        )
    for old, before in sorted(committed.items()):
        found = compare(before, schema) if old.major == version.major else []
        for change in found:
            if change.breaking:
                yield f"{name} {old} → {version}: {change}"
            elif old >= version:
                yield (
                    f"{name}: version is still {version}, but {change}; set schema_version to "
                    f"'{version.major}.{max(committed).minor + 1}'"
                )
    if version < max(committed, default=version):
        yield f"{name}: version {version} is older than {max(committed)}, which exists already"


def structure(schema: Schema) -> Schema:
    """A schema without references and without what only people read: equal structures accept the same."""
    expanded: Schema = _expand(schema, schema.get("$defs", {}), 0)
    return expanded


def _expand(node: Any, definitions: Mapping[str, Any], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"schema is nested deeper than {_MAX_DEPTH}; messages do not contain themselves")
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref", "")
    target = definitions[reference.rpartition("/")[2]] if reference else {}
    merged = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return {
        key: _expanded(key, value, definitions, depth + 1)
        for key, value in sorted(merged.items())
        if key not in _ANNOTATIONS
    }


def _expanded(key: str, value: Any, definitions: Mapping[str, Any], depth: int) -> Any:
    if key == "properties":
        return {name: _expand(inner, definitions, depth) for name, inner in value.items()}
    if key in ("anyOf", "prefixItems"):
        return [_expand(inner, definitions, depth) for inner in value]
    return _expand(value, definitions, depth) if key in _INSIDE else value


def _compare(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    if "x-shape" in old or "x-shape" in new:
        yield from _arrays(old, new, path)
        return
    olds, news = _alternatives(old), _alternatives(new)
    for kind in sorted(olds.keys() - news.keys()):
        yield Change(path, f"no longer accepts {kind} (narrowed)")
    for kind in sorted(news.keys() - olds.keys()):
        yield Change(path, f"now accepts {kind}, which an older receiver refuses (widened)")
    for kind in sorted(olds.keys() & news.keys()):
        yield from _plain(olds[kind], news[kind], path)
    yield from _changed({"default": old.get("default")}, {"default": new.get("default")}, path)


def _alternatives(node: Schema) -> dict[str, Schema]:
    """What a node accepts, by kind of value; two alternatives of one kind are told apart by their content."""
    found: dict[str, Schema] = {}
    for choice in node.get("anyOf", [node]):
        bare = {key: value for key, value in choice.items() if key != "default"}
        kind = f"array {_array(bare)}" if "x-shape" in bare else str(bare.get("type", "anything"))
        found[kind if kind not in found else json.dumps(bare, sort_keys=True)] = bare
    return found


def _arrays(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    if _array(old) != _array(new):
        yield Change(path, f"array changed from {_array(old)} to {_array(new)}")


def _array(node: Schema) -> str:
    if "x-shape" not in node:
        return str(node.get("type", "something else"))
    sizes = ", ".join("any" if size is None else str(size) for size in node["x-shape"])
    return f"{node['properties']['dtype']['const']}[{sizes}]"


def _plain(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    yield from _values(old, new, path)
    for keyword in (*_LOWER, *_UPPER):
        yield from _bound(keyword, old.get(keyword), new.get(keyword), path)
    rest = (old.keys() | new.keys()) - _COMPARED
    yield from _changed({key: old.get(key) for key in rest}, {key: new.get(key) for key in rest}, path)
    yield from _items(old, new, path)
    for keyword, mark in _INSIDE.items():
        yield from _inside(old.get(keyword), new.get(keyword), f"{path}{mark}")
    yield from _fields(old, new, path)


def _values(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    before, after = _allowed(old), _allowed(new)
    if before is None and after is None:
        return
    if before is None or after is None:
        word, limited = ("narrowed", after) if before is None else ("widened", before)
        yield Change(path, f"values {', '.join(sorted(limited or ()))}: limit {word}")
        return
    for value in sorted(before - after):
        yield Change(path, f"no longer accepts {value} (narrowed)")
    for value in sorted(after - before):
        yield Change(path, f"now accepts {value}, which an older receiver refuses (widened)")


def _allowed(node: Schema) -> set[str] | None:
    if "const" in node:
        return {json.dumps(node["const"])}
    return {json.dumps(value) for value in node["enum"]} if "enum" in node else None


def _bound(keyword: str, old: float | None, new: float | None, path: str) -> Iterator[Change]:
    if old == new:
        return
    tighter = new is not None and (old is None or (new > old if keyword in _LOWER else new < old))
    shown = f"{keyword} {_shown(old)} → {_shown(new)}"
    yield Change(path, f"{shown} ({'narrowed' if tighter else 'widened: an older receiver refuses more'})")


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> Iterator[Change]:
    for keyword in sorted(old):
        if old[keyword] != new[keyword]:
            word = {old[keyword] is None: "narrowed", new[keyword] is None: "widened"}.get(True, "changed")
            word = "changed" if keyword == "default" else word
            yield Change(path, f"{keyword} {_shown(old[keyword])} → {_shown(new[keyword])} ({word})")


def _items(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    before, after = old.get("prefixItems", []), new.get("prefixItems", [])
    if len(before) != len(after):
        yield Change(path, f"had {len(before)} items, now {len(after)}")
    for number, (left, right) in enumerate(zip(before, after, strict=False)):
        yield from _compare(left, right, f"{path}[{number}]")


def _inside(old: Any, new: Any, path: str) -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _compare(old, new, path)
    elif old != new:
        yield Change(path, f"changed from {_shown(old)} to {_shown(new)}")


def _fields(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    before, after = old.get("properties", {}), new.get("properties", {})
    needed, needs = set(old.get("required", ())), set(new.get("required", ()))
    for name in sorted(before.keys() - after.keys()):
        yield Change(_join(path, name), _removal(name, after.keys() - before.keys()))
    for name in sorted(after.keys() - before.keys()):
        if name in needs:
            yield Change(_join(path, name), "new and required; older senders leave it out: give it a default")
        else:
            yield Change(_join(path, name), "new optional field", breaking=False)
    for name in sorted(before.keys() & after.keys()):
        if name in needs - needed:
            yield Change(_join(path, name), "became required; older senders may leave it out")
        if name in needed - needs:
            yield Change(_join(path, name), "became optional; older receivers need it")
        yield from _compare(before[name], after[name], _join(path, name))


def _removal(name: str, added: set[str]) -> str:
    for other in sorted(added):
        if _stem(other) == _stem(name):
            return f"unit changed: {name} became {other}; keep {name} and add {other} as an optional field"
    return "removed; older receivers need it: keep it"


def _stem(name: str) -> str:
    return re.sub(rf"_({'|'.join(UNITS)})$", "", name)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: object) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
