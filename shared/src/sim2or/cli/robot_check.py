"""What a real arm needs of its host: a serial port, cameras, a real-time class."""

from __future__ import annotations

import grp
import os
import resource
import stat
from collections.abc import Sequence
from pathlib import Path

from sim2or.cli.check import Check, Checks

SERIAL, CAMERAS = Path("/dev/serial/by-id"), Path("/dev/v4l/by-id")
"""Names that stay the same whatever is plugged in first."""

LIMITS = "write `@GROUP - rtprio 49` and `@GROUP - memlock unlimited` into /etc/security/limits.d/sim2or.conf"


def _serial() -> Check:
    return devices("serial", ("SIM2OR_SERIAL",), SERIAL, "dialout")


def _cameras() -> Check:
    return devices("cameras", ("SIM2OR_CAMERA_WRIST", "SIM2OR_CAMERA_ROOM"), CAMERAS, "video")


def devices(name: str, variables: Sequence[str], directory: Path, group: str) -> Check:
    """Looks at devices: those that the environment names, else all of a directory.

    Args:
        name: Of the check.
        variables: Which name a device each.
        directory: Where links to such devices are.
        group: Whose members may use them, as a rule.
    """
    named = {variable: Path(os.environ[variable]) for variable in variables if os.environ.get(variable)}
    missing = [variable for variable in variables if variable not in named] if named else []
    paths = list(named.values()) or sorted(directory.glob("*"))
    problems = [f"{variable} is not set" for variable in missing]
    problems += [problem for path in paths if (problem := _problem(path, group))]
    if not paths:
        problems = [
            f"none in {directory}: plug it in, see `dmesg | tail`, or name it: {'=, '.join(variables)}="
        ]
    found = ", ".join(f"{path} ({path.resolve().name})" for path in paths)
    return Check(name, not problems, "; ".join(problems) or found)


def _problem(path: Path, group: str) -> str:
    """Why a device cannot be used; empty where it can."""
    try:
        status = path.stat()
    except OSError as error:
        return f"{path}: {error.strerror}; see {path.parent}"
    if not stat.S_ISCHR(status.st_mode):
        return f"{path}: is no character device; see {path.parent}"
    if os.access(path, os.R_OK | os.W_OK):
        return ""
    return (
        f"{path}: you may not use it, it belongs to {_owner(status.st_gid)}; sudo usermod -aG {group} $USER, "
        f"and log in again (in compose: SIM2OR_{group.upper()}_GID={status.st_gid})"
    )


def _owner(gid: int) -> str:
    try:
        return f"group {grp.getgrgid(gid).gr_name}"
    except KeyError:
        return f"group {gid}"


def _realtime() -> Check:
    before, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, before, priority)
    except PermissionError:
        return Check("realtime", False, f"no real-time class for this user: {LIMITS}, and log in again")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:
        return Check(
            "realtime", False, f"only {soft} bytes of memory may be locked: {LIMITS}, and log in again"
        )
    return Check("realtime", True, "SCHED_FIFO is allowed, memory may be locked")


CHECKS: Checks = {"serial": _serial, "cameras": _cameras, "realtime": _realtime}
