"""The compatibility checker: what it lets a message become, and what it names when it does not."""

from __future__ import annotations

import json
from itertools import product
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from pydantic import Field, create_model
from sim2or.errors import ConfigError
from sim2or.messages.array import ArraySpec
from sim2or.messages.catalogue.compatibility import Change, compare, problems, structure
from sim2or.messages.catalogue.inventory import messages
from sim2or.messages.catalogue.schema import Schema, Version, parse_version, schema_of
from sim2or.messages.message import Message

MESSAGES = messages()


class Part(Message):
    """A part."""

    x_m: float


class WiderPart(Message):
    """The same part with one more field."""

    x_m: float
    y_m: float = 0.0


class NeedierPart(Message):
    """The same part with one more field that must be given."""

    x_m: float
    y_m: float


def array(dtype: str, *shape: int | None) -> Any:
    return Annotated[NDArray[np.float32], ArraySpec(dtype, shape)]


def a_schema(**fields: Any) -> Schema:
    """The schema of a message with these fields; a tuple gives type and default."""
    given = {name: field if isinstance(field, tuple) else (field, ...) for name, field in fields.items()}
    return schema_of(create_model("Thing", __base__=Message, **given))


def told(changes: list[Change]) -> list[str]:
    return [str(change) for change in changes]


BROKEN = [
    ({"a": int, "b": int}, {"a": int}, "b: removed; older receivers need it"),
    ({"a": int}, {"a": int, "b": int}, "b: new and required; older senders leave it out"),
    ({"a": (int, 0)}, {"a": int}, "a: became required; older senders may leave it out"),
    ({"a": int}, {"a": (int, 0)}, "a: became optional; older receivers need it"),
    ({"a": (int, 0)}, {"a": (int, 1)}, "a: default 0 → 1 (changed)"),
    ({"a": float}, {"a": int}, "a: no longer accepts number (narrowed)"),
    ({"a": int}, {"a": str}, "a: now accepts string, which an older receiver refuses (widened)"),
    ({"a": int | None}, {"a": int}, "a: no longer accepts null (narrowed)"),
    ({"a": int}, {"a": int | None}, "a: now accepts null, which an older receiver refuses (widened)"),
    ({"a": Literal["x", "y"]}, {"a": Literal["x"]}, 'a: no longer accepts "y" (narrowed)'),
    ({"a": Literal["x"]}, {"a": Literal["x", "y"]}, 'a: now accepts "y", which an older receiver refuses'),
    ({"a": str}, {"a": Literal["x", "y"]}, 'a: values "x", "y": limit narrowed'),
    ({"a": Literal["x", "y"]}, {"a": str}, 'a: values "x", "y": limit widened'),
    ({"a": Annotated[int, Field(ge=0)]}, {"a": Annotated[int, Field(ge=1)]}, "a: minimum 0 → 1 (narrowed)"),
    ({"a": Annotated[int, Field(ge=1)]}, {"a": Annotated[int, Field(ge=0)]}, "a: minimum 1 → 0 (widened"),
    ({"a": float}, {"a": Annotated[float, Field(lt=5)]}, "a: exclusiveMaximum none → 5 (narrowed)"),
    ({"a": Annotated[str, Field(max_length=9)]}, {"a": str}, "a: maxLength 9 → none (widened"),
    ({"a": str}, {"a": Annotated[str, Field(pattern="^x")]}, 'a: pattern none → "^x" (narrowed)'),
    (
        {"a": Annotated[str, Field(pattern="^x")]},
        {"a": Annotated[str, Field(pattern="^y")]},
        'a: pattern "^x" → "^y" (changed)',
    ),
    ({"a": tuple[int, ...]}, {"a": tuple[str, ...]}, "a[]: no longer accepts integer (narrowed)"),
    ({"a": tuple[int, int]}, {"a": tuple[int, int, int]}, "a: had 2 items, now 3"),
    ({"a": tuple[int, int]}, {"a": tuple[int, float]}, "a[1]: no longer accepts integer (narrowed)"),
    ({"a": dict[str, int]}, {"a": dict[str, str]}, "a{}: no longer accepts integer (narrowed)"),
    ({"a": Part}, {"a": NeedierPart}, "a.y_m: new and required"),
    ({"a": dict[str, WiderPart]}, {"a": dict[str, Part]}, "a{}.y_m: removed"),
    ({"a": WiderPart | None}, {"a": Part | None}, "a.y_m: removed"),
    (
        {"a": array("float32", 6)},
        {"a": array("float64", 6)},
        "a: array changed from float32[6] to float64[6]",
    ),
    (
        {"a": array("float32", 6)},
        {"a": array("float32", 7)},
        "a: array changed from float32[6] to float32[7]",
    ),
    (
        {"a": array("uint8", None, 3)},
        {"a": array("uint8", None, None)},
        "a: array changed from uint8[any, 3] to uint8[any, any]",
    ),
    ({"a": array("float32", 6)}, {"a": tuple[float, ...]}, "a: array changed from float32[6] to array"),
    (
        {"age_s": float},
        {"age_ms": float},
        "age_s: unit changed: age_s became age_ms; keep age_s and add age_ms",
    ),
    ({"tilt": float}, {"tilt_rad": float}, "tilt: unit changed: tilt became tilt_rad"),
]


@pytest.mark.parametrize(("before", "after", "said"), BROKEN, ids=[said for *_, said in BROKEN])
def test_a_change_that_breaks_a_peer_names_its_field(
    before: dict[str, Any], after: dict[str, Any], said: str
) -> None:
    """Whatever an older sender or receiver would be refused for is breaking, and the field is named."""
    changes = compare(a_schema(**before), a_schema(**after))
    assert any(said in line for line in told([one for one in changes if one.breaking])), told(changes)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"a": int}, {"a": int, "b": (int, 0)}, ["b: new optional field"]),
        ({"a": int}, {"a": int, "b": (int | None, None)}, ["b: new optional field"]),
        ({"a": Part}, {"a": WiderPart}, ["a.y_m: new optional field"]),
        ({"a": tuple[Part, ...]}, {"a": tuple[WiderPart, ...]}, ["a[].y_m: new optional field"]),
        ({"a": int, "b": str}, {"b": str, "a": int}, []),
        ({"a": Annotated[int, Field(description="x")]}, {"a": Annotated[int, Field(title="y")]}, []),
    ],
)
def test_a_minor_version_may_only_add_optional_fields(
    before: dict[str, Any], after: dict[str, Any], said: list[str]
) -> None:
    """Optional fields may come, at any depth; order, titles and descriptions do not count."""
    changes = compare(a_schema(**before), a_schema(**after))
    assert told(changes) == said
    assert not any(change.breaking for change in changes)


ONE, TWO = a_schema(a=int), a_schema(a=int, b=(int, 0))


@pytest.mark.parametrize(
    ("committed", "version", "schema", "said"),
    [
        ({}, "1.0", ONE, []),
        ({"1.0": ONE}, "1.0", ONE, []),
        ({"1.0": ONE}, "1.1", TWO, []),
        ({"1.0": ONE, "1.1": TWO}, "1.1", TWO, []),
        (
            {"1.0": ONE},
            "1.0",
            TWO,
            ["thing: version is still 1.0, but b: new optional field; set schema_version to '1.1'"],
        ),
        (
            {"1.0": ONE, "1.1": TWO},
            "1.0",
            ONE,
            [
                "thing 1.1 → 1.0: b: removed; older receivers need it: keep it",
                "thing: version 1.0 is older than 1.1, which exists already",
            ],
        ),
        ({"1.0": TWO}, "1.1", ONE, ["thing 1.0 → 1.1: b: removed; older receivers need it: keep it"]),
        (
            {"1.0": ONE},
            "2.0",
            ONE,
            ["thing: version 2.0, but 1.0 exist: another major version is another message; name it thing_v2"],
        ),
    ],
)
def test_a_version_says_what_changed(
    committed: dict[str, Schema], version: str, schema: Schema, said: list[str]
) -> None:
    """A schema that differs needs a higher minor version, and must fit every earlier one of its major."""
    earlier = {parse_version(text): one for text, one in committed.items()}
    assert list(problems("thing", earlier, parse_version(version), schema)) == said


@pytest.mark.parametrize("text", ["1", "1.", "a.b", "1.0.0", "-1.0", ""])
def test_a_version_is_major_and_minor(text: str) -> None:
    """Anything but two numbers is refused with an example."""
    with pytest.raises(ConfigError, match=r"expected major\.minor, for example 1\.0"):
        parse_version(text)


def test_versions_are_ordered_as_numbers() -> None:
    """Version 1.10 comes after 1.9."""
    assert Version(1, 9) < Version(1, 10) < Version(2, 0)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_of_every_message_is_guarded(name: str) -> None:
    """Taking any field out of any message, or requiring any optional one, is found and named."""
    schema = schema_of(MESSAGES[name])
    assert compare(schema, schema) == []
    for field in schema["properties"]:
        without = json.loads(json.dumps(schema))
        del without["properties"][field]
        assert any(line.startswith(f"{field}: ") for line in told(compare(schema, without)))
        needier = schema | {"required": sorted({*schema.get("required", ()), field})}
        expected = field not in schema.get("required", ())
        assert bool(compare(schema, needier)) == expected


NUMBERS = st.fixed_dictionaries(
    {"type": st.sampled_from(["integer", "number"])},
    optional={
        "minimum": st.integers(-2, 2),
        "maximum": st.integers(-1, 3),
        "exclusiveMinimum": st.integers(-2, 2),
    },
)
TEXTS = st.fixed_dictionaries(
    {"type": st.just("string")},
    optional={
        "maxLength": st.integers(0, 3),
        "minLength": st.integers(0, 2),
        "enum": st.sampled_from([["a"], ["a", "bb"], ["bb", "a", ""]]),
        "pattern": st.sampled_from(["^a", "b$"]),
    },
)
NODES = st.one_of(
    NUMBERS, TEXTS, st.builds(lambda node: {"anyOf": [node, {"type": "null"}]}, NUMBERS | TEXTS)
)
OBJECTS = st.builds(
    lambda properties, required: {
        "type": "object",
        "properties": properties,
        "required": sorted(required & properties.keys()),
    },
    st.dictionaries(st.sampled_from("ab"), NODES, max_size=2),
    st.sets(st.sampled_from("ab")),
)


@st.composite
def edited(draw: st.DrawFn) -> tuple[Schema, Schema]:
    """A schema, and what one edit made of it: often nothing that counts, often something that does."""
    old = draw(OBJECTS)
    new = json.loads(json.dumps(old))
    name = draw(st.sampled_from("ab"))
    if draw(st.booleans()):
        new["properties"][name] = draw(NODES)
    elif name in new["properties"]:
        keyword = draw(st.sampled_from(sorted(new["properties"][name])))
        del new["properties"][name][keyword]
    if draw(st.booleans()):
        new["required"] = sorted(draw(st.sets(st.sampled_from("ab"))) & new["properties"].keys())
    return old, new


VALUES: tuple[Any, ...] = (-2, 0, 1, 1.5, 3, "", "a", "bb", "aab", None)


@settings(max_examples=150, deadline=None)
@given(pair=edited())
def test_what_the_checker_lets_pass_is_accepted_on_both_sides(pair: tuple[Schema, Schema]) -> None:
    """Without a breaking change, both versions accept the same values of the fields that both have."""
    old, new = pair
    if any(change.breaking for change in compare(old, new)):
        return
    shared = [name for name in old["properties"] if name in new["properties"]]
    assert shared == list(old["properties"])
    before, after = Draft202012Validator(old), Draft202012Validator(new)
    for values in product((..., *VALUES), repeat=len(shared)):
        content = {name: value for name, value in zip(shared, values, strict=True) if value is not ...}
        assert before.is_valid(content) == after.is_valid(content), (content, old, new)


@settings(max_examples=60, deadline=None)
@given(schema=OBJECTS)
def test_a_schema_is_compatible_with_itself(schema: Schema) -> None:
    """Nothing differs between a schema and a copy whose keys come in another order."""
    turned = json.loads(json.dumps(schema, sort_keys=True))
    assert compare(schema, turned) == []
    assert structure(schema) == structure(turned)
