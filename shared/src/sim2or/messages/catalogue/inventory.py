"""Which messages there are: those of the topic table, those inside them, and the envelope around them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import sim2or.messages
from sim2or.messages.envelope import Envelope
from sim2or.messages.message import Message, Spec
from sim2or.messages.topics import TOPICS, Topic


def messages(table: Mapping[str, Topic] = TOPICS) -> dict[str, type[Message]]:
    """Every message that travels, by type name, in the table's order; parts follow what they are part of."""
    found: dict[str, type[Message]] = {Envelope.type_name: Envelope}
    for row in table.values():
        for kind in (row.message, *parts(row.message)):
            found.setdefault(kind.type_name, kind)
    return found


def parts(kind: type[Message]) -> tuple[type[Message], ...]:
    """The message types inside a message, at any depth, in the order of its fields."""
    found: dict[type[Message], None] = {}
    for field in kind.model_fields.values():
        for inner in _messages_in(field.annotation):
            found |= dict.fromkeys((inner, *parts(inner)))
    return tuple(found)


def wholes(kind: type[Message], table: Mapping[str, Topic] = TOPICS) -> tuple[str, ...]:
    """The names of the topics that a message is part of."""
    return tuple(row.name for row in table.values() if kind in parts(row.message))


def declared() -> dict[str, type[Message]]:
    """Every message type that a module of ``sim2or.messages`` declares, by type name."""
    for module in pkgutil.iter_modules(sim2or.messages.__path__, "sim2or.messages."):
        importlib.import_module(module.name)
    return {
        kind.type_name: kind
        for kind in _subclasses(Message)
        if kind.type_name and kind.__module__.startswith("sim2or.messages.") and not issubclass(kind, Spec)
    }


def paragraphs(kind: type[Message]) -> tuple[str, str]:
    """A message's docstring before its attributes: the first sentence, and the rest."""
    text = (kind.__doc__ or "").partition("Attributes:")[0]
    first, _, rest = text.strip().partition("\n\n")
    return " ".join(first.split()), " ".join(rest.split())


def attributes(kind: type[Message]) -> dict[str, str]:
    """What a message's docstring says about each of its fields."""
    found: dict[str, list[str]] = {}
    lines = (kind.__doc__ or "").partition("Attributes:")[2].splitlines()
    name = ""
    for line in filter(str.strip, lines):
        indent = len(line) - len(line.lstrip())
        if indent == _INDENT and ": " in line:
            name, _, text = line.strip().partition(": ")
            found[name] = [text]
        elif name:
            found[name].append(line.strip())
    return {name: " ".join(parts) for name, parts in found.items()}


_INDENT = 8
"""Of an attribute's name in the docstring of a class."""


def _messages_in(annotation: Any) -> Iterator[type[Message]]:
    if isinstance(annotation, type) and issubclass(annotation, Message):
        yield annotation
    for inner in get_args(annotation):
        yield from _messages_in(inner)


def _subclasses(base: type[Message]) -> Iterator[type[Message]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _subclasses(kind)
