"""Renders cameras off screen; one GL context serves every model built by ``scene``."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray
from sim2or.errors import ConfigError, choices

from sim2or_sim.backends.mujoco.room import SCENERY

_MAX_GEOMS = 600


class Painter:
    """One off-screen buffer of a fixed largest size."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int, samples: int, scenery: bool) -> None:
        """Opens the GL context.

        Args:
            model: Any model of the scene; the others may differ in everything but textures.
            height: Largest image height [px].
            width: Largest image width [px].
            samples: Anti-aliasing samples a pixel.
            scenery: Whether to draw what stands outside the views of the robot's cameras.
        """
        self._size = (height, width)
        visual = model.vis
        kept = (visual.global_.offwidth, visual.global_.offheight, visual.quality.offsamples)
        visual.global_.offwidth, visual.global_.offheight, visual.quality.offsamples = width, height, samples
        self._gl = mujoco.GLContext(width, height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        visual.global_.offwidth, visual.global_.offheight, visual.quality.offsamples = kept
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._option.geomgroup[SCENERY] = scenery
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def fits(self, height: int, width: int) -> bool:
        """Whether an image of that size fits the buffer."""
        return height <= self._size[0] and width <= self._size[1]

    def paint(
        self, model: mujoco.MjModel, data: mujoco.MjData, camera: str, height: int, width: int
    ) -> NDArray[np.uint8]:
        """Renders one camera: uint8 (height, width, 3) RGB. Camera poses in ``data`` must be current.

        Raises:
            ConfigError: Unknown camera.
        """
        number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if number < 0:
            raise ConfigError(f"camera: {camera!r}; {choices(camera, camera_names(model))}")
        self._gl.make_current()
        self._camera.fixedcamid = number
        mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        view = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(view, self._scene, self._context)
        image = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, view, self._context)
        return np.ascontiguousarray(image[::-1])

    def close(self) -> None:
        """Frees the context; safe to call twice."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None


def camera_names(model: mujoco.MjModel) -> list[str]:
    """Names of the model's cameras."""
    return [model.camera(i).name for i in range(model.ncam)]
