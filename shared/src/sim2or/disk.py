"""Full disks: whether one was the cause of an error, and how much room is left."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
SCARCE_BYTES = 1 << 20
"""A file system with less is full for whoever failed to write there."""


def is_full(error: BaseException | None, *places: Path) -> bool:
    """Whether an error says, itself or by its cause, that a disk or a quota is full.

    Libraries that write in C or Rust keep the system's words but not always its number; some have neither,
    and then the places where the job writes are looked at.
    """
    if error is None:
        return False
    if isinstance(error, OSError):
        nameless = error.errno is None and any(_space(place)[1] < SCARCE_BYTES for place in places)
        if error.errno in NO_SPACE or nameless:
            return True
    said = any(os.strerror(number) in str(error) for number in NO_SPACE)
    return said or is_full(error.__cause__ or error.__context__, *places)


def room(*places: Path) -> str:
    """How much space is left, for people: ``"/run/work: 0.0 of 8.0 MB free"`` for each place."""
    spaces = dict.fromkeys(map(_space, places))
    return "; ".join(f"{path}: {free / 1e6:.1f} of {total / 1e6:.1f} MB free" for path, free, total in spaces)


def _space(place: Path) -> tuple[Path, int, int]:
    """The nearest directory above a place that exists, and what is free there of how much [bytes]."""
    there = next(path for path in (place, *place.parents) if path.exists())
    usage = shutil.disk_usage(there)
    return there, usage.free, usage.total
