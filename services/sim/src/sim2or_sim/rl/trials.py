"""How a policy does on a list of episodes: successes with an interval, errors one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from sim2or_sim.rl.starts import SEEDS


@dataclass(frozen=True)
class Trials:
    """What became of episodes.

    Attributes:
        success: Shape (n,), bool.
        error_m: Shape (n,), distance from the goal at the end [m].
    """

    success: NDArray[np.bool_]
    error_m: NDArray[np.float64]

    def report(self, listed: str) -> dict[str, Any]:
        """Figures of the first episodes of a list.

        Args:
            listed: The list's name.

        Returns:
            Successes, their share with Wilson's 95 % interval, errors [mm], and every episode by its seed.
        """
        count, successes = len(self.success), int(self.success.sum())
        interval = binomtest(successes, count).proportion_ci(0.95, method="wilson")
        error_mm = 1e3 * self.error_m
        first = SEEDS[listed][0]
        return {
            "list": listed,
            "first_seed": first,
            "episodes": count,
            "successes": successes,
            "success": successes / count,
            "wilson_95": [float(interval.low), float(interval.high)],
            "error_median_mm": float(np.median(error_mm)),
            "error_p95_mm": float(np.percentile(error_mm, 95)),
            "error_max_mm": float(error_mm.max()),
            "by_seed": {
                str(first + number): {"success": bool(success), "error_mm": round(float(error), 3)}
                for number, (success, error) in enumerate(zip(self.success, error_mm, strict=True))
            },
        }
