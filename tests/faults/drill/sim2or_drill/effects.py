"""Lines outside of everything that is under test: one system call each, complete or absent."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any


def add(directory: Path, name: str, **fields: Any) -> None:
    """Appends a line with the process and the time."""
    line = json.dumps({"at_ns": time.monotonic_ns(), "pid": os.getpid(), **fields}) + "\n"
    handle = os.open(directory / f"{name}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def read(directory: Path, name: str) -> list[dict[str, Any]]:
    """Every complete line, oldest first."""
    path = directory / f"{name}.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def holder(directory: Path, job: str) -> str | None:
    """Another live process that has this job, and its state; None when there is none, and then it is ours.

    A process that is stopped (state T) is not live: it is a zombie that will find its lease lost.
    """
    handle = os.open(directory / f"{job}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = os.read(handle, 32).decode() or "0"
        os.close(handle)
        state = _state(int(other))
        return None if state in "TZX" else f"{other} in state {state}"
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    _HELD[job] = handle
    return None


def leave(job: str) -> None:
    """Lets go of a job."""
    handle = _HELD.pop(job, None)
    if handle is not None:
        os.close(handle)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


_HELD: dict[str, int] = {}
