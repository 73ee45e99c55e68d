"""The learning environment on MuJoCo, as rsl_rl steps it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rsl_rl.env import VecEnv
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from tensordict import TensorDict
from torch import Tensor

from sim2or_sim.rl.action import next_command
from sim2or_sim.rl.environment import Act
from sim2or_sim.rl.kinematics import ToolKinematics
from sim2or_sim.rl.near import near_starts
from sim2or_sim.rl.rooms import Rooms
from sim2or_sim.rl.starts import Starts, draw_starts
from sim2or_sim.rl.state import State
from sim2or_sim.rl.tally import Tally
from sim2or_sim.rl.task import LearningTask
from sim2or_sim.rl.trials import Trials

PHYSICS_HZ = {"reach": 240.0, "grasp": 300.0}
"""Coarser than the hand-over's 600 Hz: reach touches nothing, grasp steps as its Isaac Lab environment."""


class MujocoEnv(VecEnv):
    """Episodes that end by time alone and begin anew at once; one seed gives one run.

    Attributes:
        tally: What the episodes since it was last asked came to.
    """

    def __init__(
        self,
        learning: LearningTask,
        robot: RobotProfile,
        task: TaskProfile,
        *,
        num_envs: int,
        seed: int,
        threads: int,
        instrument: str,
    ) -> None:
        """Builds the rooms and begins an episode in each, at different points of their time.

        Args:
            learning: What is learnt.
            robot: The arm.
            task: The operating room.
            num_envs: How many rooms.
            seed: Of the episodes.
            threads: How many step the rooms.
            instrument: What lies on the tray.
        """
        self.num_envs, self.num_actions, self.device = num_envs, learning.actions, "cpu"
        self.max_episode_length = learning.episode_steps
        self.cfg: dict[str, Any] = {}
        self._learning, self._robot, self._task = learning, robot, task
        self._threads, self._instrument = threads, instrument
        self._rng = np.random.default_rng([seed, 5])
        self._rooms = Rooms(
            robot,
            task,
            count=num_envs,
            instrument=instrument,
            physics_hz=PHYSICS_HZ[learning.name],
            threads=threads,
            handled=learning.name != "reach",
        )
        self._kinematics = ToolKinematics(robot)
        self._joints = torch.eye(len(robot.joints))[:, : learning.actions]
        self._lower = torch.tensor(robot.lower_rad, dtype=torch.float32)
        self._upper = torch.tensor(robot.upper_rad, dtype=torch.float32)
        self._command = torch.zeros(num_envs, len(robot.joints))
        self._target = torch.zeros(num_envs, 3)
        self._action = torch.zeros(num_envs, learning.actions)
        self._previous = torch.zeros(num_envs, learning.actions)
        self._held = torch.zeros(num_envs, dtype=torch.long)
        self._earned = torch.zeros(num_envs)
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long)
        self.tally = Tally()
        handled = learning.name == "grasp"
        self._near = near_starts(robot, task, instrument, self._rng, _NEAR_STARTS) if handled else None
        self.begin(np.arange(num_envs), self._draw(num_envs))
        spread = self._rng.integers(0, learning.episode_steps, num_envs)
        self.episode_length_buf = torch.from_numpy(spread)

    def begin(self, ids: NDArray[np.intp], starts: Starts) -> None:
        """Begins episodes in some rooms."""
        self._rooms.put(ids, starts)
        self._command[ids] = _floats(starts.start_rad)
        self._target[ids] = _floats(starts.target_m)
        for buffer in (self._action, self._previous, self._held, self._earned, self.episode_length_buf):
            buffer[ids] = 0

    def _draw(self, count: int) -> Starts:
        """New episodes; where something is handled, half of them begin near it."""
        drawn = draw_starts(self._learning.name, self._robot, self._task, self._rng, count)
        if self._near is None:
            return drawn
        near = self._near.rows(self._rng.integers(0, len(self._near), count))
        return drawn.mixed(near, self._rng.random(count) < _NEAR_SHARE)

    def state(self) -> State:
        """All rooms now."""
        position = _floats(self._rooms.position_rad)
        tool_m, axes = self._kinematics(position)
        instruments = self._rooms.instruments()
        return State(
            position_rad=position,
            velocity_radps=_floats(self._rooms.velocity_radps),
            command_rad=self._command,
            tool_m=tool_m,
            tool_axes=axes,
            target_m=self._target,
            instrument_m=_floats(instruments.at_m),
            tip_axis=_floats(instruments.tip_axis),
            pads=torch.from_numpy(instruments.pads),
            action=self._action,
            previous_action=self._previous,
        )

    def advance(self, actions: Tensor) -> State:
        """One control period, whatever ends in it."""
        self._previous, self._action = self._action, actions.clamp(-1.0, 1.0).clone()
        position = _floats(self._rooms.position_rad)
        self._command = next_command(
            self._command, position, self._action, self._joints, self._lower, self._upper
        )
        self._rooms.step(self._command.numpy().astype(np.float64))
        self.episode_length_buf = self.episode_length_buf + 1
        state = self.state()
        self._held = torch.where(self._learning.achieved(state), self._held + 1, 0)
        return state

    @property
    def succeeded(self) -> Tensor:
        """Shape (n,), bool: whether an episode that ended now would count."""
        return self._held >= self._learning.hold_steps

    def get_observations(self) -> TensorDict:
        """What the policy is given now."""
        return TensorDict({"policy": self._learning.observation(self.state())}, batch_size=[self.num_envs])

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        """See ``VecEnv``."""
        state = self.advance(actions)
        broken = torch.from_numpy(self._rooms.broken())
        rewards = self._learning.total(self._learning.rewards(state), self._task.period_s)
        rewards = torch.where(broken, 0.0, rewards)
        self._earned = self._earned + rewards
        over = self.episode_length_buf >= self._learning.episode_steps
        done = over | broken
        ids = done.nonzero().squeeze(-1).numpy()
        if len(ids):
            sound = ids[~broken[ids].numpy()]
            error_m = self._learning.error_m(state)[sound]
            self.tally.add(reward=self._earned[sound], success=self.succeeded[sound], error_m=error_m)
            self.begin(ids, self._draw(len(ids)))
        return self.get_observations(), rewards, done.long(), {"time_outs": over & ~broken}

    def trials(self, starts: Starts, act: Act) -> Trials:
        """See ``Environment``: in rooms of their own, in models of the same variants."""
        rooms = MujocoEnv(
            self._learning,
            self._robot,
            self._task,
            num_envs=len(starts),
            seed=0,
            threads=self._threads,
            instrument=self._instrument,
        )
        try:
            rooms.begin(np.arange(len(starts)), starts)
            for _ in range(self._learning.episode_steps):
                state = rooms.advance(act(rooms.get_observations()))
            broken = rooms._rooms.broken()
            error_m = self._learning.error_m(state).numpy().astype(np.float64)
            return Trials(rooms.succeeded.numpy() & ~broken, error_m)
        finally:
            rooms.close()

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See ``Environment``."""
        arrays = {name: torch.from_numpy(value) for name, value in self._rooms.snapshot().items()}
        own = {name: getattr(self, name) for name in _KEPT}
        return {**arrays, **own}, dict(self._rng.bit_generator.state)

    def restore(self, arrays: dict[str, Tensor], chance: dict[str, Any]) -> None:
        """See ``Environment``."""
        self._rooms.restore({name: value.numpy() for name, value in arrays.items() if name not in _KEPT})
        for name in _KEPT:
            setattr(self, name, arrays[name].clone())
        self._rng.bit_generator.state = chance

    def close(self) -> None:
        """Ends the threads."""
        self._rooms.close()


_NEAR_STARTS, _NEAR_SHARE = 128, 0.5
_KEPT = ("_command", "_target", "_action", "_previous", "_held", "_earned", "episode_length_buf")


def _floats(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
