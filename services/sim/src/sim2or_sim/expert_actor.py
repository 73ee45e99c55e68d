"""The scripted expert as an actor; it looks at the simulator's truth, so it lives beside the simulator."""

from __future__ import annotations

from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.scenario import Scenario
from sim2or.contracts.task import TaskProfile
from sim2or.messages.observation import Observation
from sim2or.rollout.actor import Chunk, PromptActor
from sim2or.worlds.world import World

from sim2or_sim.expert import Expert


class ExpertActor(PromptActor):
    """Answers every observation with the expert's one action for now.

    Args:
        world: The world that the loop steps.
        robot: The arm.
        task: The task.
        index: Which world of the batch.
    """

    horizon, sees = 1, False

    def __init__(self, world: World, robot: RobotProfile, task: TaskProfile, index: int = 0) -> None:
        self._world, self._index = world, index
        self._expert = Expert(robot, task)

    def reset(self, scenario: Scenario) -> None:
        """Starts an episode without action noise."""
        self._expert.reset(self._world, self._index, scenario)

    def act(self, observation: Observation) -> Chunk:
        """One action for now."""
        _, executed = self._expert.act(self._world, self._index)
        return Chunk(executed[None], observation.captured_ns, observation.episode)
