"""``make bench-sim``: our worlds against their bare engines; writes ``bench/sim.json`` and its page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import paired
import simulation_page as page
import throughput

ENGINES = ("mujoco", "isaaclab")
ON_CPU = (1, 4, 16, 64)
ON_GPU = (1, 4, 16, 64, 256, 1024, 4096)


def main() -> None:
    """Measures one engine after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of Isaac Lab: cpu or cuda:N; a GPU gets up to 4096")
    parser.add_argument("--environments", type=int, action="append", help="of Isaac Lab, instead of those")
    parser.add_argument("--only", choices=ENGINES, action="append", help="leaves the page as it is")
    parser.add_argument("--out", type=Path, default=page.FIGURES)
    parser.add_argument("--page", type=Path, default=page.PAGE, help="the page that is brought up to date")
    chosen = parser.parse_args()
    engines = chosen.only or ENGINES
    if "isaaclab" in engines and not throughput.ISAAC.exists():
        parser.error(f"{throughput.ISAAC} is not there: run `make setup-isaac`, or measure --only mujoco")
    sections = throughput.measure_mujoco(chosen.rounds) if "mujoco" in engines else []
    if "isaaclab" in engines:
        counts = chosen.environments or (ON_CPU if chosen.device == "cpu" else ON_GPU)
        sections += throughput.measure_isaac(chosen.rounds, counts, chosen.device)
    paired.write(chosen.out, sections)
    if not chosen.only:
        page.update(chosen.page, page.read(chosen.out))


if __name__ == "__main__":
    main()
