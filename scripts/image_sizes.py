"""How large the container images are: what they share with each other, and what each has of its own.

Usage: python3 scripts/image_sizes.py IMAGE… [--page FILE]     (`make image-sizes`, `make images`)

Prints a Markdown table; ``--page`` also puts it between the page's markers. Needs the docker command only.
Ends with status 1 when an image misses its budget. MB are 10^6 bytes, as Docker counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- sizes: begin -->", "<!-- sizes: end -->"
TAG = os.environ.get("SIM2OR_TAG", "dev")
MAKES_LAYER = ("RUN ", "COPY ", "ADD ")
HEAVY = 1_000_000_000
"""Shared layers of this size hold torch."""

BUDGET = 300_000_000
PUBLIC_BASE = 125_000_000
"""python:3.12-slim-bookworm as its registry has it, about; a locally made base may be larger."""


@dataclass(frozen=True)
class Image:
    """An image as a stack of layers, the lowest first.

    Attributes:
        name: Its repository.
        layers: (digest, bytes) of each layer.
    """

    name: str
    layers: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(size for _, size in self.layers)


def read(name: str) -> Image:
    """Asks the engine about an image.

    Raises:
        SystemExit: It is missing, or its history does not fit its layers.
    """
    digests = json.loads(_docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", f"{name}:{TAG}"))
    text = _docker("history", "--no-trunc", "--human=false", "--format", "{{json .}}", f"{name}:{TAG}")
    steps = [json.loads(line) for line in text.splitlines()]
    sizes = [
        int(step["Size"])
        for step in reversed(steps)
        if int(step["Size"]) or step["CreatedBy"].startswith(MAKES_LAYER)
    ]
    if len(sizes) != len(digests):
        sys.exit(f"{name}: {len(digests)} layers, but its history tells of {len(sizes)}")
    return Image(name, tuple(zip(digests, sizes, strict=True)))


def rows(images: list[Image]) -> list[tuple[str, int, int, int, int]]:
    """Each image's name and bytes: all, base (in every image), shared with others, own."""
    holders = {
        digest: sum(digest in dict(i.layers) for i in images) for i in images for digest, _ in i.layers
    }
    found = []
    for image in images:
        base = sum(size for digest, size in image.layers if holders[digest] == len(images))
        own = sum(size for digest, size in image.layers if holders[digest] == 1)
        found.append((image.name, image.size, base, image.size - base - own, own))
    return found


def table(images: list[Image]) -> str:
    """The table in Markdown, and what the images take on a disk together."""
    lines = ["| image | all [MB] | base | shared with others | own |", "|---|---|---|---|---|"]
    for name, *sizes in rows(images):
        lines.append(f"| {name} | " + " | ".join(f"{size / 1e6:,.1f}" for size in sizes) + " |")
    once = {digest: size for image in images for digest, size in image.layers}
    lines.append(f"\nOn disk together, each layer once: {sum(once.values()) / 1e6:,.0f} MB.")
    return "\n".join(lines)


def verdicts(images: list[Image]) -> list[tuple[bool, str]]:
    """The budgets: whether each is met, and how far."""
    found = []
    for name, size, base, shared, own in rows(images):
        if name.endswith("/bridge"):
            public = size - base + PUBLIC_BASE
            here = f"{size / 1e6:.0f} MB on this base ({'met' if size < BUDGET else 'missed'})"
            text = f"{name}: {here}, about {public / 1e6:.0f} MB on the public base (budget 300 MB)"
            found.append((public < BUDGET, text))
        elif shared > HEAVY:
            found.append((own < BUDGET, f"{name}: {own / 1e6:.1f} MB of its own (budget 300 MB)"))
    return found


def put(page: Path, text: str) -> None:
    """Replaces what stands between the markers of a page.

    Raises:
        SystemExit: It has no markers.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{page}: no {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Prints the table and the budgets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    images = [read(name) for name in given.images]
    judged = verdicts(images)
    text = "\n\n".join(
        [table(images), "\n".join(f"- {'met' if met else 'MISSED'}: {line}" for met, line in judged)]
    )
    sys.stdout.write(text + "\n")
    if given.page:
        put(given.page, text)
    sys.exit(not all(met for met, _ in judged))


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr.strip()}\n`make images` builds them")
    return done.stdout


if __name__ == "__main__":
    main()
