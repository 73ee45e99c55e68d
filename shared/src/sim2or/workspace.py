"""A job's workspace: the directory that its attempts inherit from one another.

``work/<job>/<attempt>``: checkpoints outlive an attempt, but no two attempts share a file. The process of an
earlier attempt may still live when the next one begins: it was frozen, or is in C, and finds out late that it
has lost its job. It must not write into what is now another's, and least of all into an artifact, whose
objects are hard links to such files.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from pathlib import Path

COPIES = ".copies"
"""In the workspace, where a former owner cannot find it: a copy is made there, then replaces its original."""


def inherit(workspace: Path) -> None:
    """Makes an attempt's directory out of what the attempt before it left, or empty.

    The directory gets a name that its former owner does not know: a path that this one opens from now on is
    not there. Then every file is replaced by a copy, so that what it still holds open is in nobody's way.

    Args:
        workspace: The directory to make, in the job's directory; its name begins with the attempt's number.

    Raises:
        OSError: No space for the copies, or another attempt takes what is there at this moment, and then
            this one has no workspace; the next attempt inherits it.
    """
    job = workspace.parent
    job.mkdir(parents=True, exist_ok=True)
    attempts = sorted(job.iterdir(), key=_order)
    if attempts:
        attempts.pop().rename(workspace)
    else:
        workspace.mkdir()
    for leftover in (*attempts, workspace / COPIES):
        remove(leftover)
    _replace_files(workspace)


def remove(path: Path) -> None:
    """Removes a directory; what resists is left behind."""
    shutil.rmtree(path, ignore_errors=True)


def _replace_files(directory: Path) -> None:
    files = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    copies = directory / COPIES
    copies.mkdir()
    for path in files:
        copy = copies / uuid.uuid4().hex
        shutil.copyfile(path, copy)
        copy.rename(path)
    copies.rmdir()


def _order(workspace: Path) -> tuple[int, int]:
    """By attempt; where a bus that lost everything counts anew, by the time of the take-over."""
    number = workspace.name.partition("-")[0]
    with contextlib.suppress(FileNotFoundError):
        return int(number) if number.isdecimal() else 0, workspace.stat().st_ctime_ns
    return 0, 0
