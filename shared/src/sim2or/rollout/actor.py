"""Actors: what turns an observation into a chunk of actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.scenario import Scenario
from sim2or.messages.observation import Observation


@dataclass(frozen=True)
class Chunk:
    """Actions for the time from an observation on.

    Attributes:
        actions_rad: Shape (horizon, n_joints), float32, [rad]; row k is for ``captured_ns`` + k periods.
        captured_ns: The observation's time [ns].
        session: The episode that the observation belonged to.
        inference_s: How long the actor thought [s].
    """

    actions_rad: NDArray[np.float32]
    captured_ns: int
    session: str
    inference_s: float = 0.0


class Actor(Protocol):
    """An expert, a policy, a replay or chance, for one episode at a time.

    Asking and answering are apart so that the questions of a whole batch are under way together.

    Attributes:
        horizon: Actions per chunk.
        sees: Whether it needs camera images.
    """

    horizon: int
    sees: bool

    def reset(self, scenario: Scenario) -> None:
        """Starts an episode."""

    def ask(self, observation: Observation) -> None:
        """Puts an observation before it, without waiting."""

    def answer(self) -> Chunk:
        """Its answer to the observation asked last, waited for."""


class PromptActor(ABC):
    """An actor that answers where it is asked, in no time to speak of."""

    def ask(self, observation: Observation) -> None:
        """Keeps the observation until the answer is wanted."""
        self._asked = observation

    def answer(self) -> Chunk:
        """Answers the observation asked last."""
        return self.act(self._asked)

    @abstractmethod
    def act(self, observation: Observation) -> Chunk:
        """Answers one observation."""


class RandomActor(PromptActor):
    """The baseline by chance: every action uniform around home, a fresh one for every tick.

    Args:
        robot: Whose home and range.
        horizon: Actions per chunk.
        spread_rad: Greatest distance from home [rad], cut by the range.
    """

    sees = False

    def __init__(self, robot: RobotProfile, *, horizon: int, spread_rad: float = 0.5) -> None:
        home = np.array(robot.home_rad)
        self.horizon = horizon
        self._low = np.maximum(home - spread_rad, robot.lower_rad)
        self._high = np.minimum(home + spread_rad, robot.upper_rad)
        self._random = np.random.default_rng(0)

    def reset(self, scenario: Scenario) -> None:
        """Draws from the scenario's seed, so that a trial can be repeated."""
        self._random = np.random.default_rng([scenario.seed, 11])

    def act(self, observation: Observation) -> Chunk:
        """Draws a chunk."""
        actions = self._random.uniform(self._low, self._high, size=(self.horizon, len(self._low)))
        return Chunk(actions.astype(np.float32), observation.captured_ns, observation.episode)
