"""The configuration of the reinforce stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sim2or.messages.engine import Engine, NumEnvs
from sim2or.messages.message import Spec

Share = Annotated[float, Field(ge=0, le=1)]


class PPOSpec(Spec):
    """PPO as rsl_rl names its settings.

    Attributes:
        num_steps_per_env: Control periods of each environment in an iteration.
        num_learning_epochs: Passes over what an iteration collected.
        num_mini_batches: Parts of a pass.
        clip_param: Largest change of an action's probability ratio.
        gamma: Discount of the next control period.
        lam: Of the generalised advantage estimate.
        value_loss_coef: Weight of the critic's loss.
        entropy_coef: Weight of the entropy bonus.
        learning_rate: At the beginning.
        schedule: ``adaptive`` follows the divergence from the policy before.
        desired_kl: What ``adaptive`` aims at.
        max_grad_norm: Largest norm of a gradient.
        hidden_dims: Widths of the actor's and of the critic's layers.
        activation: Between the layers.
        init_std: Spread of the actions at the beginning.
    """

    num_steps_per_env: PositiveInt = 20
    num_learning_epochs: PositiveInt = 5
    num_mini_batches: PositiveInt = 4
    clip_param: PositiveFloat = 0.2
    gamma: Share = 0.97
    lam: Share = 0.95
    value_loss_coef: NonNegativeFloat = 1.0
    entropy_coef: NonNegativeFloat = 0.002
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["adaptive", "fixed"] = "adaptive"
    desired_kl: PositiveFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    hidden_dims: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 64)
    activation: Literal["elu", "relu", "tanh"] = "elu"
    init_std: PositiveFloat = 0.6


class ReinforceSpec(Spec):
    """What is learnt by trial, and how.

    Attributes:
        robot: Robot profile.
        task: Task profile: the operating room.
        goal: ``reach``: the tool goes to a target and stays; ``grasp``: the instrument is gripped and lifted.
        instrument: What lies on the tray.
        engine: The simulator.
        num_envs: Rooms that are stepped together.
        iterations: Rounds of collecting and learning; 0: the input checkpoint is only judged and exported.
        seed: Of the network, the episodes and everything random.
        threads: Threads that step the rooms; 0: all cores.
        checkpoint_every: A checkpoint to resume from, every so many iterations.
        evaluate_list: Episodes by seed on which the finished policy is judged.
        evaluate_episodes: How many of them; 0: none.
        ppo: The algorithm's settings.
    """

    robot: str = "so101"
    task: str = "handover"
    goal: Literal["reach", "grasp"] = "reach"
    instrument: str = "scalpel"
    engine: Engine = "mujoco"
    num_envs: NumEnvs = 256
    iterations: NonNegativeInt = 100
    seed: NonNegativeInt = 0
    threads: NonNegativeInt = 0
    checkpoint_every: PositiveInt = 10
    evaluate_list: Literal["validation", "heldout"] = "validation"
    evaluate_episodes: Annotated[int, Field(ge=0, le=10_000)] = 400
    ppo: PPOSpec = PPOSpec()
