"""The configuration of the collect stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from sim2or.messages.engine import Engine, NumEnvs
from sim2or.messages.message import Spec


class CollectSpec(Spec):
    """Which demonstrations are recorded, and how.

    Attributes:
        robot: Robot profile.
        task: Task profile.
        demos: Attempts; each is recorded, failures as failures.
        seed_list: The task's scenario list they come from.
        offset: How many scenarios of the list to leave out at the beginning.
        noise_sigma_rad: Size of each step of the noise on executed targets [rad]; labels stay clean.
        noise_rho: How much of the noise is carried over from one control step to the next.
        visuals: Whether light, hues and camera offsets are drawn anew for every frame or once per episode.
        extra_steps: Control steps recorded after success; null: the task's ``linger_steps``.
        engine: The simulator; each has its own workers.
        num_envs: How many demonstrations a worker has under way at a time, in a batch of worlds.
        room: An own operating room instead of the built-in one: a bundled name, or ``PATH@sha256:…`` as
            ``sim2or room check`` says it (docs/rooms.md).
    """

    robot: str = "so101"
    task: str = "handover"
    demos: PositiveInt
    seed_list: str = "train"
    offset: NonNegativeInt = 0
    noise_sigma_rad: NonNegativeFloat = 0.002
    noise_rho: float = Field(default=0.97, ge=0, lt=1)
    visuals: Literal["per_frame", "per_episode"] = "per_frame"
    extra_steps: NonNegativeInt | None = None
    engine: Engine = "mujoco"
    num_envs: NumEnvs = 1
    room: str = ""
