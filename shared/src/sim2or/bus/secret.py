"""Secrets in files: read only where nobody else can."""

from __future__ import annotations

from pathlib import Path

from sim2or.errors import ConfigError

OTHERS = 0o077
"""Permission bits that a secret must not have: group and world."""


def check_private(path: Path, what: str) -> None:
    """Refuses a secret that others may read.

    Args:
        path: The file.
        what: What it holds, for the message.

    Raises:
        ConfigError: Its mode lets them; names the command that mends it.
    """
    mode = path.stat().st_mode & 0o777
    if mode & OTHERS:
        raise ConfigError(f"{what} {path} has mode {mode:04o}, others may read it: chmod 600 {path}")
