"""Chooses the GL library before MuJoCo is imported."""

from __future__ import annotations

import ctypes
import os

from sim2or.errors import ConfigError

_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
_OFF = {"disable", "disabled", "off", "false", "0"}
_INSTALL = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"


def choose_gl(render: bool = True) -> str:
    """Sets ``MUJOCO_GL`` to a library that loads, unless it names one already; call before importing MuJoCo.

    Args:
        render: Whether images are needed; without, "disable" is chosen when no library loads.

    Returns:
        The value of ``MUJOCO_GL``.

    Raises:
        ConfigError: Images are needed and neither EGL nor OSMesa loads.
    """
    chosen = os.environ.get("MUJOCO_GL", "")
    if not chosen or (chosen in _LIBRARIES and not loads(chosen)):
        chosen = next((name for name in _LIBRARIES if loads(name)), "disable")
        os.environ["MUJOCO_GL"] = chosen
    if chosen in _LIBRARIES:
        os.environ.setdefault("PYOPENGL_PLATFORM", chosen)
    if render and chosen in _OFF:
        raise ConfigError(f"MUJOCO_GL={chosen}: no GL library for images; install one: {_INSTALL}")
    return chosen


def loads(name: str) -> bool:
    """Whether the library of ``egl`` or ``osmesa`` loads on this machine."""
    try:
        ctypes.CDLL(_LIBRARIES[name])
    except OSError:
        return False
    return True
