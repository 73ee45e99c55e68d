"""Submits jobs until SIGTERM, and writes down each that was acknowledged; it may be killed at any moment.

``python chaos_submitter.py REDIS_URL DIRECTORY SEED``
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
from pathlib import Path

from sim2or.artifacts.record import Record
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import connect
from sim2or.errors import TransientError
from sim2or.messages.job import Job

PAUSE_S = 0.25
BACKLOG = 6
POISON_SHARE = 0.04
POISON_STEPS = 50
"""Poison kills its worker at every step and goes on at the next: it must not come to its end."""

TWICE_SHARE = 0.1
LOG = "submitted.jsonl"


def question(number: int, seed: int, effects: Path) -> Job:
    """The job of a number: the same each time it is asked for."""
    draw = random.Random(f"{seed}/{number}")
    poison = draw.random() < POISON_SHARE
    spec = {
        "effects": str(effects),
        "steps": POISON_STEPS if poison else draw.randint(4, 12),
        "pause_s": draw.uniform(0.05, 0.3),
        "ballast_mb": draw.choice([0.0, 0.05]),
        "fault": "poison" if poison else "none",
    }
    return Job(stage="drill", key=f"{seed}/{number}", run_id="chaos", spec=spec)


def main(url: str, directory: str, seed: str) -> None:
    """Goes on where an earlier process of it was killed."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    place = Path(directory)
    record = Record(place / LOG)
    jobs = Jobs(connect(url, timeout_s=60, patience_s=1))
    while not stopping.wait(PAUSE_S):
        number = len(record.lines)
        job = question(number, int(seed), place / "effects")
        draw = random.Random(f"{seed}/{number}/road")
        try:
            if jobs.outstanding("drill") >= BACKLOG:
                continue
            for _ in range(2 if draw.random() < TWICE_SHARE else 1):
                jobs.submit(job, priority=draw.choice(("high", "normal", "low")))
        except TransientError:
            continue  # the same question is asked again: it may or may not be queued
        record.add({"job": job.job_id, "number": number, "fault": job.spec["fault"]})
    print(json.dumps({"submitted": len(record.lines)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
