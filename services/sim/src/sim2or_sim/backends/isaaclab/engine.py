"""What a world asks of Isaac Lab's physics beyond Isaac Lab's own calls, whichever physics it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from isaaclab.scene import InteractiveScene
from numpy.typing import NDArray
from sim2or.contracts.scenario import Scenario, Visuals

from sim2or_sim.backends.isaaclab.configuration import IsaacSettings

Numbers = NDArray[np.int64]
"""Of environments or of instruments, in the order in which the task names them."""


class Engine(Protocol):
    """Frictions, colours, contacts and what is held; a call serves many environments with one write."""

    def step(self, count: int) -> None:
        """So many physics steps."""

    def apply(self, envs: Numbers, scenarios: Sequence[Scenario]) -> None:
        """Puts the frictions of scenarios on environments, starting from the nominal ones."""

    def paint(self, envs: Numbers, visuals: Sequence[Visuals]) -> None:
        """Turns the hues of drape and tray, starting from the nominal ones."""

    def park(self, envs: Numbers, kinds: Numbers) -> None:
        """Instrument ``kinds[i]`` of environment ``envs[i]`` moves freely; nothing moves its others."""

    def attach(self, envs: Numbers, kinds: Numbers, poses: NDArray[np.float64]) -> None:
        """The surgeon's hand holds instruments where they are, as MuJoCo's weld does: a little soft.

        Args:
            envs: Which environments, shape (n,).
            kinds: The instrument in each, shape (n,).
            poses: Shape (n, 7), their poses in the world, quaternion xyzw [m].
        """

    def release(self, envs: Numbers) -> None:
        """The surgeon's hand holds nothing."""

    def touching(self, kinds: Numbers) -> NDArray[np.bool_]:
        """Whether the pads touch the instrument of each environment, shape (batch, 2): fixed, moving.

        Args:
            kinds: The instrument in use in each environment, shape (batch,).
        """


def prepare(settings: IsaacSettings, instruments: Sequence[str]) -> AbstractContextManager[Any]:
    """What must be around the making of the scene, so that the engine finds what it needs there."""
    hook: AbstractContextManager[Any]
    if settings.physics == "newton":
        from isaaclab_newton.cloner import newton_builder_world_hook

        from sim2or_sim.backends.isaaclab.engine_newton import weld_hook

        hook = newton_builder_world_hook(weld_hook(instruments))
    else:
        from sim2or_sim.backends.isaaclab import engine_physx

        hook = engine_physx.prepared()
    return hook


def make_engine(
    settings: IsaacSettings, scene: InteractiveScene, instruments: Sequence[str], render: bool
) -> Engine:
    """The engine of a scene that was made within ``prepare`` and whose simulation is up.

    Args:
        settings: Which physics it is.
        scene: The scene.
        instruments: The instruments of each environment, which ``kinds`` number.
        render: Whether images may be asked for.
    """
    if settings.physics == "newton":
        from sim2or_sim.backends.isaaclab.engine_newton import NewtonEngine

        return NewtonEngine(scene.num_envs, instruments)
    from sim2or_sim.backends.isaaclab import engine_physx

    return engine_physx.make(scene, instruments, settings, render)
