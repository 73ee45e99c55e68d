"""``python mujoco_load.py ENVIRONMENTS``: steps and draws MuJoCo's rooms, with our code and without.

Without means what anyone would write: ``mj_step`` with the same commands on the same models from the same
states, and ``mujoco.Renderer`` with the same options. Both must end in the same states and pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import load
import numpy as np
from load import Parts, Timer
from sim2or_sim.backends.mujoco.gl import choose_gl

choose_gl(True)

import mujoco  # noqa: E402
from sim2or_sim.backends.mujoco.room import SCENERY  # noqa: E402
from sim2or_sim.backends.mujoco.world import MujocoWorld  # noqa: E402

STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class MujocoLoad:
    """One worker's rooms.

    Args:
        environments: How many.
    """

    parts: ClassVar[Parts] = {
        "mj_step": ("mj_step",),
        "mj_kinematics": ("mj_kinematics",),
        "what the rule looks at": ("world.py:look", "world.py:now"),
        "the rule": ("task.py:update",),
        "commands and delays": ("delay.py:push", "delay.py:pieces"),
        "whether the physics is sound": ("world.py:sound",),
    }

    def __init__(self, environments: int) -> None:
        self._count, self._commands = environments, load.commands(environments)
        self._world = MujocoWorld(load.ROBOT, load.TASK, batch=environments)
        self._painters: dict[int, Any] = {}
        self._ended: dict[tuple[int, bool], list[np.ndarray]] = {}

    def ours(self, ticks: int, timer: Timer, *, frames: bool) -> Iterator[None]:
        """Our code, a control step after the other."""
        world = self._world
        world.reset(self._commands.scenarios)
        for targets in self._commands.rad[:ticks]:
            with timer.when(not frames):
                world.step(targets)
            if frames:
                with timer.when(True):
                    self._seen = [world.sense(index).images for index in range(self._count)]
            yield
        self._ended[ticks, frames] = [room.scene.data.qpos.copy() for room in world._rooms]

    def bare(self, ticks: int, timer: Timer, *, frames: bool) -> Iterator[None]:
        """MuJoCo alone."""
        self._world.reset(self._commands.scenarios)
        rooms = [(room.scene.model, room.scene.data) for room in self._world._rooms]
        rooms = [(model, _copied(model, data)) for model, data in rooms]
        substeps, cameras = load.TASK.substeps, list(load.TASK.cameras)
        painters = [self._painter(model) for model, _ in rooms] if frames else []
        for targets in self._commands.rad[:ticks]:
            with timer.when(not frames):
                for (model, data), target in zip(rooms, targets, strict=True):
                    data.ctrl[:] = target
                    mujoco.mj_step(model, data, substeps)
            if frames:
                for model, data in rooms:
                    mujoco.mj_kinematics(model, data)
                with timer.when(True):
                    seen = []
                    for (model, data), painter in zip(rooms, painters, strict=True):
                        mujoco.mj_camlight(model, data)
                        seen.append({name: self._draw(painter, data, name) for name in cameras})
            yield
        load.same([data.qpos for _, data in rooms], self._ended[ticks, frames])
        if frames:
            load.same_pictures(seen, self._seen)

    def _painter(self, model: mujoco.MjModel) -> mujoco.Renderer:
        """One for each model, as ``Renderer`` has it; without what our pictures do without."""
        if id(model) not in self._painters:
            size, quality = load.TASK.images, model.vis.quality
            kept, quality.offsamples = quality.offsamples, 0
            painter = mujoco.Renderer(model, size.height_px, size.width_px)
            quality.offsamples = kept
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                painter.scene.flags[flag] = 0
            self._painters[id(model)] = painter
        return self._painters[id(model)]

    def _draw(self, painter: mujoco.Renderer, data: mujoco.MjData, camera: str) -> np.ndarray:
        painter.update_scene(data, camera, _OPTION)
        return painter.render()


def _option() -> mujoco.MjvOption:
    option = mujoco.MjvOption()
    option.geomgroup[SCENERY] = 0
    return option


def _copied(model: mujoco.MjModel, data: mujoco.MjData) -> mujoco.MjData:
    """Data of its own in the same state."""
    state, made = np.empty(mujoco.mj_stateSize(model, STATE)), mujoco.MjData(model)
    mujoco.mj_getState(model, data, state, STATE)
    mujoco.mj_setState(model, made, state, STATE)
    made.mocap_pos[:], made.mocap_quat[:] = data.mocap_pos, data.mocap_quat
    mujoco.mj_forward(model, made)
    return made


_OPTION = _option()

if __name__ == "__main__":
    load.serve(MujocoLoad(int(sys.argv[1])))
