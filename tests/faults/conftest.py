"""Fixtures of the fault drills."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stand import Stand
from yard import Yard
from yard import yard as new_yard


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    """A yard in a directory of its own."""
    with new_yard(tmp_path) as made:
        yield made


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 16 MB, on machines that let us mount one."""
    path = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A stand; sockets need short paths: a unix socket's path ends at 107 bytes."""
    made = Stand(tmp_path_factory.mktemp("s"))
    yield made
    made.close()
