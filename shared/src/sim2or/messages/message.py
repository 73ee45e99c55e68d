"""The base of every typed message."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """A frozen, strict message with finite numbers; unknown fields are refused.

    Attributes:
        type_name: The message's name on the wire, for example ``"job.submitted"``.
        schema_version: ``major.minor``; a minor version only adds optional fields.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )

    type_name: ClassVar[str] = ""
    schema_version: ClassVar[str] = "1.0"


class Spec(Message):
    """The configuration of a stage. Read from JSON or YAML, so lists become tuples and ints become floats."""

    model_config = ConfigDict(frozen=True, strict=False, extra="forbid", allow_inf_nan=False)
