"""One training run: the policy, its moving average, the optimiser and the schedule."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from sim2or.errors import ConfigError, JobError
from sim2or.messages.train import TrainSpec
from torch import Tensor, nn

from sim2or_trainer.group import Group

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Training:
    """What changes while a policy is trained.

    Attributes:
        device: Where it is computed.
        policy: Trained.
        average: The policy with exponentially averaged weights; what is kept.
    """

    def __init__(
        self, policy: PreTrainedPolicy, spec: TrainSpec, *, group: Group, device: torch.device
    ) -> None:
        """Begins with a fresh policy.

        Args:
            policy: The same in every process of the group.
            spec: How it is trained.
            group: Whose gradients are averaged.
            device: Where to compute.
        """
        self._spec, self._group = spec, group
        self.device = device
        self.policy = policy.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.policy).eval()
        self._parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self._averaged = [
            a
            for a, p in zip(self.average.parameters(), self.policy.parameters(), strict=True)
            if p.requires_grad
        ]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=spec.lr, weight_decay=spec.weight_decay, fused=True
        )

    def step(self, number: int, batch: dict[str, Tensor], *, share: float = 1.0) -> dict[str, float]:
        """Takes optimisation step 0, 1, … and returns the parts of the loss.

        Args:
            number: Which.
            batch: This process's rows.
            share: Their share of the step's rows.

        Raises:
            JobError: The loss is not finite, in this process or another.
            TransientError: Another process was lost.
        """
        self._group.seed(self._spec.seed, number)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(number, self._spec)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._spec.bf16):
            loss, parts = self.policy(self._there(batch))
        numbers = {k: float(v) for k, v in (parts or {}).items() if isinstance(v, int | float)}
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        figures = self._group.average(gradients, {"loss": loss.item(), **numbers}, weight=share)
        if not math.isfinite(value := figures["loss"]):
            raise JobError(
                f"the loss is {value} at step {number}; lower lr ({self._spec.lr:g}) or check the data"
            )
        torch.nn.utils.clip_grad_norm_(self._parameters, self._spec.clip_norm, foreach=True)
        self._optimizer.step()
        self._update_average(number)
        return figures

    def follow(self) -> None:
        """Takes the fresh weights of rank 0, which other machines might draw otherwise.

        Raises:
            TransientError: A process was lost.
        """
        if self._group.alone:
            return
        weights = self._group.tell_tensors(self.policy.state_dict())
        self.policy.load_state_dict(weights, strict=True)
        self.average.load_state_dict(weights, strict=True)

    @torch.no_grad()
    def held_out_loss(self, batches: Iterable[tuple[int, dict[str, Tensor]]]) -> float:
        """The averaged policy's loss on (rows, batch) pairs, weighted by rows, in full precision."""
        self._copy_buffers()
        total, count = 0.0, 0
        for rows, batch in batches:
            total += rows * float(self.average(self._there(batch))[0])
            count += rows
        return total / count

    def finished(self) -> PreTrainedPolicy:
        """The policy to keep, in main memory."""
        self._copy_buffers()
        return self.average.cpu()  # type: ignore[no-any-return]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything needed to go on, by file."""
        names = [name for name, p in self.policy.named_parameters() if p.requires_grad]
        state = self._optimizer.state
        moments = {
            f"{moment}.{name}": state[p][moment]
            for name, p in zip(names, self._parameters, strict=True)
            for moment in MOMENTS
        }
        random = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "model": dict(self.policy.state_dict()),
            "average": dict(self.average.state_dict()),
            "optimizer": moments,
            "random": random,
        }

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Goes on from what ``tensors`` gave.

        Raises:
            KeyError: A tensor is missing.
            RuntimeError: One is missing, unknown or of another shape.
        """
        self.policy.load_state_dict(tensors["model"], strict=True)
        self.average.load_state_dict(tensors["average"], strict=True)
        names = [name for name, p in self.policy.named_parameters() if p.requires_grad]
        moments = tensors["optimizer"]
        # Moments take their parameter's memory layout: the fused kernel walks both side by side.
        state = {
            number: {m: _like(parameter, moments[f"{m}.{name}"]) for m in MOMENTS}
            for number, (name, parameter) in enumerate(zip(names, self._parameters, strict=True))
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(tensors["random"]["torch"])
        if self.device.type == "cuda" and "cuda" in tensors["random"]:  # not if it began on a CPU
            torch.cuda.set_rng_state(tensors["random"]["cuda"], self.device)

    def _there(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch where the policy is."""
        return {
            key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in batch.items()
        }

    @torch.no_grad()
    def _update_average(self, number: int) -> None:
        decay = min(self._spec.ema, (1 + number) / (10 + number)) if self._spec.ema else 0.0
        torch._foreach_lerp_(self._averaged, self._parameters, 1 - decay)

    @torch.no_grad()
    def _copy_buffers(self) -> None:
        for kept, current in zip(self.average.buffers(), self.policy.buffers(), strict=True):
            kept.copy_(current)


def find_device(wanted: str) -> torch.device:
    """The device to train on.

    Args:
        wanted: ``auto``, ``cpu`` or ``cuda``; auto takes the GPU where torch finds one.

    Raises:
        ConfigError: A GPU is wanted and torch finds none.
    """
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise ConfigError(
            f"device: cuda, but torch {torch.__version__} finds no GPU here; `sim2or doctor --for gpu` looks "
            "for the driver and its container runtime, device: auto takes the CPU"
        )
    return torch.device("cuda" if found and wanted != "cpu" else "cpu")


def learning_rate(number: int, spec: TrainSpec) -> float:
    """Linear warm-up, then a cosine down to ``final_lr_share``; step 0, 1, …, steps − 1."""
    warmup = min(spec.warmup_steps, spec.steps // 4)
    if number < warmup:
        return spec.lr * (number + 1) / warmup
    progress = (number - warmup) / max(1, spec.steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return spec.lr * (spec.final_lr_share + (1 - spec.final_lr_share) * cosine)


def parameter_count(policy: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in policy.parameters() if p.requires_grad)


def _like(parameter: Tensor, saved: Tensor) -> Tensor:
    if saved.dim() == 0:
        return saved.to(parameter.device, copy=True)
    return torch.empty_like(parameter).copy_(saved)
