"""Episodes per minute against the number of simulators, and what each of them asks of Redis.

The supervisor runs four sim services with a private Redis, as ``sim2or run`` does. A round gives one job each
to one, two, three or all four of them: the main job's first stage, with cameras. The bare stage is the same
``run`` in a process without bus or store.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import questions
from meter import Meter
from paired import Figures, Section, paired, section
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import connect
from sim2or.goals import Goal, at_least
from sim2or.messages.job import Job, JobRecord
from sim2or.supervisor import EmbeddedSupervisor, SupervisorState, read_state

HERE = Path(__file__).parent
SIMULATORS = 4
BARE = "bare run(), no bus"
PATIENCE_S = 300.0
POLL_S = 0.2
IDLE_S = 4.0
RATE, MEMORY = "episodes_per_min", "peak_memory_mb"
TOLD = ("lease_messages_per_s", "progress_per_s", "redis_us_per_s", "in_bytes_per_s", "out_bytes_per_s")

RATE_NOTES = (
    "The collect stage of pipelines/handover.yaml (MuJoCo, two cameras of 96x96, software rendering, new "
    "light and colours for every frame), one job a simulator, {demos} demonstrations a job, the same ones in "
    "every round. Four warm sim services under the supervisor with a private Redis (appendfsync always); "
    "those without a job wait for one. From the first start to the last recorded result, by Redis's clock: "
    "world and expert made anew, episodes written and flushed, artifact hashed and stored. bare: the same "
    "run() in a warm process of its own, without bus, lease, progress and store."
)
BUSY_NOTES = (
    "What one busy simulator asks of Redis and of memory, in the same rounds. lease_messages: renewals of "
    "leases, with or without progress; progress: those with progress. Redis's CPU time and bytes are those "
    "of a whole round, idle neighbours and the waiting runner included, divided by simulators at work and "
    "seconds. peak_memory: agent and worker process together (VmHWM), shared pages counted twice."
)
IDLE_NOTES = f"Four real sim services without work for {IDLE_S:g} s, per service."


def measure(rounds: int, demos: int) -> list[Section]:
    """Runs every number of simulators ``rounds`` times, in turn.

    Args:
        rounds: How often.
        demos: Demonstrations of each simulator in a round.
    """
    with tempfile.TemporaryDirectory() as directory, hall(Path(directory)) as place:
        place.collect("warm", SIMULATORS, 1)
        names = {BARE: partial(bare, demos)}
        for count in range(1, SIMULATORS + 1):
            names[name_of(count)] = partial(place.round, count, demos)
        results = paired("simulators", names, rounds=rounds)
        idle = paired("idle simulators", {"an idle simulator": place.idle}, rounds=rounds)
    rates = {name: [{RATE: one[RATE]} for one in found] for name, found in results.items()}
    busy = {name: [without(one, RATE) for one in found] for name, found in results.items() if name != BARE}
    return [
        section("simulators", RATE_NOTES.format(demos=demos), rates, goals(rates)),
        section("a busy simulator", BUSY_NOTES, busy),
        section("an idle simulator", IDLE_NOTES, idle),
    ]


def goals(rates: Mapping[str, Sequence[Figures]]) -> Callable[[Mapping[str, Figures]], list[Goal]]:
    """What was to be reached; ratios are of runs in the same round, their median is judged."""

    def ratio(one: str, other: str) -> float:
        pairs = zip(rates[one], rates[other], strict=True)
        return round(statistics.median(a[RATE] / b[RATE] for a, b in pairs), 3)

    return lambda _: [
        at_least("simulators: two, × one", ratio(name_of(2), name_of(1)), 1.8),
        at_least("simulators: one, × bare run()", ratio(name_of(1), BARE), 0.95),
    ]


def name_of(count: int) -> str:
    """A contender's name."""
    return f"{count} simulator{'s' if count > 1 else ''}"


def without(figures: Figures, name: str) -> Figures:
    """All figures but one."""
    return {key: value for key, value in figures.items() if key != name}


@dataclass
class Hall:
    """Sim services under a supervisor, and their Redis.

    Attributes:
        run_dir: The run's directory.
        jobs: The queue.
        meter: Of their Redis.
        asked: How often jobs were asked so far; makes each a new question.
    """

    run_dir: Path
    jobs: Jobs
    meter: Meter
    asked: int = 0

    def round(self, count: int, demos: int) -> Figures:
        """Lets ``count`` simulators work at once, on a store that knows nothing yet."""
        self.forget()
        self.meter.start()
        records = self.collect(f"round {self.asked}", count, demos)
        work = self.meter.work()
        started_ms = min(record.started_ms or 0 for record in records)
        took_s = (max(record.finished_ms or 0 for record in records) - started_ms) / 1000
        simulator_s = count * took_s
        # Submitting sets a job's fields twice, starting and completing it once each.
        told = work.writes - 4 * count
        return {
            RATE: 60 * count * demos / took_s,
            "lease_messages_per_s": work.renewals / simulator_s,
            "progress_per_s": told / simulator_s,
            "redis_us_per_s": work.cpu_s / simulator_s * 1e6,
            "in_bytes_per_s": work.in_bytes / simulator_s,
            "out_bytes_per_s": work.out_bytes / simulator_s,
            MEMORY: self.peak_memory_mb(),
        }

    def idle(self) -> Figures:
        """Lets all simulators wait for work."""
        self.meter.start()
        time.sleep(IDLE_S)
        work = self.meter.work()
        return {
            "claims_per_s": work.scripts / IDLE_S / SIMULATORS,
            "commands_per_s": work.commands / IDLE_S / SIMULATORS,
            "redis_us_per_s": work.cpu_s / IDLE_S / SIMULATORS * 1e6,
        }

    def collect(self, key: str, count: int, demos: int) -> list[JobRecord]:
        """Submits one job a simulator and waits until all are recorded."""
        self.asked += 1
        spec = questions.configuration(demos * count)
        ids = [
            self.jobs.submit(Job(stage=questions.STAGE, key=key, spec=spec, shard=shard, shards=count)).job_id
            for shard in range(count)
        ]
        return [self.recorded(job_id) for job_id in ids]

    def recorded(self, job_id: str) -> JobRecord:
        """Waits for a job's result, looking as often as the runner does.

        Raises:
            RuntimeError: It failed, or took too long.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        while not (record := self.jobs.get(job_id)).final:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{job_id} is {record.state} after {PATIENCE_S:g} s; see {self.run_dir}")
            time.sleep(POLL_S)
        if record.state != "done":
            raise RuntimeError(f"{job_id} {record.state}: {record.error}")
        return record

    def forget(self) -> None:
        """Empties the store: what is there already would not be written again."""
        shutil.rmtree(self.run_dir / "store" / "objects", ignore_errors=True)

    def peak_memory_mb(self) -> float:
        """The most memory of an agent and its worker so far, of the largest simulator [MB]."""
        state = read_state(self.run_dir)
        agents = [one.identity.pid for one in state.processes.values() if one.identity] if state else []
        return max(sum(peak_mb(pid) for pid in (agent, *children(agent))) for agent in agents)


@contextlib.contextmanager
def hall(directory: Path) -> Iterator[Hall]:
    """Starts the simulators and waits until each has its worker process."""
    run_dir = directory / "run"
    with EmbeddedSupervisor(run_dir, ["sim"], [f"sim={SIMULATORS}"]) as state:
        redis = connect(state.redis_url)
        await_workers(state)
        yield Hall(run_dir, Jobs(redis, run_id=run_dir.name), Meter(redis))
        redis.close()


def await_workers(state: SupervisorState) -> None:
    """Waits until every agent has its worker: then none takes a second job before another its first."""
    deadline_s = time.monotonic() + PATIENCE_S
    agents = [one.identity.pid for one in state.processes.values() if one.identity]
    while not all(children(agent) for agent in agents):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not every simulator has a worker after {PATIENCE_S:g} s")
        time.sleep(POLL_S)


def children(pid: int) -> list[int]:
    """The processes that a process started. Source: proc(5), ``/proc/<pid>/task/<tid>/children``."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def peak_mb(pid: int) -> float:
    """The most memory that a process had in RAM [MB]. Source: proc(5), ``VmHWM``, in kB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def bare(demos: int, keep: Path | None = None) -> Figures:
    """The stage alone, in a warm process of its own.

    Args:
        demos: Demonstrations.
        keep: Where its episodes stay; removed when None.
    """
    with tempfile.TemporaryDirectory() as directory:
        work = keep or Path(directory)
        command = [sys.executable, str(HERE / "bare_stage.py"), str(demos), str(work)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=PATIENCE_S).stdout
    return {RATE: 60 * demos / json.loads(out)["took_s"]}
