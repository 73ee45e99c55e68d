"""Explanations: what is wrong in a file that people write, with the key, the value and what is valid."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sim2or.errors import choices


@dataclass(frozen=True)
class Problem:
    """One wrong key or value.

    Attributes:
        where: Dotted path of the key.
        path: The same as parts.
        text: What is wrong with it and what is valid.
    """

    where: str
    path: tuple[str | int, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def explain(error: ValidationError, model: type[BaseModel], where: str = "") -> list[Problem]:
    """Turns a pydantic error into sentences.

    Args:
        error: What validation said.
        model: The class that was validated against.
        where: Prefix of every key.
    """
    return [_problem(item, model, where) for item in error.errors(include_url=False)]


def _problem(item: Mapping[str, Any], model: type[BaseModel], prefix: str) -> Problem:
    path: tuple[str | int, ...] = item["loc"]
    where = ".".join(filter(None, [prefix, *map(str, path)]))
    if item["type"] == "extra_forbidden":
        return Problem(where, path, f"unknown key; {choices(str(path[-1]), _keys_at(model, path[:-1]))}")
    if item["type"] == "missing":
        return Problem(where, path, "missing; it has no default")
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    value = item["input"]
    shown = "" if isinstance(value, Mapping) and not path else f" (given: {_short(value)})"
    return Problem(where, path, f"{message[:1].lower()}{message[1:]}{shown}")


def _keys_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Keys that the nested model at ``path`` takes."""
    current: list[Any] = [model]
    for part in path:
        current = [inner for annotation in current for inner in _step(annotation, part)]
    return sorted(
        {field.alias or name for cls in current if _is_model(cls) for name, field in cls.model_fields.items()}
    )


def _step(annotation: Any, part: str | int) -> Iterator[Any]:
    for cls in _flatten(annotation):
        if _is_model(cls):
            for name, field in cls.model_fields.items():
                if part in (name, field.alias):
                    yield from _flatten(field.annotation)
        elif get_args(cls):
            for inner in get_args(cls):
                yield from _flatten(inner)


def _flatten(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _flatten(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _flatten(inner)
    elif isinstance(annotation, typing.TypeAliasType):
        yield from _flatten(annotation.__value__)
    else:
        yield annotation


def _is_model(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, BaseModel)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
