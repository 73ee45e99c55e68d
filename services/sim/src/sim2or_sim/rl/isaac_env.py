"""The learning environment on Isaac Lab: manager-based environments, wrapped for rsl_rl by isaaclab_rl."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from sim2or_sim.backends.isaaclab.tasks import GRASP, REACH, make_env
from sim2or_sim.rl.environment import Act
from sim2or_sim.rl.starts import Starts
from sim2or_sim.rl.tally import Tally
from sim2or_sim.rl.task import LearningTask
from sim2or_sim.rl.trials import Trials

_IDS = {"reach": REACH, "grasp": GRASP}


class IsaacEnv(RslRlVecEnvWrapper):
    """Isaac Lab allows one in a process. Episodes start where Isaac Lab's events put them.

    Attributes:
        tally: What the episodes since it was last asked came to.
    """

    def __init__(self, learning: LearningTask, *, num_envs: int, seed: int, instrument: str) -> None:
        """Builds the simulation on the device that ``SIM2OR_ISAAC_DEVICE`` says.

        Args:
            learning: What is learnt.
            num_envs: How many rooms.
            seed: Of the episodes.
            instrument: What lies on the trays.
        """
        env = make_env(_IDS[learning.name], num_envs=num_envs, seed=seed, instruments=(instrument,))
        super().__init__(env, clip_actions=1.0)
        # rooms begin at different points of an episode's time, so that a batch holds all of it
        spread = torch.randint(self.max_episode_length, (num_envs,), device=self.device)
        self.unwrapped.episode_length_buf[:] = spread
        self._learning, self._instrument = learning, instrument
        self._earned = torch.zeros(num_envs, device=self.device)
        self.tally = Tally()

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        """See ``VecEnv``."""
        observation, rewards, dones, extras = super().step(actions)
        broken = self.unwrapped.termination_manager.get_term("unstable")
        rewards = torch.where(broken, 0.0, rewards)
        self._earned = self._earned + rewards
        over = dones.bool()
        if over.any():
            verdict = self.unwrapped.termination_manager.get_term("success")
            self.tally.add(reward=self._earned[over], success=verdict[over])
            self._earned = torch.where(over, 0.0, self._earned)
        return observation, rewards, dones, extras

    def trials(self, starts: Starts, act: Act) -> Trials:
        """See ``Environment``; servos answer at once here, so the starts' delays are left out."""
        parts = [
            self._play(starts.rows(np.arange(first, min(first + self.num_envs, len(starts)))), act)
            for first in range(0, len(starts), self.num_envs)
        ]
        self.reset()
        return Trials(
            np.concatenate([part.success for part in parts]), np.concatenate([part.error_m for part in parts])
        )

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Nothing: a resumed run begins new episodes."""
        return {}, {}

    def restore(self, arrays: dict[str, Tensor], chance: dict[str, Any]) -> None:
        """Has nothing to continue from."""

    def _play(self, starts: Starts, act: Act) -> Trials:
        """At most one episode for each room; rooms too many repeat the last one."""
        rows = np.minimum(np.arange(self.num_envs), len(starts) - 1)
        self._begin(starts.rows(rows))
        held = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
        for _ in range(self._learning.episode_steps):
            self.unwrapped.episode_length_buf.zero_()  # time does not end it here
            super().step(act(self.get_observations()))
            state = self.unwrapped.state()
            held = torch.where(self._learning.achieved(state), held + 1, 0)
        success = (held >= self._learning.hold_steps).cpu().numpy()
        error_m = self._learning.error_m(state).cpu().numpy().astype(np.float64)
        return Trials(success[: len(starts)], error_m[: len(starts)])

    def _begin(self, starts: Starts) -> None:
        self.reset()
        env = self.unwrapped
        env.target_m[:] = self._tensor(starts.target_m)
        if self._learning.name == "grasp":
            every = torch.arange(self.num_envs, device=self.device)
            which = torch.full_like(every, env.tray.names.index(self._instrument))
            place = self._tensor(starts.instrument)
            env.tray.lay(every, which, place[:, :2], place[:, 2])
        env.start_from(self._tensor(starts.start_rad))
        env.moved()
        env.obs_buf = env.observation_manager.compute()

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)
