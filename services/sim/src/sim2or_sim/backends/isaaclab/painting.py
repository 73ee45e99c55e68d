"""Colours of the shapes that Newton's renderer draws, by environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.scenario import Visuals

from sim2or_sim.backends.isaaclab.configuration import ROOM
from sim2or_sim.backends.mujoco.scene import TABLE_GEOMS_PREFIX, TRAY_GEOMS_PREFIX
from sim2or_sim.backends.mujoco.variation import shifted_hue

TABLE, TRAY = f"{ROOM}/{TABLE_GEOMS_PREFIX}", f"{ROOM}/{TRAY_GEOMS_PREFIX}"
"""How names of their shapes begin."""

_ENVS = "/World/envs/env_"


class Painter:
    """Turns the hues of drape and tray.

    Args:
        model: Newton's model, or that of its renderer.
        batch: How many environments.
    """

    def __init__(self, model: Any, batch: int) -> None:
        self._model = model
        shapes, colors = by_environment(model.shape_label, batch), model.shape_color.numpy()
        self._groups = []
        for start in (TABLE, TRAY):
            group = where(shapes, partial(_begins, start))
            self._groups.append((group, *np.unique(colors[group[0]], axis=0, return_inverse=True)))

    def paint(self, envs: NDArray[np.int64], visuals: Sequence[Visuals]) -> None:
        """Puts the hues of ``visuals[i]`` on environment ``envs[i]``, starting from the nominal ones."""
        painted = self._model.shape_color.numpy().copy()
        turns = ([one.table_hue_turns for one in visuals], [one.tray_hue_turns for one in visuals])
        for (group, palette, which), turned in zip(self._groups, turns, strict=True):
            hues = np.array([[shifted_hue(color, turn) for color in palette] for turn in turned])
            painted[group[envs]] = hues[:, which]
        self._model.shape_color.assign(painted)


def by_environment(labels: Sequence[str], batch: int) -> list[dict[str, int]]:
    """Names of each environment's shapes or bodies below the environment, with their numbers."""
    found: list[dict[str, int]] = [{} for _ in range(batch)]
    for number, label in enumerate(labels):
        if label.startswith(_ENVS):
            env, _, name = label.removeprefix(_ENVS).partition("/")
            found[int(env)][name] = number
    return found


def where(things: Sequence[dict[str, int]], wanted: Callable[[str], bool]) -> NDArray[np.int64]:
    """Numbers of those that are wanted by name, shape (batch, n): environments are alike."""
    return np.array([[number for name, number in own.items() if wanted(name)] for own in things])


def _begins(start: str, name: str) -> bool:
    return name.startswith(start)
