"""What the stage needs of an engine beside rsl_rl's ``VecEnv``, and which engines there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from sim2or.messages.reinforce import ReinforceSpec
from tensordict import TensorDict
from torch import Tensor

from sim2or_sim.rl.starts import Starts
from sim2or_sim.rl.tally import Tally
from sim2or_sim.rl.task import LearningTask
from sim2or_sim.rl.trials import Trials

Act = Callable[[TensorDict], Tensor]


class Environment(Protocol):
    """A batch of rooms to learn in.

    Attributes:
        num_envs: How many.
        device: Where its tensors are.
        tally: What finished episodes came to.
    """

    num_envs: int
    device: Any
    tally: Tally

    def trials(self, starts: Starts, act: Act) -> Trials:
        """Plays given episodes once each, and leaves the rooms as they were or at new beginnings."""

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What moves and the generator's state, to continue from; empty where the engine cannot."""

    def restore(self, arrays: dict[str, Tensor], chance: dict[str, Any]) -> None:
        """Continues from a snapshot."""

    def close(self) -> None:
        """Frees the engine."""


def make_environment(
    spec: ReinforceSpec, learning: LearningTask, robot: RobotProfile, task: TaskProfile, *, threads: int
) -> Any:
    """Opens the engine that the spec asks for; it is a ``VecEnv`` and an ``Environment``.

    Args:
        spec: What is learnt.
        learning: The task of that.
        robot: The arm.
        task: The operating room.
        threads: How many step the rooms, where the engine leaves that to us.

    Raises:
        ConfigError: The engine is not there.
    """
    if spec.engine == "isaaclab":
        from sim2or_sim.rl.isaac_env import IsaacEnv

        return IsaacEnv(learning, num_envs=spec.num_envs, seed=spec.seed, instrument=spec.instrument)
    from sim2or_sim.rl.mujoco_env import MujocoEnv

    return MujocoEnv(
        learning,
        robot,
        task,
        num_envs=spec.num_envs,
        seed=spec.seed,
        threads=threads,
        instrument=spec.instrument,
    )
