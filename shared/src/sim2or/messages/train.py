"""The configuration of the train stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sim2or.messages.message import Spec


class TrainSpec(Spec):
    """How a policy is trained. The defaults are the recipe for two CPU cores.

    Attributes:
        robot: Robot profile the dataset must fit.
        task: Task profile the dataset must fit.
        policy: LeRobot's policy type, for example ``compact_act`` or ``act``; only LeRobot knows them all.
        preset: ``pixels`` sees what the robot sees; ``state`` is given simulator truth, for quick checks.
        policy_overrides: Fields of the policy's configuration, by name.
        steps: Optimisation steps; they fix the schedule.
        batch_size: Frames in a step.
        lr: Highest learning rate.
        weight_decay: Of AdamW.
        warmup_steps: Linear warm-up, at most a quarter of all steps.
        final_lr_share: Share of the highest learning rate at the end of the cosine.
        clip_norm: Largest norm of the gradient.
        bf16: Compute in bfloat16 where torch's autocast does.
        ema: Decay of the averaged weights, ramped up; the average is what is saved. 0: no averaging.
        seed: Of the initial weights, the order of frames and everything random in training.
        device: ``auto`` takes a GPU where there is one; a result says where it was made.
        threads: CPU threads, so that a run repeats bit by bit; 0: all cores, or one while others are busy.
        log_every_steps: A line in the log and a progress report.
        eval_every_steps: A held-out loss on the validation split.
        eval_frames: Frames of the held-out loss at most, spread evenly.
        checkpoint_every_steps: A checkpoint to resume from.
        wall_limit_s: Stop early after so much training time [s]; the summary says so. None: never.
    """

    robot: str = "so101"
    task: str = "handover"
    policy: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")] = "compact_act"
    preset: Literal["pixels", "state"] = "pixels"
    policy_overrides: dict[str, Any] = Field(default_factory=dict)
    steps: PositiveInt = 3200
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1.5e-3
    weight_decay: NonNegativeFloat = 1e-4
    warmup_steps: NonNegativeInt = 200
    final_lr_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    clip_norm: PositiveFloat = 10.0
    bf16: bool = True
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.995
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: NonNegativeInt = 0
    log_every_steps: PositiveInt = 20
    eval_every_steps: PositiveInt = 500
    eval_frames: PositiveInt = 512
    checkpoint_every_steps: PositiveInt = 500
    wall_limit_s: PositiveFloat | None = None
