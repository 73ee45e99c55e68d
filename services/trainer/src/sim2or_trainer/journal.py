"""The loss curve: one JSON line per report, consistent with the checkpoint a run resumes from."""

from __future__ import annotations

import json
from pathlib import Path

from sim2or.artifacts.record import Record, write_whole


class Journal:
    """A file of JSON lines, each with its ``step``."""

    def __init__(self, path: Path, *, step: int) -> None:
        """Opens the file and drops lines after ``step``, which a resumed run will write again."""
        self.path = path
        kept = [line for line in Record(path).lines if line["step"] <= step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._record = Record(path)

    def lines(self) -> list[dict[str, float]]:
        """Every complete line."""
        return list(self._record.lines)

    def add(self, **line: float) -> None:
        """Writes a line."""
        self._record.add(line)
