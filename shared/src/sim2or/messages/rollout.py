"""What the rollout stage is asked for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim2or.messages.engine import Engine, NumEnvs
from sim2or.messages.message import Spec


class RolloutSpec(Spec):
    """Trials of one actor on a list of scenarios.

    Attributes:
        robot: Robot profile.
        task: Task profile.
        list: The task's scenario list.
        trials: How many scenarios of the list, in the order of their seeds.
        offset: How many scenarios of the list to leave out at the beginning.
        actor: Who acts: the policy of the input ``policy``, the scripted expert, chance, or the recorded
            commands of the input ``commands``, open loop.
        latency_ticks: A policy's answer arrives so many control ticks after its observation, as on a robot.
        deadline_ms: A policy that takes longer to answer one observation fails the job [ms].
        films_successes: Successful trials of which pictures are kept for people.
        films_failures: Failed trials of which pictures are kept for people.
        film_height_px: Height of those pictures [px]; their width is 4/3 of it.
        film_every_ticks: One picture every so many ticks.
        engine: The simulator; each has its own workers.
        num_envs: How many trials a worker has under way at a time, in a batch of worlds.
        room: An own operating room instead of the built-in one: a bundled name, or ``PATH@sha256:…`` as
            ``sim2or room check`` says it (docs/rooms.md).
    """

    robot: str = "so101"
    task: str = "handover"
    list: Literal["train", "validation", "deploy", "heldout"] = "heldout"
    trials: Annotated[int, Field(ge=1)]
    offset: Annotated[int, Field(ge=0)] = 0
    actor: Literal["policy", "expert", "random", "replay"] = "policy"
    latency_ticks: Annotated[int, Field(ge=0, le=30)] = 1
    deadline_ms: Annotated[float, Field(gt=0, le=600_000)] = 20_000.0
    films_successes: Annotated[int, Field(ge=0)] = 2
    films_failures: Annotated[int, Field(ge=0)] = 6
    film_height_px: Annotated[int, Field(ge=48, le=1080)] = 240
    film_every_ticks: Annotated[int, Field(ge=1, le=30)] = 2
    engine: Engine = "mujoco"
    num_envs: NumEnvs = 1
    room: str = ""
