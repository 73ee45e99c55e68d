"""Chooses the GL library before MuJoCo is imported."""

from __future__ import annotations

import ctypes
import os

from sim2or.errors import ConfigError

_LIBRARIES = {
    "egl": (("libEGL.so.1",), ("libOpenGL.so.0", "libGL.so.1")),
    "osmesa": (("libOSMesa.so.8",),),
}
"""What each choice loads: one library of every group."""

_OFF = {"disable", "disabled", "off", "false", "0"}
_INSTALL = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"


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
    """Whether the libraries of ``egl`` or ``osmesa`` load on this machine."""
    return all(any(map(_loads, group)) for group in _LIBRARIES[name])


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
