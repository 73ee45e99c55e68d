"""A policy that is told where to go, beside what the robot senses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sim2or.contracts.scenario import Scenario
from sim2or.messages.observation import Channel, Observation
from sim2or.rollout.actor import Actor, Chunk

COMMAND = "command_rad"
"""The channel of the newest joint targets; measured positions at an episode's start."""


class GoalActor:
    """Adds a goal and the newest command to every observation.

    Args:
        actor: The policy that is asked.
        request: What it was trained to be asked for, as its card says.
        goal: Channels by name, for example ``{"target_m": Channel(unit="m", values=…)}``.
    """

    sees = False

    def __init__(self, actor: Actor, *, request: str, goal: Mapping[str, Channel]) -> None:
        self.horizon = actor.horizon
        self._actor, self._request, self._goal = actor, request, dict(goal)
        self._command: NDArray[np.float32] | None = None

    def reset(self, scenario: Scenario) -> None:
        """Starts an episode: nothing was commanded yet."""
        self._command = None
        self._actor.reset(scenario)

    def ask(self, observation: Observation) -> None:
        """Puts the observation with its channels before the policy, without waiting."""
        command = observation.state_rad if self._command is None else self._command
        told = {COMMAND: Channel(unit="rad", values=command), **self._goal}
        self._actor.ask(observation.model_copy(update={"request": self._request, "channels": told}))

    def answer(self) -> Chunk:
        """The policy's answer, waited for."""
        chunk = self._actor.answer()
        self._command = chunk.actions_rad[0].copy()
        return chunk
