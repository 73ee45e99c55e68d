"""PPO: rsl_rl's runner, one iteration at a time, and everything it needs to continue."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sim2or.errors import JobError
from sim2or.messages.reinforce import PPOSpec
from torch import Tensor

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # rsl_rl imports GitPython, which wants git even unused
from rsl_rl.env import VecEnv
from rsl_rl.runners import OnPolicyRunner

Tensors = dict[str, Tensor]


class Learner:
    """The networks, their optimiser and the environment.

    Attributes:
        iteration: Iterations done.
    """

    def __init__(self, env: VecEnv, ppo: PPOSpec, *, seed: int, device: str = "cpu") -> None:
        """Builds the networks from a seed.

        Args:
            env: Where it learns.
            ppo: The settings.
            seed: Of the networks and of exploration.
            device: Where the networks are.
        """
        torch.manual_seed(seed)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the networks
            self._runner = OnPolicyRunner(env, configuration(ppo), log_dir=None, device=device)
        self.iteration = 0
        self._env, self._steps = env, ppo.num_steps_per_env * env.num_envs

    @property
    def actor(self) -> Any:
        """The policy's network: its ``as_jit`` and ``as_onnx`` give what is exported."""
        return self._runner.alg.get_policy()

    def learn(self) -> dict[str, float]:
        """One iteration.

        Returns:
            What it took and how the exploration is: steps_per_s, std, learning_rate.

        Raises:
            JobError: The networks hold numbers that are not finite.
        """
        begun_s = time.perf_counter()
        self._runner.current_learning_iteration = self.iteration
        self._runner.learn(1)
        self.iteration += 1
        self._runner.current_learning_iteration = self.iteration
        broken = [name for name, value in self.actor.state_dict().items() if not torch.isfinite(value).all()]
        if broken:
            raise JobError(
                f"iteration {self.iteration}: {', '.join(broken)} are not finite; lower ppo.learning_rate or "
                "ppo.desired_kl"
            )
        return {
            "steps_per_s": round(self._steps / (time.perf_counter() - begun_s), 1),
            "std": float(self._runner.alg.get_policy().output_std.detach().mean()),
            "learning_rate": float(self._runner.alg.learning_rate),
        }

    def act(self, observation: Any) -> Tensor:
        """The actions without exploration, shape (n, n_actions)."""
        self._runner.alg.eval_mode()
        actions: Tensor = self.actor(observation)
        return actions

    def export(self, directory: Path) -> None:
        """Writes the bare network, from observations to actions, as rsl_rl and Isaac Lab users know it."""
        self._runner.export_policy_to_jit(str(directory), "policy.pt")

    def tensors(self) -> dict[str, Tensors]:
        """Networks with their normalisers, optimiser and exploration's generator, by group."""
        saved = self._runner.alg.save()
        optimiser: Tensors = {}
        for number, values in saved["optimizer_state_dict"]["state"].items():
            optimiser |= {f"{number}.{name}": value for name, value in values.items()}
        optimiser["learning_rate"] = torch.tensor(self._runner.alg.learning_rate, dtype=torch.float64)
        return {
            "actor": dict(saved["actor_state_dict"]),
            "critic": dict(saved["critic_state_dict"]),
            "optimiser": optimiser,
            "random": {"torch": torch.get_rng_state()},
        }

    def restore(self, tensors: Mapping[str, Tensors], iteration: int) -> None:
        """Continues from what ``tensors`` gave."""
        state: dict[int, Tensors] = {}
        for key, value in tensors["optimiser"].items():
            number, _, name = key.partition(".")
            if name:
                state.setdefault(int(number), {})[name] = value
        optimiser = self._runner.alg.optimizer.state_dict()
        for group in optimiser["param_groups"]:
            group["lr"] = float(tensors["optimiser"]["learning_rate"])
        saved = {
            "actor_state_dict": tensors["actor"],
            "critic_state_dict": tensors["critic"],
            "optimizer_state_dict": {"state": state, "param_groups": optimiser["param_groups"]},
        }
        self._runner.alg.load(saved, None, strict=True)
        if "random" in tensors:
            torch.set_rng_state(tensors["random"]["torch"])
        self.iteration = iteration


def configuration(ppo: PPOSpec) -> dict[str, Any]:
    """What rsl_rl's runner is told."""
    network = {
        "class_name": "MLPModel",
        "hidden_dims": list(ppo.hidden_dims),
        "activation": ppo.activation,
        "obs_normalization": True,
    }
    spread = {"class_name": "GaussianDistribution", "init_std": ppo.init_std, "std_type": "log"}
    algorithm = ppo.model_dump(
        exclude={"num_steps_per_env", "hidden_dims", "activation", "init_std"}, mode="python"
    )
    return {
        "num_steps_per_env": ppo.num_steps_per_env,
        "save_interval": 1_000_000_000,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": network | {"distribution_cfg": spread},
        "critic": dict(network),
        "algorithm": {"class_name": "PPO", "rnd_cfg": None, "symmetry_cfg": None} | algorithm,
    }
