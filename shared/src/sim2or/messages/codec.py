"""Messages to frames and back: ``[topic, header JSON, raw array, …]``. Nothing is pickled.

The header is ``{"envelope": {…}, "payload": {…}}``; an array field holds a reference to its
frame. Unknown fields are refused where a message is made and ignored where it is received, so that a newer
sender may add optional ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from sim2or.errors import MessageError, choices
from sim2or.messages.array import MAX_FRAMES, Buffer, Frames, size_bytes
from sim2or.messages.envelope import Envelope
from sim2or.messages.message import Message

MAX_BYTES = 64 * 1024 * 1024
"""Of one message, all frames together."""

MAX_HEADER_BYTES = 256 * 1024


class _Wire[M: Message](BaseModel):
    """The header of a message whose type is known."""

    model_config = ConfigDict(strict=True, extra="ignore")

    envelope: Envelope
    payload: M


def encode(message: Message, envelope: Envelope, *, topic: str = "") -> list[Buffer]:
    """Writes a message as frames; arrays are not copied.

    Args:
        message: What to send.
        envelope: Its envelope, of the same type.
        topic: First frame, which subscribers filter by; the type's name when empty.

    Returns:
        Topic, header and one frame for each array.

    Raises:
        MessageError: A cap is exceeded, or the envelope is another message's.
    """
    if envelope.type != message.type_name:
        raise MessageError(f"envelope says {envelope.type!r}, the message is {message.type_name!r}")
    frames = Frames()
    try:
        payload = message.model_dump_json(context=frames).encode()
    except PydanticSerializationError as error:
        raise MessageError(f"{message.type_name}: {error}") from error
    header = b'{"envelope":%b,"payload":%b}' % (envelope.model_dump_json().encode(), payload)
    wire: list[Buffer] = [(topic or message.type_name).encode(), header, *frames.buffers]
    _check_sizes(wire)
    return wire


def decode[M: Message](frames: Sequence[Buffer], *expected: type[M]) -> tuple[Envelope, M]:
    """Reads a message; arrays are read-only views of the frames.

    Args:
        frames: Topic, header and raw arrays, as ``encode`` made them.
        expected: Message types that are accepted here.

    Returns:
        The envelope and the message.

    Raises:
        MessageError: Naming the field and the limit that was broken.
    """
    _check_sizes(frames)
    header = bytes(frames[1])
    announced = _announced(frames[0], expected)
    if announced:
        with suppress(ValidationError):
            wire = _parse(announced, header, frames)
            if wire.envelope.type == announced.type_name:
                return _current(wire, announced)
    kind = _kind(header, expected)
    try:
        return _current(_parse(kind, header, frames), kind)
    except ValidationError as error:
        _check_version(kind, from_json(header)["envelope"].get("version"))
        raise MessageError(f"{kind.type_name}: {explain(error)}") from error


def _announced[M: Message](topic: Buffer, expected: Sequence[type[M]]) -> type[M] | None:
    """The type that the topic names; a hint that saves reading the header twice: the envelope decides."""
    name = bytes(topic).partition(b"\0")[0]
    return next((kind for kind in expected if kind.type_name.encode() == name), None)


def _parse[M: Message](kind: type[M], header: bytes, frames: Sequence[Buffer]) -> _Wire[M]:
    return _wire(kind).model_validate_json(header, context=Frames(list(frames[2:])), extra="ignore")


def _current[M: Message](wire: _Wire[M], kind: type[M]) -> tuple[Envelope, M]:
    _check_version(kind, wire.envelope.version)
    return wire.envelope, wire.payload


def explain(error: ValidationError, *, limit: int = 5) -> str:
    """Says which fields of a message are wrong, and why, in one line."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{'.'.join(str(part) for part in p['loc']) or 'message'}: {p['msg']}" for p in problems[:limit]]
    more = [f"and {len(problems) - limit} more"] if len(problems) > limit else []
    return "; ".join(told + more)


@lru_cache(maxsize=128)
def _wire[M: Message](kind: type[M]) -> type[_Wire[M]]:
    return _Wire[kind]  # type: ignore[valid-type]


def _kind[M: Message](header: bytes, expected: Sequence[type[M]]) -> type[M]:
    try:
        content = from_json(header)
        name = content["envelope"]["type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MessageError(f"header is not {{envelope: {{type, …}}, payload}} in JSON: {error!r}") from error
    types = {kind.type_name: kind for kind in expected}
    if not isinstance(name, str) or name not in types:
        raise MessageError(
            f"message type {str(name)[:100]!r} is not accepted here; {choices(str(name)[:100], types)}"
        )
    return types[name]


def _check_version(kind: type[Message], version: object) -> None:
    """Refuses another major version; its fields may well be others, so this is said before they are."""
    if isinstance(version, str) and version.partition(".")[0] != kind.schema_version.partition(".")[0]:
        raise MessageError(
            f"{kind.type_name} version {version[:20]} is refused; here it is {kind.schema_version}"
        )


def _check_sizes(frames: Sequence[Buffer]) -> None:
    if not 2 <= len(frames) <= 2 + MAX_FRAMES:
        raise MessageError(
            f"message has {len(frames)} frames; topic, header and at most {MAX_FRAMES} arrays are accepted"
        )
    header_bytes = memoryview(frames[1]).nbytes
    if header_bytes > MAX_HEADER_BYTES:
        raise MessageError(f"header has {header_bytes} bytes; at most {MAX_HEADER_BYTES} are accepted")
    total = size_bytes(frames)
    if total > MAX_BYTES:
        raise MessageError(f"message has {total} bytes; at most {MAX_BYTES} are accepted")
