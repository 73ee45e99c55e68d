"""Run inside the runner's container, where bus and store can be reached: prints what is asked for as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sim2or.artifacts.store import Store
from sim2or.bus.events import START, Events
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import connect
from sim2or.settings import load_settings

SETTINGS = load_settings()


def jobs() -> list[Any]:
    """Every job's record."""
    return [record.model_dump(mode="json") for record in Jobs(connect(SETTINGS.redis_url)).list()]


def events() -> list[Any]:
    """Every event, oldest first."""
    source, last, found = Events(connect(SETTINGS.redis_url)), START, []
    while batch := source.read(last):
        last = batch[-1].id
        found += [event.model_dump(mode="json") for event in batch]
    return found


def artifacts() -> dict[str, list[str]]:
    """Every artifact's digest, and the store's files whose bytes have another digest than their name."""
    root = SETTINGS.store_root
    return {"digests": list(Store(root).digests()), "damaged": sorted(_damaged(root / "objects"))}


def lines(digest: str, name: str) -> list[str]:
    """The lines of one file of an artifact."""
    return (Store(SETTINGS.store_root).checkout(digest) / name).read_text().splitlines()


def _damaged(objects: Path) -> Iterator[str]:
    for path in filter(Path.is_file, objects.glob("??/*")):
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != path.parent.name + path.name:
                yield path.name


if __name__ == "__main__":
    asked = {"jobs": jobs, "events": events, "artifacts": artifacts, "lines": lines}
    sys.stdout.write(json.dumps(asked[sys.argv[1]](*sys.argv[2:])))
