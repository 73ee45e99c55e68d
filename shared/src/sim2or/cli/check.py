"""One line of the doctor, and how its checks ask other programs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass

ANSWER_S = 20.0
"""How long another program may take to answer [s]."""

SAID = 200
"""How much of what another program says is shown."""


@dataclass(frozen=True)
class Check:
    """One line of the doctor.

    Attributes:
        name: What was looked at.
        ok: Whether it is as it must be.
        text: What was found; where it is not well, with the remedy.
    """

    name: str
    ok: bool
    text: str


Checks = dict[str, Callable[[], Check]]


@dataclass(frozen=True)
class Answer:
    """What another program said.

    Attributes:
        found: Whether the program exists.
        ok: Whether it ended with status 0, in time.
        out: What it wrote to its output.
        last: The last line of its complaint.
    """

    found: bool
    ok: bool
    out: str = ""
    last: str = ""


def ask(*command: str) -> Answer:
    """Runs a program and waits for its answer, never longer than ``ANSWER_S``."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=ANSWER_S, check=False
        )
    except (FileNotFoundError, PermissionError):
        return Answer(found=False, ok=False)
    except subprocess.TimeoutExpired:
        return Answer(found=True, ok=False, last=f"no answer within {ANSWER_S:g} s")
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    last = lines[-1].strip()[:SAID] if lines else f"status {done.returncode}"
    return Answer(found=True, ok=done.returncode == 0, out=done.stdout.strip(), last=last)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 26, 1) of ``v2.26.1-4``."""
    parts = version.removeprefix("v").replace("-", ".").replace("+", ".").split(".")
    leading = parts[: next((at for at, part in enumerate(parts) if not part.isdecimal()), len(parts))]
    return tuple(map(int, leading))
