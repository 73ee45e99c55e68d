"""Doctor: what this machine needs, and the remedy where it is missing."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim2or.bus.server import find_server
from sim2or.errors import ConfigError, choices

NEEDED_GB = 5
GL_LIBRARIES = ((("libEGL.so.1",), ("libOpenGL.so.0", "libGL.so.1")), (("libOSMesa.so.8",),))
"""What the simulator loads, by exactly these names: of one of these choices, a library of every group."""

GL_REMEDY = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"


@dataclass(frozen=True)
class Check:
    """One line of the doctor."""

    name: str
    ok: bool
    text: str


def checks(names: Sequence[str] = ()) -> Iterator[Check]:
    """Looks at Python, Redis, the graphics library and the disk.

    Args:
        names: Only these checks; all by default.

    Raises:
        ConfigError: There is no check of that name.
    """
    for name in names:
        if name not in CHECKS:
            raise ConfigError(f"doctor: unknown check {name!r}; {choices(name, CHECKS)}")
    return (check() for name, check in CHECKS.items() if not names or name in names)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info[:2] == (3, 12), f"{version} (3.12 is needed: make setup)")


def _redis() -> Check:
    try:
        return Check("redis", True, str(find_server()))
    except ConfigError as error:
        return Check("redis", False, str(error))


def _graphics() -> Check:
    found = next(
        (choice for choice in GL_LIBRARIES if all(any(map(_loads, group)) for group in choice)), None
    )
    return Check("graphics", found is not None, found[0][0] if found else f"no software OpenGL: {GL_REMEDY}")


def _disk() -> Check:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    return Check("disk", free_gb >= NEEDED_GB, f"{free_gb:.0f} GB free here; {NEEDED_GB} GB are needed")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


CHECKS: dict[str, Callable[[], Check]] = {
    "python": _python,
    "redis": _redis,
    "graphics": _graphics,
    "disk": _disk,
}
