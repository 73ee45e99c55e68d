"""A question to the policy server, and its answer when there is no action."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sim2or.messages.message import Message
from sim2or.messages.observation import Name, Observation


class PolicyRequest(Message):
    """Asks one model what to do about one observation.

    Attributes:
        artifact: Digest of the exported model that must answer.
        observation: What the robot senses.
        deadline_ms: The answer is useless later than this after sending [ms].
    """

    type_name: ClassVar[str] = "policy_request"
    schema_version: ClassVar[str] = "1.1"

    artifact: Name
    observation: Observation
    deadline_ms: Annotated[float, Field(gt=0, le=600_000)]


class PolicyError(Message):
    """Says why a request got no actions.

    Attributes:
        code: ``busy``: too many requests wait; ``expired``: the deadline passed or a newer observation of
            the same session came; ``refused``: the request doesn't fit the model; ``failed``: inference
            failed.
        detail: What was wrong and what would be accepted.
    """

    type_name: ClassVar[str] = "policy_error"

    code: Literal["busy", "expired", "refused", "failed"]
    detail: Annotated[str, Field(max_length=4000)]
