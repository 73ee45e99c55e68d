"""A record of JSON lines that is written while the work goes on and survives the end of its process."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim2or.artifacts.store import put_in_place


class Record:
    """A file of JSON objects, one a line; every line that was added is durable.

    Complete lines of an earlier attempt are kept and a torn last line is cut off. A file that the store
    holds by hard link is replaced by a private copy before anything is added.

    Args:
        path: Of the file; its directory exists.

    Attributes:
        lines: What is in it, oldest first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        self.lines = [json.loads(line) for line in whole.splitlines()]
        if whole != data or path.stat().st_nlink > 1:
            write_whole(path, whole)

    def add(self, line: Mapping[str, Any]) -> None:
        """Appends a line and makes it durable."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(dict(line))


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is either complete or as it was; never through a link into what others hold."""
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    put_in_place(temporary, path, data)
