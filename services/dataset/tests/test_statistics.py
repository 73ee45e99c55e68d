"""Statistics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sim2or_dataset.backends.statistics import aggregate, column_stats, image_stats, sampled_frames


def test_column():
    """Of 0, 1, 2, 3: mean 1.5, deviation √1.25, and the median lies in the bin of 1."""
    stats = column_stats(np.array([[3.0], [0.0], [1.0], [2.0]]))
    assert stats["mean"] == pytest.approx(1.5)
    assert stats["std"] == pytest.approx(np.sqrt(1.25))
    assert (stats["min"], stats["max"], stats["count"]) == (0, 3, 4)
    assert stats["q50"] == pytest.approx(1.0, abs=3 / 5000)


def test_constant_column():
    """A column that never changes has no deviation and only finite quantiles."""
    stats = column_stats(np.full((5, 2), 7.0))
    np.testing.assert_array_equal(stats["std"], 0)
    for key in ("q01", "q50", "q99"):
        np.testing.assert_allclose(stats[key], 7.0, atol=1e-8)


def test_image():
    """Half black, half white in red, all black elsewhere: red's mean is 0.5, its deviation 0.5."""
    images = np.zeros((10, 8, 8, 3), np.uint8)
    images[:, :4, :, 0] = 255
    stats = image_stats(images)
    assert stats["mean"].shape == (3, 1, 1)
    np.testing.assert_allclose(stats["mean"].ravel(), [0.5, 0, 0])
    np.testing.assert_allclose(stats["std"].ravel(), [0.5, 0, 0])
    assert stats["count"] == 10


def test_sampled_frames():
    """Of 162 frames a hundred are looked at, first and last among them; of 40, all."""
    chosen = sampled_frames(162)
    assert (len(chosen), chosen[0], chosen[-1]) == (100, 0, 161)
    assert sampled_frames(40).tolist() == list(range(40))


def test_aggregate():
    """Two episodes together have the mean and deviation of all their rows."""
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(30, 3)), rng.normal(2, 3, size=(70, 3))
    joined, every = aggregate([column_stats(one), column_stats(two)]), np.concatenate([one, two])
    np.testing.assert_allclose(joined["mean"], every.mean(axis=0))
    np.testing.assert_allclose(joined["std"], every.std(axis=0))
    assert joined["count"] == 100
