"""The dataset in memory: every frame decoded once, every number normalised once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sim2or.dataset_card import ACTION
from sim2or.errors import ConfigError
from torch import Tensor

from sim2or_trainer.backends.lerobot import Recipe

LEVELS = 255.0
AFFINE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Frames:
    """A dataset's rows.

    Attributes:
        columns: Key to float32 tensor, shape (frames, width).
        images: Camera key to uint8 tensor, shape (frames, height, width, 3).
        first: Shape (frames,), the first row of each row's episode.
        last: Shape (frames,), the last row of each row's episode.
        request: The language instruction of each row's episode.
    """

    columns: Mapping[str, Tensor]
    images: Mapping[str, Tensor]
    first: Tensor
    last: Tensor
    request: Sequence[str]

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Levels:
    """What the preprocessor does to an image channel, on 8-bit levels: ``scale * level + offset``.

    Attributes:
        scale: Shape (3,).
        offset: Shape (3,).
    """

    scale: Tensor
    offset: Tensor

    def apply(self, values: Tensor) -> None:
        """Maps levels of shape (…, 3) in place; one number for all channels is several times faster."""
        if (self.scale == self.scale[0]).all():
            values.mul_(self.scale[0].item())
        else:
            values.mul_(self.scale)
        if self.offset.any():
            values.add_(self.offset)


PLAIN = Levels(scale=torch.full((3,), 1 / LEVELS), offset=torch.zeros(3))


class Batches:
    """Makes training batches from rows, in the policy's terms.

    Where the preprocessor only normalises, it is run once on the whole table, so the numbers are LeRobot's
    own; otherwise it is run on each batch.
    """

    def __init__(self, frames: Frames, recipe: Recipe, *, dtype: torch.dtype) -> None:
        """Prepares the table.

        Args:
            frames: The rows.
            recipe: Policy and processors.
            dtype: Of images in batches, when the preprocessor only normalises.
        """
        config = recipe.policy.config
        self._frames, self._recipe, self._dtype = frames, recipe, dtype
        self._deltas = {ACTION: config.action_delta_indices}
        self._observation_deltas = config.observation_delta_indices
        self._images = {key: frames.images[key] for key in frames.images if key in config.input_features}
        self._buffers: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._columns = dict(frames.columns)
        self._levels: dict[str, Levels] = {}
        if recipe.normalises_only:
            self._columns = {key: recipe.preprocess(dict(frames.columns))[key] for key in frames.columns}
            self._levels = {key: _levels(recipe, key) for key in self._images}

    def make(self, rows: Tensor) -> dict[str, Tensor]:
        """Gathers a batch.

        Args:
            rows: Shape (batch,), row numbers.

        Returns:
            What ``policy.forward`` takes. Images are buffers that the next call overwrites.
        """
        batch: dict[str, Tensor] = {}
        for key, values in self._columns.items():
            deltas = self._deltas.get(key, self._observation_deltas)
            index, pad = self._window(rows, deltas)
            batch[key] = values[index]
            if pad is not None:
                batch[f"{key}_is_pad"] = pad
        index, _ = self._window(rows, self._observation_deltas)
        for key in self._images:
            batch[key] = self._image(key, index)
        if self._recipe.normalises_only:
            return batch
        task = [self._frames.request[int(row)] for row in rows]
        return dict(self._recipe.preprocess({**batch, "task": task}))

    def _window(self, rows: Tensor, deltas: Sequence[int] | None) -> tuple[Tensor, Tensor | None]:
        """Row numbers at each delta, clamped to the episode as LeRobot does, and which were clamped."""
        if deltas is None:
            return rows, None
        wanted = rows[:, None] + torch.tensor(list(deltas))
        first, last = self._frames.first[rows][:, None], self._frames.last[rows][:, None]
        return torch.minimum(torch.maximum(wanted, first), last), (wanted < first) | (wanted > last)

    def _image(self, key: str, index: Tensor) -> Tensor:
        """Images at these rows, channels before height and width, in channels-last memory."""
        source = self._images[key]
        levels, values = self._buffer(key, index.numel(), source)
        torch.index_select(source, 0, index.flatten(), out=levels)
        values.copy_(levels)
        self._levels.get(key, PLAIN).apply(values)
        images: Tensor = values.permute(0, 3, 1, 2).unflatten(0, index.shape)
        return images

    def _buffer(self, key: str, count: int, source: Tensor) -> tuple[Tensor, Tensor]:
        if (key, count) not in self._buffers:
            shape = (count, *source.shape[1:])
            dtype = self._dtype if self._levels else torch.float32
            self._buffers[key, count] = (
                torch.empty(shape, dtype=torch.uint8),
                torch.empty(shape, dtype=dtype),
            )
        return self._buffers[key, count]


def _levels(recipe: Recipe, key: str) -> Levels:
    """Finds the preprocessor's affine map of an image by trying it on three grey levels."""
    black, middle, white = (_probe(recipe, key, grey) for grey in (0.0, 0.5, 1.0))
    if (middle - (black + white) / 2).abs().max() > AFFINE_TOLERANCE * (1 + white.abs().max()):
        raise ConfigError(f"{key}: the policy's preprocessor is not affine; its images cannot be prepared")
    return Levels(scale=(white - black) / LEVELS, offset=black)


def _probe(recipe: Recipe, key: str, grey: float) -> Tensor:
    shape = recipe.policy.config.input_features[key].shape
    probed: Tensor = recipe.preprocess({key: torch.full((1, *shape), grey)})[key]
    return probed.float()[0, :, 0, 0]


def training_rows(frames: Frames, episodes: Sequence[tuple[int, int]]) -> Tensor:
    """Row numbers of some episodes, given as (first row, one past the last row)."""
    if not episodes:
        return torch.empty(0, dtype=torch.int64)
    return torch.from_numpy(np.concatenate([np.arange(first, end) for first, end in episodes]))


class Order:
    """Which rows each step sees: a new permutation every epoch, a pure function of seed and step.

    Nothing needs to be saved to resume it.
    """

    def __init__(self, rows: Tensor, *, batch_size: int, seed: int) -> None:
        """Fixes the order.

        Args:
            rows: Row numbers to draw from.
            batch_size: Rows in a step.
            seed: Of all permutations.
        """
        self._rows, self._batch, self._seed = rows, batch_size, seed
        self._epoch, self._shuffled = -1, rows

    def step(self, number: int) -> Tensor:
        """Rows of step 0, 1, …; shape (batch,)."""
        parts, position, missing = [], number * self._batch, self._batch
        while missing:
            epoch, offset = divmod(position, len(self._rows))
            part = self._permutation(epoch)[offset : offset + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
            self._shuffled = self._rows[torch.randperm(len(self._rows), generator=generator)]
            self._epoch = epoch
        return self._shuffled
