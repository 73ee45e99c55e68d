"""``make bench-bus``: the bus against what people would use instead; writes ``bench/bus.json``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import paired

PARTS = ("observation", "lease_queue", "recovery", "upload")


def main() -> None:
    """Runs the parts one after another; each has ``measure(rounds) -> list[Section]``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--out", type=Path, default=Path("bench/bus.json"))
    chosen = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    sections = []
    for name in chosen.only or PARTS:
        sections += importlib.import_module(name).measure(chosen.rounds)
    paired.write(chosen.out, sections)


if __name__ == "__main__":
    main()
