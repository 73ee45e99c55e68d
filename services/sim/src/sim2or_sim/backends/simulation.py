"""What simulators offer beyond the World protocol, for experts and demonstrations."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from sim2or.worlds.world import World


class Simulation(World, Protocol):
    """A World whose looks can be re-drawn."""

    def redraw_visuals(self, index: int, rng: np.random.Generator) -> None:
        """Draws light, hues and camera offsets of one world anew, from the task's ranges."""
