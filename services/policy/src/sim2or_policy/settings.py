"""Settings of the policy server, read from the environment (``SIM2OR_…``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError
from sim2or.errors import ConfigError
from sim2or.settings import Settings


class PolicySettings(Settings):
    """What the policy server needs beside the common settings.

    Attributes:
        policy_backend: What runs exported models; checkpoints always run in torch.
        policy_models: How many models stay loaded; the least recently asked one leaves first.
        policy_delay_ms: Every answer is held back this long, for fault drills [ms].
    """

    policy_backend: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
    policy_models: Annotated[int, Field(ge=1, le=64)] = 4
    policy_delay_ms: Annotated[float, Field(ge=0, le=60_000)] = 0.0


def load_policy_settings(settings: Settings) -> PolicySettings:
    """Reads the server's own settings beside the common ones.

    Raises:
        ConfigError: A variable has a wrong value; the message names it.
    """
    try:
        return PolicySettings(**settings.model_dump())
    except ValidationError as error:
        lines = [f"SIM2OR_{str(e['loc'][0]).upper()}={e['input']!r}: {e['msg']}" for e in error.errors()]
        raise ConfigError("; ".join(lines)) from error
