"""Doctor: what this machine needs, and the remedy where it is missing."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sim2or.bus.server import find_server
from sim2or.cli import cluster_check, engine_check, robot_check
from sim2or.cli.check import Check, Checks, ask
from sim2or.errors import ConfigError, choices
from sim2or.stages import load_table
from sim2or.supervisor import interpreter

NEEDED_GB = 5
NEEDED_MEMORY_GB = 7
"""Of a machine sold as 8 GB. An estimate: training holds all frames of the main job in memory."""

PROCESSORS = ("x86_64", "aarch64")
"""Of the locked packages."""

GL_LIBRARIES = ((("libEGL.so.1",), ("libOpenGL.so.0", "libGL.so.1")), (("libOSMesa.so.8",),))
"""What the simulator loads, by exactly these names: of one of these choices, a library of every group."""

ISAAC_LAB = "from importlib.metadata import version as v; print(v('isaaclab'), v('newton'), v('warp-lang'))"
"""Says the versions of the second engine, in its own environment."""

GL_REMEDY = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"


def checks(names: Sequence[str] = ()) -> Iterator[Check]:
    """Looks at this machine.

    Args:
        names: Only these checks; all by default.

    Raises:
        ConfigError: There is no check of that name.
    """
    for name in names:
        if name not in CHECKS:
            raise ConfigError(f"doctor: unknown check {name!r}; {choices(name, CHECKS)}")
    return (check() for name, check in CHECKS.items() if not names or name in names)


def needed_for(purpose: str) -> tuple[str, ...]:
    """Names of the checks that a purpose needs.

    Raises:
        ConfigError: There is no such purpose.
    """
    if purpose not in PURPOSES:
        raise ConfigError(f"--for {purpose!r}; {choices(purpose, PURPOSES)}")
    return PURPOSES[purpose]


def purposes_of(name: str) -> list[str]:
    """The purposes that need a check."""
    return [purpose for purpose, names in PURPOSES.items() if name in names]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info[:2] == (3, 12), f"{version} (3.12 is needed: make setup)")


def _architecture() -> Check:
    machine, system = platform.machine(), platform.system()
    ok = system == "Linux" and machine in PROCESSORS
    remedy = (
        "" if ok else f"; the locked packages are for Linux on {' and '.join(PROCESSORS)}: use such a machine"
    )
    return Check("architecture", ok, f"{system} on {machine}{remedy}")


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


def _memory() -> Check:
    total_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return Check(
        "memory", total_gb >= NEEDED_MEMORY_GB, f"{total_gb:.0f} GB; {NEEDED_MEMORY_GB} GB are needed"
    )


def _isaaclab() -> Check:
    info = load_table().services["sim-isaaclab"]
    try:
        python = interpreter(info)
    except ConfigError as error:
        return Check("isaaclab", False, str(error))
    answer = ask(str(python), "-c", ISAAC_LAB)
    if not answer.ok:
        return Check("isaaclab", False, f"{python}: {answer.last}; run `{info.setup}`")
    lab, newton, warp = answer.out.split()
    return Check("isaaclab", True, f"{lab}, newton {newton}, warp {warp}")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


CHECKS: Checks = {
    "python": _python,
    "architecture": _architecture,
    "redis": _redis,
    "graphics": _graphics,
    "disk": _disk,
    "memory": _memory,
    "isaaclab": _isaaclab,
    **engine_check.CHECKS,
    **robot_check.CHECKS,
    **cluster_check.CHECKS,
}

_CONTAINERS = ("architecture", "memory", "engine", "compose", "engine-disk", "ports")

PURPOSES = {
    "demo": ("python", "architecture", "redis", "graphics", "disk", "memory"),
    "isaaclab": ("python", "architecture", "redis", "memory", "isaaclab"),
    "compose": _CONTAINERS,
    "gpu": (*_CONTAINERS, "gpu", "gpu-runtime"),
    "robot": (*_CONTAINERS, *robot_check.CHECKS),
    "k8s": ("kubectl", "cluster"),
}
"""What somebody wants to do, and the checks that it needs."""
