"""``python isaac_load.py ENVIRONMENTS``: steps and draws Isaac Lab's rooms, with our code and without.

Without means what anyone would write on the very same scene (Isaac Lab allows one simulation in a process):
write the targets, ``sim.step`` for every physics step, ``scene.update``, and the data of the camera sensors.
Both must end in the same states and the same pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import load
import numpy as np
from load import Parts, Timer
from sim2or_sim.backends import make_world


class IsaacLoad:
    """A batch of rooms.

    Args:
        environments: How many.
    """

    parts: ClassVar[Parts] = {
        "physics (sim.step)": ("engine_newton.py:step", "engine_physx.py:step"),
        "targets to the simulation": (
            "manager.py:set_position_index",
            "articulation.py:write_data_to_sim",
            "delay.py:push",
            "delay.py:spans",
        ),
        "states to the host": ("world.py:_read", "interactive_scene.py:update"),
        "contacts of the pads": ("engine_newton.py:touching", "engine_physx.py:touching"),
        "the rule": ("task.py:update",),
        "body poses for cameras (forward)": ("simulation_context.py:forward",),
    }

    def __init__(self, environments: int) -> None:
        self._count, self._commands = environments, load.commands(environments)
        self._ended: dict[tuple[int, bool], np.ndarray] = {}
        self._world: Any = make_world(load.ROBOT, load.TASK, batch=environments, backend="isaaclab")

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
        self._ended[ticks, frames] = self._positions()

    def bare(self, ticks: int, timer: Timer, *, frames: bool) -> Iterator[None]:
        """Isaac Lab alone, on the same scene."""
        world = self._world
        world.reset(self._commands.scenarios)
        arm, scene, sim = world._arm, world._scene, world._sim
        cameras = {name: scene[f"camera_{name}"] for name in load.TASK.cameras}
        for targets in self._commands.rad[:ticks]:
            with timer.when(not frames):
                arm.set_joint_position_target_index(target=world._tensor(targets[:, world._back]))
                arm.write_data_to_sim()
                for _ in range(load.TASK.substeps):
                    sim.step(render=False)
                scene.update(load.TASK.period_s)
                arm.data.joint_pos.torch.cpu()  # a GPU has then done the work
            if frames:
                sim.forward()
                with timer.when(True):
                    seen = {name: _rendered(camera) for name, camera in cameras.items()}
            yield
        load.same([self._positions()], [self._ended[ticks, frames]])
        if frames:
            lights = [scenario.visuals.light_factor for scenario in self._commands.scenarios]
            drawn = [
                {name: _lit(pictures[index], light) for name, pictures in seen.items()}
                for index, light in enumerate(lights)
            ]
            load.same_pictures(drawn, self._seen)

    def _positions(self) -> np.ndarray:
        found: np.ndarray = self._world._arm.data.joint_pos.torch.cpu().numpy().copy()
        return found


def _lit(picture: np.ndarray, factor: float) -> np.ndarray:
    """A picture in a scenario's light."""
    return np.clip(np.rint(picture.astype(np.float32) * np.float32(factor)), 0, 255).astype(np.uint8)


def _rendered(camera: Any) -> np.ndarray:
    """What the sensor sees now, uint8 (environments, height, width, 3), on the host."""
    camera.reset()
    pictures: np.ndarray = camera.data.output["rgb"].torch.cpu().numpy()
    return pictures


if __name__ == "__main__":
    load.serve(IsaacLoad(int(sys.argv[1])))
