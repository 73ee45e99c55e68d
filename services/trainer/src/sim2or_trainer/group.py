"""The processes that train one policy together: who is who, and what they tell one another.

torchrun says so in variables: RANK of WORLD_SIZE, LOCAL_RANK of LOCAL_WORLD_SIZE on one machine. Every rank
has the same weights and its own rows of a step. Rank 0 leads: it alone has the workspace and the answer.
Every wait ends: a lost or silent process ends all with ``TransientError``, and the group is started again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from sim2or.errors import ConfigError, TransientError
from torch import Tensor

_CONTINUE, _OVER, _STOP = 0, 1, 2


@dataclass(frozen=True)
class Group:
    """One process's part in a group; alone, nothing here waits for or changes anything.

    Attributes:
        rank: This process, 0 ≤ rank < size.
        size: How many there are.
        local_rank: This process among those of its machine.
        local_size: How many its machine has.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def alone(self) -> bool:
        """Whether this process trains by itself."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this process keeps the workspace and gives the answer."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """This process's part of its machine's cores."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)

    def join(self, device: torch.device, *, timeout_s: float) -> None:
        """Meets the others.

        Args:
            device: Where this process computes; on GPUs each takes the one of its local rank.
            timeout_s: How long it waits for them, now and whenever it waits for them later [s].

        Raises:
            ConfigError: This machine has fewer GPUs than processes.
            TransientError: Not all of them came.
        """
        if self.alone:
            return
        backend = "gloo"
        if device.type == "cuda":
            backend = "cpu:gloo,cuda:nccl"
            _take_gpu(self.local_rank)
        self._together(
            lambda: dist.init_process_group(
                backend, rank=self.rank, world_size=self.size, timeout=timedelta(seconds=timeout_s)
            )
        )

    def leave(self) -> None:
        """Parts from the others, when none is waited for any more."""
        if not self.alone:
            dist.destroy_process_group()

    def agree(self, **asked: Any) -> dict[str, Any]:
        """What rank 0 says about these things.

        Raises:
            TransientError: A process was lost.
        """
        return dict(json.loads(self.tell(json.dumps(asked).encode())))

    def tell(self, data: bytes) -> bytes:
        """Rank 0's bytes, on every rank.

        Raises:
            TransientError: A process was lost.
        """
        if self.alone:
            return data
        length = torch.tensor([len(data)])
        self._together(lambda: dist.broadcast(length, src=0))
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.leads and data else None
        if content is None:
            content = torch.empty(int(length), dtype=torch.uint8)
        if len(content):
            self._together(lambda: dist.broadcast(content, src=0))
        return content.numpy().tobytes()

    def tell_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's tensors, on every rank, in main memory.

        Raises:
            TransientError: A process was lost.
        """
        own = {name: tensor.contiguous() for name, tensor in tensors.items()} if self.leads else {}
        return dict(load(self.tell(save(own))))

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of a step; all together have each row once."""
        return rows[self.rank :: self.size]

    @torch.no_grad()
    def average(
        self, tensors: Sequence[Tensor], figures: Mapping[str, float], *, weight: float
    ) -> dict[str, float]:
        """Averages tensors in place, and figures, over all processes.

        Args:
            tensors: The same shapes everywhere, on one device.
            figures: The same names everywhere.
            weight: This process's; all together are 1.

        Returns:
            The averaged figures.

        Raises:
            TransientError: A process was lost.
        """
        if self.alone:
            return dict(figures)
        told = torch.tensor(list(figures.values()), device=tensors[0].device)
        flat = torch.cat([*(tensor.flatten() for tensor in tensors), told]).mul_(weight)
        self._together(lambda: dist.all_reduce(flat))
        *averaged, told = flat.split([*(tensor.numel() for tensor in tensors), len(told)])
        for tensor, values in zip(tensors, averaged, strict=True):
            tensor.copy_(values.view_as(tensor))
        return dict(zip(figures, told.tolist(), strict=True))

    def ends(self, *, over: bool) -> bool:
        """Asked by every process before every step: whether training is over, by rank 0's clock.

        Raises:
            TransientError: A process was lost, or told to stop.
        """
        if self.alone:
            return over
        word = self._word(_OVER if over and self.leads else _CONTINUE)
        if word == _STOP:
            raise TransientError(
                f"one of {self.size} processes was told to stop, so all do; the next attempt goes on from "
                "the last checkpoint"
            )
        return word == _OVER

    def stop(self) -> None:
        """Tells the others to stop where they ask next whether training is over.

        Raises:
            TransientError: A process was lost.
        """
        if not self.alone:
            self._word(_STOP)

    def seed(self, seed: int, step: int) -> None:
        """Sets the random state of a step: a function of these and the rank, so that nothing must be saved.

        Alone, the random state goes on by itself and is part of a checkpoint.
        """
        if not self.alone:
            digest = hashlib.sha256(f"{seed} {self.rank} {step}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8]) >> 1)

    def _word(self, own: int) -> int:
        """The strongest word of all."""
        word = torch.tensor([own])
        self._together(lambda: dist.all_reduce(word, op=dist.ReduceOp.MAX))
        return int(word)

    def _together(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (RuntimeError, ValueError) as error:  # what torch.distributed raises for a peer that is gone
            first = str(error).partition("\n")[0][:200]
            raise TransientError(
                f"rank {self.rank} of {self.size} waited for a process that is gone or silent ({first}); all "
                "end, and the group that is started again goes on from the last checkpoint"
            ) from error


def find_group(environment: Mapping[str, str]) -> Group:
    """The group that torchrun's variables describe; without them this process is alone.

    Raises:
        ConfigError: One is missing or wrong.
    """
    size = _number(environment, "WORLD_SIZE", 1, at_least=1)
    if size == 1:
        return Group()
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise ConfigError(f"WORLD_SIZE={size} and no {name}: start the processes with torchrun")
    rank = _number(environment, "RANK", 0)
    if rank >= size:
        raise ConfigError(f"RANK={rank}: valid: 0 to {size - 1}, as WORLD_SIZE={size}")
    return Group(
        rank=rank,
        size=size,
        local_rank=_number(environment, "LOCAL_RANK", 0),
        local_size=_number(environment, "LOCAL_WORLD_SIZE", 1, at_least=1),
    )


def _number(environment: Mapping[str, str], name: str, default: int, *, at_least: int = 0) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < at_least:
        raise ConfigError(f"{name}={text!r}: valid: whole numbers from {at_least}, as torchrun sets them")
    return int(text)


def _take_gpu(local_rank: int) -> None:
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ConfigError(
            f"LOCAL_RANK={local_rank}, and this machine has {count} GPU; valid: torchrun "
            f"--nproc-per-node={count} at most, or device: cpu"
        )
    torch.cuda.set_device(local_rank)
