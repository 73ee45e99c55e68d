"""Which simulator a stage uses, and how many worlds of it together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Engine = Literal["mujoco", "isaaclab"]
"""``mujoco``: the quick default; ``isaaclab``: Isaac Lab, with workers of its own (docs/isaaclab.md)."""

NumEnvs = Annotated[int, Field(ge=1, le=16_384)]
"""Worlds that step together in one worker, under the name that Isaac Lab has for them."""
