"""Arrays inside messages: declared dtype and shape, checked on both sides, carried as raw frames.

A field says what it accepts::

    state_rad: Annotated[NDArray[np.float32], ArraySpec("float32", (6,))]

Arrays are kept as read-only views without a copy: whoever hands one over does not write to it afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

DTYPES = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
)
"""Every dtype that may cross a boundary; in little-endian order, as all our hosts are."""

_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in DTYPES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

MAX_NDIM = 8
MAX_FRAMES = 64

Buffer = bytes | memoryview


def size_bytes(frames: Sequence[Buffer]) -> int:
    """Bytes of all frames together."""
    return sum(frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames)


@dataclass
class Frames:
    """The raw frames beside a header: filled while a message is written, read while it is parsed.

    Attributes:
        buffers: One C-ordered buffer for each array.
    """

    buffers: list[Buffer] = field(default_factory=list)

    def put(self, array: NDArray[Any]) -> dict[str, Any]:
        """Appends an array's bytes without a copy and returns its description for the header."""
        if len(self.buffers) >= MAX_FRAMES:
            raise ValueError(f"message has more than {MAX_FRAMES} arrays")
        self.buffers.append(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
        name = _NAMES.get(array.dtype) or array.dtype.name
        return {"frame": len(self.buffers) - 1, "dtype": name, "shape": array.shape}

    def get(self, reference: dict[str, Any]) -> NDArray[Any]:
        """Returns the read-only array that a header describes, without a copy."""
        dtype, shape = _described(reference)
        index = reference.get("frame")
        if type(index) is not int or not 0 <= index < len(self.buffers):
            raise ValueError(f"frame {index!r} does not exist; the message has {len(self.buffers)}")
        size, expected = memoryview(self.buffers[index]).nbytes, math.prod(shape) * dtype.itemsize
        if size != expected:
            raise ValueError(f"frame {index} has {size} bytes; {dtype.name}{list(shape)} needs {expected}")
        array: NDArray[Any] = np.ndarray(shape, dtype, self.buffers[index])
        array.flags.writeable = False
        return array


def _described(reference: dict[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    name, shape = reference.get("dtype"), reference.get("shape")
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise ValueError(f"dtype {name!r} is refused; valid: {', '.join(DTYPES)}")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"shape {shape!r} is not a list of sizes")
    if len(shape) > MAX_NDIM:
        raise ValueError(f"shape has {len(shape)} dimensions; at most {MAX_NDIM} are accepted")
    return dtype, tuple(shape)


def _accepts(want: int | None, got: int) -> bool:
    return want is None or want == got


@dataclass(frozen=True)
class ArraySpec:
    """What an array field accepts.

    Attributes:
        dtype: One of ``DTYPES``.
        shape: Size of each dimension; None accepts any size.
    """

    dtype: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        _described({"dtype": self.dtype, "shape": [0] * len(self.shape)})

    def check(self, value: object) -> NDArray[Any]:
        """Returns a read-only, C-ordered view of a valid array; a ``ValueError`` names what is wrong."""
        if not isinstance(value, np.ndarray):
            raise ValueError(f"expected a numpy array {self}, got {type(value).__name__}")
        if value.dtype != _DTYPES[self.dtype]:
            raise ValueError(f"expected dtype {self.dtype}, got {value.dtype}")
        if not self._fits(value.shape):
            raise ValueError(f"expected shape {self._sizes()}, got {list(value.shape)}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(
                f"{np.count_nonzero(~np.isfinite(value))} of {value.size} numbers are not finite"
            )
        if value.flags.c_contiguous and not value.flags.writeable:
            return value
        view = (value if value.flags.c_contiguous else np.ascontiguousarray(value)).view()
        view.flags.writeable = False
        return view

    def _fits(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.shape) and all(map(_accepts, self.shape, shape))

    def _sizes(self) -> str:
        return f"[{', '.join('any' if n is None else str(n) for n in self.shape)}]"

    def __str__(self) -> str:
        return f"{self.dtype}{self._sizes()}"

    def _validate(self, value: object, info: core_schema.ValidationInfo) -> NDArray[Any]:
        if isinstance(value, dict) and isinstance(info.context, Frames):
            value = info.context.get(value)
        return self.check(value)

    def _serialize(self, value: NDArray[Any], info: core_schema.SerializationInfo) -> object:
        if isinstance(info.context, Frames):
            return info.context.put(value)
        return value if info.mode == "python" else {"dtype": value.dtype.name, "shape": list(value.shape)}

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Tells pydantic how to check and write the array."""
        return core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(self._serialize, info_arg=True),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describes the reference that stands in the header for the array."""
        return {
            "type": "object",
            "description": f"Array {self}, carried as a raw little-endian frame.",
            "properties": {
                "frame": {"type": "integer", "minimum": 0, "maximum": MAX_FRAMES - 1},
                "dtype": {"const": self.dtype},
                "shape": {"type": "array", "maxItems": MAX_NDIM, "items": {"type": "integer", "minimum": 0}},
            },
            "required": ["frame", "dtype", "shape"],
            "x-shape": list(self.shape),
        }


Joints = Annotated[NDArray[np.float32], ArraySpec("float32", (6,))]
"""One number per joint, in the robot profile's order."""

JointSequence = Annotated[NDArray[np.float32], ArraySpec("float32", (None, 6))]
"""Shape (steps, joints)."""

Image = Annotated[NDArray[np.uint8], ArraySpec("uint8", (None, None, 3))]
"""Shape (height, width, 3), RGB."""
