"""A policy that is told its goal: channels are added, and the newest command, until the episode ends."""

from __future__ import annotations

import numpy as np
from sim2or.contracts.scenario import Scenario
from sim2or.messages.observation import Channel, Observation
from sim2or.rollout.actor import Chunk, PromptActor
from sim2or.rollout.goal import COMMAND, GoalActor

SCENARIO = Scenario(task="handover", seed=1, instrument="scalpel", request="Hand me the scalpel")


class Listener(PromptActor):
    """Keeps what it is asked and answers joints at 0.1 times the tick."""

    horizon, sees = 1, False

    def __init__(self) -> None:
        self.asked: list[Observation] = []

    def reset(self, scenario: Scenario) -> None:
        """Has nothing to forget."""

    def act(self, observation: Observation) -> Chunk:
        """Answers one observation."""
        self.asked.append(observation)
        action = np.full((1, 6), 0.1 * (observation.tick + 1), np.float32)
        return Chunk(action, observation.captured_ns, observation.episode)


def observed(tick: int) -> Observation:
    return Observation(
        robot="so101",
        task="handover",
        request="Hand me the scalpel",
        episode="e",
        tick=tick,
        state_rad=np.zeros(6, np.float32),
        images={},
        captured_ns=tick,
    )


def test_the_goal_and_the_newest_command_are_told() -> None:
    """First the measured joints stand for the command, then what was answered; a new episode forgets it."""
    listener = Listener()
    goal = {"target_m": Channel(unit="m", values=np.array([0.2, 0.0, 0.1], np.float32))}
    actor = GoalActor(listener, request="Reach the target", goal=goal)
    for tick in (0, 1):
        actor.ask(observed(tick))
        actor.answer()
    actor.reset(SCENARIO)
    actor.ask(observed(0))
    actor.answer()
    commands = [asked.channels[COMMAND].values[0] for asked in listener.asked]
    assert np.allclose(commands, [0.0, 0.1, 0.0])
    assert {asked.request for asked in listener.asked} == {"Reach the target"}
    assert listener.asked[0].channels["target_m"] == goal["target_m"]
    assert {channel.unit for asked in listener.asked for channel in asked.channels.values()} == {"m", "rad"}
