"""``make bench-scale``: what a simulator asks of all the rest; writes ``bench/scale.json`` and its page."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "bus"))

import page
import paired

PARTS = ("simulators", "operations", "clients", "storage")
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
"""As the supervisor gives them to each of these services."""


def main() -> None:
    """Runs the parts one after another; each has ``measure(rounds, demos) -> list[Section]``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--demos", type=int, default=8, help="demonstrations of each simulator in a round")
    parser.add_argument("--only", choices=PARTS, action="append", help="leaves the page as it is")
    parser.add_argument("--out", type=Path, default=page.FIGURES)
    parser.add_argument("--page", type=Path, default=page.PAGE, help="the page that is brought up to date")
    chosen = parser.parse_args()
    os.environ |= ONE_THREAD
    sections = []
    for name in chosen.only or PARTS:
        sections += importlib.import_module(name).measure(chosen.rounds, chosen.demos)
    paired.write(chosen.out, sections)
    if not chosen.only:
        page.update(chosen.page, page.read(chosen.out))


if __name__ == "__main__":
    main()
