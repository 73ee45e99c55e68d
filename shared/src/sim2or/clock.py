"""Clocks: monotonic time judges ages, wall time is for people only."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path


def now_ns() -> int:
    """Monotonic time of this host [ns]; comparable between processes of one boot only."""
    return time.monotonic_ns()


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Names the boot that ``now_ns`` counts from, so that two hosts' times are never mixed.

    Source: ``/proc/sys/kernel/random/boot_id`` (Linux); elsewhere "unknown".
    """
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "unknown"


def utc_now() -> str:
    """Wall time as ISO 8601 in UTC, for people."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
