"""Feature statistics as LeRobot 0.6.1 computes them, without importing it.

LeRobot spends most of its conversion time in histograms of every pixel. Images are 8-bit, so 256 counts per
channel hold the same information: the same numbers come out at a fraction of the cost. A test compares both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

type Stats = Mapping[str, NDArray[Any]]

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_BINS = 5000
_PADDING = 1e-10
_LEVELS = np.arange(256, dtype=np.float64)


def column_stats(values: NDArray[Any]) -> Stats:
    """Statistics of a table column over an episode.

    Args:
        values: Shape (T, n) or (T,).

    Returns:
        min, max, mean, std and quantiles of shape (n,); count of shape (1,).
    """
    columns = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    ones = np.ones(len(columns))
    return _stacked([_weighted(np.sort(column), ones) for column in columns.T], len(columns))


def image_stats(images: NDArray[np.uint8]) -> Stats:
    """Statistics of a camera over an episode, of colour in 0–1, from LeRobot's sample of frames.

    Args:
        images: Shape (T, height, width, 3), RGB.

    Returns:
        min, max, mean, std and quantiles of shape (3, 1, 1); count of shape (1,): the sampled frames.
    """
    sample = np.ascontiguousarray(images[sampled_frames(len(images))])
    stride = _stride(*sample.shape[1:3])
    tall = np.ascontiguousarray(sample[:, ::stride, ::stride]).reshape(-1, 1, 3)
    channels = []
    for channel in range(3):
        counts = cv2.calcHist([tall], [channel], None, [256], [0, 256]).ravel().astype(np.float64)
        present = counts > 0
        channels.append(_weighted(_LEVELS[present], counts[present]))
    stats = _stacked(channels, len(sample))
    return {
        key: value if key == "count" else (value / 255.0).reshape(3, 1, 1) for key, value in stats.items()
    }


def sampled_frames(frames: int) -> NDArray[np.int64]:
    """Which frames of an episode LeRobot looks at: all of a short one, evenly spread ones of a long one."""
    wanted = max(min(100, frames), min(int(frames**0.75), 10_000))
    return np.round(np.linspace(0, frames - 1, wanted)).astype(np.int64)


def aggregate(episodes: Sequence[Stats]) -> Stats:
    """Joins a feature's statistics over episodes; exact but for quantiles, which LeRobot averages."""
    count = np.stack([stats["count"] for stats in episodes]).astype(np.float64)
    mean = np.stack([stats["mean"] for stats in episodes])
    weight = count.reshape(-1, *(1,) * (mean.ndim - 1)) / count.sum()
    total = (mean * weight).sum(axis=0)
    spread = np.stack([stats["std"] for stats in episodes]) ** 2 + (mean - total) ** 2
    return {
        "min": np.min([stats["min"] for stats in episodes], axis=0),
        "max": np.max([stats["max"] for stats in episodes], axis=0),
        "mean": total,
        "std": np.sqrt((spread * weight).sum(axis=0)),
        "count": count.sum(axis=0).astype(np.int64),
        **{q: (np.stack([stats[q] for stats in episodes]) * weight).sum(axis=0) for q in QUANTILES},
    }


def _weighted(values: NDArray[np.float64], weights: NDArray[np.float64]) -> dict[str, float]:
    """Statistics of sorted values that occur ``weights`` times; quantiles from a histogram of 5000 bins."""
    total = weights.sum()
    mean = float((values * weights).sum() / total)
    variance = float((values**2 * weights).sum() / total) - mean**2
    low, high = values[0] - _PADDING, values[-1] + _PADDING
    width = (high - low) / _BINS
    bins = np.minimum((values - low) / width, _BINS - 1).astype(np.int64)
    summed = np.concatenate([[0.0], np.cumsum(weights)])
    target = np.array(list(QUANTILES.values())) * total
    chosen = bins[np.searchsorted(summed[1:], target)]
    before = summed[np.searchsorted(bins, chosen, side="left")]
    inside = summed[np.searchsorted(bins, chosen, side="right")] - before
    quantiles = np.where(chosen == 0, low, low + (chosen + (target - before) / inside) * width)
    return {
        "min": float(values[0]),
        "max": float(values[-1]),
        "mean": mean,
        "std": float(np.sqrt(max(0.0, variance))),
        **dict(zip(QUANTILES, quantiles.tolist(), strict=True)),
    }


def _stacked(columns: Sequence[dict[str, float]], count: int) -> Stats:
    joined = {key: np.array([column[key] for column in columns]) for key in columns[0]}
    return {**joined, "count": np.array([count])}


def _stride(height: int, width: int) -> int:
    """LeRobot thins images of 300 pixels and more to about 150."""
    return 1 if max(width, height) < 300 else int((width if width > height else height) / 150)
