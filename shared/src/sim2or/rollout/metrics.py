"""Figures of a finished episode's motion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def path_length_m(positions_m: NDArray[np.float64]) -> float:
    """Length of a path through points, shape (n_ticks, 3), [m]."""
    return float(np.linalg.norm(np.diff(positions_m, axis=0), axis=1).sum())


def mean_squared_jerk(positions_rad: NDArray[np.float64], period_s: float) -> float:
    """Mean over ticks and joints of the squared jerk (third difference over period³) [rad²/s⁶].

    Args:
        positions_rad: Measured joint positions, shape (n_ticks, n_joints), [rad].
        period_s: Time between rows [s].
    """
    if len(positions_rad) < 4:
        return 0.0
    jerk = np.diff(positions_rad, n=3, axis=0) / period_s**3
    return float(np.mean(jerk**2))
