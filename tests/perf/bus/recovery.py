"""How long a job waits for its next start after kill -9, and whether a live one is ever started twice.

Real agents with their worker processes on a real Redis, leases of one second. A second agent is idle and
ready, its worker warm. One second into a job of one minute the agent, or only its worker process, is killed;
the time runs from the kill to the first line of the next attempt. Besides, a job that blocks in C for many
leases, holding the interpreter's lock, must be started once.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))

from paired import Figures, Section, paired, section
from sim2or.goals import Goal, at_most
from yard import LEASE_S, until, yard

AGENT, WORKER, BLOCKED = "agent killed", "worker killed", "blocked in C, not killed"
BLOCKED_LEASES = 6
NOTES = (
    f"kill -9 one second into a job, lease {LEASE_S:g} s, a second agent idle: recovery_s from the kill to "
    f"the next start, leases the same in leases, extra_starts of a job that blocks in C for {BLOCKED_LEASES} "
    "leases while a second agent waits for work (0 where the job was killed). A killed worker is noticed by "
    "its agent at once and its job retried after 0.2 s, which includes the start of a new worker process if "
    "the same agent takes it; a killed agent is noticed when its lease ends."
)


def measure(rounds: int) -> list[Section]:
    """Runs each fault ``rounds`` times, in turn."""
    contenders = {
        AGENT: partial(killed, whole=True),
        WORKER: partial(killed, whole=False),
        BLOCKED: blocked,
    }
    results = paired("recovery", contenders, rounds=rounds)
    worst = max(one["extra_starts"] for one in results[BLOCKED])
    return [section("kill -9 recovery", NOTES, results, partial(goals, worst))]


def goals(worst: float, figures: Mapping[str, Figures]) -> list[Goal]:
    """What was to be reached."""
    return [
        at_most("recovery: kill -9 of the agent to the next start, × lease", figures[AGENT]["leases"], 1.5),
        at_most("recovery: extra starts of a live job, worst of all rounds", worst, 0),
    ]


def killed(*, whole: bool) -> Figures:
    """Kills an agent, or only its worker, in the middle of a job; how long until the next start."""
    with tempfile.TemporaryDirectory() as directory, yard(Path(directory)) as place:
        first_agent = place.agent()
        job_id = place.submit(steps=600, pause_s=0.1)
        first = place.started(job_id)
        second_agent = place.agent()
        until(lambda: workers_of(second_agent.pid), "warm worker of the second agent")
        time.sleep(max(0.0, first["at_ns"] * 1e-9 + 1.0 - time.monotonic()))
        killed_ns = time.monotonic_ns()
        os.kill(first_agent.pid if whole else first["pid"], signal.SIGKILL)
        recovery_s = (place.started(job_id, 2)["at_ns"] - killed_ns) * 1e-9
    return {"recovery_s": recovery_s, "leases": recovery_s / LEASE_S, "extra_starts": 0}


def blocked() -> Figures:
    """Lets a job hold the interpreter in C for many leases; how often it was started too often."""
    with tempfile.TemporaryDirectory() as directory, yard(Path(directory)) as place:
        place.agent()
        job_id = place.submit(steps=1, fault="hold", hold_s=round(BLOCKED_LEASES * LEASE_S))
        place.started(job_id)
        place.agent()
        place.wait(job_id, "done", timeout_s=60.0)
        extra = len(place.lines("starts", job_id)) - 1
    return {"recovery_s": 0.0, "leases": 0.0, "extra_starts": extra}


def workers_of(agent_pid: int) -> list[int]:
    """The processes that an agent started."""
    path = Path(f"/proc/{agent_pid}/task/{agent_pid}/children")
    return [int(pid) for pid in path.read_text().split()]
