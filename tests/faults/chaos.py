"""The chaos soak: all faults mixed, drawn from a seed, against real processes; lost must be 0.

``python tests/faults/chaos.py --minutes 10 --seed 1``: agents and workers are killed, frozen and told to
stop, Redis is killed, connections are cut and reset, the disk fills up, jobs are cancelled and some are
poison. Then everything heals, the queue drains, and a report is written. Exit status 1: something that was
acknowledged is lost, was recorded twice, ran twice at once, or came out wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from chaos_submitter import LOG
from proxy import FaultProxy
from rich.console import Console
from rich.table import Table
from sim2or.artifacts.record import Record
from sim2or.artifacts.store import Store, write_json
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import PrivateRedis, connect
from sim2or.bus.server import start as start_redis
from sim2or.errors import Sim2OrError, TransientError
from sim2or.messages.job import JobRecord
from yard import LEASE_S, all_events, effects, environment, gone

AGENTS = 3
FAULT_PAUSE_S = (0.4, 1.6)
FROZEN_S = (1.3 * LEASE_S, 3 * LEASE_S)
DARK_S = (0.5, 3 * LEASE_S)
FULL_S = (0.5, 2.0)
DRAIN_S = 180.0
DISK_MB, DISK_MB_PER_MINUTE = 128, 32
TELL_S = 5.0
REPORT = Path("bench/chaos.json")

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Kill:
    """A process that was killed while it had a job.

    Attributes:
        victim: ``worker`` or ``agent``.
        job: Its job.
        at_ns: When, monotonic [ns].
    """

    victim: str
    job: str
    at_ns: int


@dataclass
class Later:
    """What ends a fault that lasts.

    Attributes:
        at_s: When it is due, monotonic [s].
        what: Does it.
    """

    at_s: float
    what: Callable[[], object]


@dataclass
class Scene:
    """Everything that runs, and what was done to it.

    Attributes:
        root: Directory of it all.
        disk: File system of work directories and store.
        can_fill: Whether it is small enough to be filled.
        seed: Of every choice.
        agents: Running agents.
        proxies: One for each agent but the first, which uses Redis's own socket.
        woken: Processes that were frozen at some time.
    """

    root: Path
    disk: Path
    can_fill: bool
    seed: int
    redis: PrivateRedis
    proxies: list[FaultProxy]
    draw: random.Random = field(init=False)
    agents: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    submitter: subprocess.Popen[bytes] | None = None
    kills: list[Kill] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    faults: Counter[str] = field(default_factory=Counter)
    later: list[Later] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    woken: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        (self.root / "effects").mkdir(exist_ok=True)
        self.jobs = Jobs(connect(self.redis.url, patience_s=1), lease_s=LEASE_S)

    @property
    def store(self) -> Store:
        """Where results go."""
        return Store(self.disk / "store")

    @property
    def submitted(self) -> dict[str, dict[str, Any]]:
        """Acknowledged submissions by job."""
        return {line["job"]: line for line in Record(self.root / LOG).lines}

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The stage's lines of one kind."""
        return effects.read(self.root / "effects", name)

    def keep_agents(self) -> None:
        """Starts agents that have ended, as a supervisor would."""
        for number in range(AGENTS):
            if number not in self.agents or self.agents[number].poll() is not None:
                self.agents[number] = self._start_agent(number)

    def keep_running(self) -> None:
        """Starts what has ended, and ends faults that are over."""
        self.keep_agents()
        if self.submitter is None or self.submitter.poll() is not None:
            self.submitter = self._start("chaos_submitter.py", self.redis.url, str(self.root), str(self.seed))
        for due in [one for one in self.later if time.monotonic() >= one.at_s]:
            self.later.remove(due)
            due.what()

    def _start_agent(self, number: int) -> subprocess.Popen[bytes]:
        url = f"redis://127.0.0.1:{self.proxies[number - 1].port}/0" if number else self.redis.url
        extra = {"SIM2OR_STORE": str(self.store.root), "SIM2OR_REDIS_URL": url}
        return self._start("-m", "sim2or_drill", extra=extra)

    def _start(self, *command: str, extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        if command[0].endswith(".py"):
            command = (str(Path(__file__).with_name(command[0])), *command[1:])
        with (self.root / "processes.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *command],
                env=environment(self.disk, self.redis.url, extra),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def at_work(self) -> list[dict[str, Any]]:
        """The start lines of jobs that run now, from the stage's own lines."""
        ended = {(line["pid"], line["job"]) for line in self.lines("ends")}
        newest = {line["pid"]: line for line in self.lines("starts")}
        return [
            line
            for pid, line in newest.items()
            if not gone(pid) and (pid, line["job"]) not in ended and pid not in self.frozen
        ]

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        """Does something later."""
        self.later.append(Later(time.monotonic() + seconds, what))

    def heal(self) -> None:
        """Ends every fault that lasts."""
        for due in self.later:
            due.what()
        self.later.clear()
        for proxy in self.proxies:
            proxy.heal()


def kill_worker(scene: Scene) -> None:
    """kill -9 of a worker in the middle of a job."""
    for line in scene.draw.sample(found := scene.at_work(), min(1, len(found))):
        scene.kills.append(Kill("worker", line["job"], time.monotonic_ns()))
        with suppress(ProcessLookupError):
            os.kill(line["pid"], signal.SIGKILL)


def kill_agent(scene: Scene) -> None:
    """kill -9 of an agent, with or without a job."""
    number = scene.draw.choice(list(scene.agents))
    agent = scene.agents[number]
    if agent.pid in scene.frozen:
        return
    for line in scene.at_work():
        if line["agent"] == agent.pid:
            scene.kills.append(Kill("agent", line["job"], time.monotonic_ns()))
    agent.kill()
    agent.wait()


def stop_agent(scene: Scene) -> None:
    """SIGTERM to an agent, as a preemption."""
    scene.agents[scene.draw.choice(list(scene.agents))].terminate()


def freeze(scene: Scene) -> None:
    """SIGSTOP of an agent, half of the time with its worker, for longer than the lease."""
    agent = scene.agents[scene.draw.choice(list(scene.agents))]
    victims = [agent.pid]
    if scene.draw.random() < 0.5:
        victims += [line["pid"] for line in scene.at_work() if line["agent"] == agent.pid]
    for pid in victims:
        _signal(scene, pid, signal.SIGSTOP)
    scene.after(
        scene.draw.uniform(*FROZEN_S), lambda: [_signal(scene, pid, signal.SIGCONT) for pid in victims]
    )


def _signal(scene: Scene, pid: int, number: signal.Signals) -> None:
    (scene.frozen.add if number == signal.SIGSTOP else scene.frozen.discard)(pid)
    scene.woken.add(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_redis(scene: Scene) -> None:
    """kill -9 of Redis, which is back after a moment."""
    scene.redis.process.kill()
    scene.redis.process.wait()
    time.sleep(scene.draw.uniform(0, 1))
    socket = scene.redis.sockets / "redis.sock"
    scene.redis = start_redis(scene.root / "redis", socket=socket)


def cut(scene: Scene) -> None:
    """An agent's line to Redis is dark, or half of it."""
    proxy = scene.draw.choice(scene.proxies)
    proxy.cut(scene.draw.choice([None, "up", "down"]))
    scene.after(scene.draw.uniform(*DARK_S), proxy.heal)


def reset(scene: Scene) -> None:
    """All connections of one agent to Redis end with RST."""
    scene.draw.choice(scene.proxies).reset()


def fill_disk(scene: Scene) -> None:
    """The disk of work directories and store is full for a moment."""
    ballast = scene.disk / "ballast"
    if not scene.can_fill or ballast.exists():
        return
    space = os.statvfs(scene.disk)
    with suppress(OSError), ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, space.f_bavail * space.f_frsize - 65536))
    scene.after(scene.draw.uniform(*FULL_S), lambda: ballast.unlink(missing_ok=True))


def kill_submitter(scene: Scene) -> None:
    """kill -9 of the submitter."""
    if scene.submitter:
        scene.submitter.kill()
        scene.submitter.wait()


def cancel(scene: Scene) -> None:
    """A job that was submitted lately is cancelled, if it has not ended."""
    recent = list(scene.submitted)[-AGENTS * 3 :]
    for job in scene.draw.sample(recent, min(1, len(recent))):
        scene.asked.add(job)  # a cancellation whose reply is lost may have happened
        with suppress(TransientError):
            if scene.jobs.cancel(job):
                scene.cancelled.add(job)


FAULTS: Mapping[Callable[[Scene], None], int] = {
    kill_worker: 5,
    kill_agent: 4,
    stop_agent: 2,
    freeze: 3,
    kill_redis: 1,
    cut: 3,
    reset: 2,
    fill_disk: 1,
    kill_submitter: 1,
    cancel: 2,
}
"""Fault to its weight."""


def soak(scene: Scene, duration_s: float) -> None:
    """Breaks things until the time is over."""
    end_s = time.monotonic() + duration_s
    next_fault_s, next_tell_s = time.monotonic() + 2.0, 0.0
    while (now_s := time.monotonic()) < end_s:
        scene.keep_running()
        if now_s >= next_fault_s:
            (fault,) = scene.draw.choices(list(FAULTS), list(FAULTS.values()))
            fault(scene)
            scene.faults[fault.__name__] += 1
            next_fault_s = time.monotonic() + scene.draw.uniform(*FAULT_PAUSE_S)
        if now_s >= next_tell_s:
            tell(f"{sum(scene.faults.values())} faults, {len(scene.submitted)} submitted", end_s - now_s)
            next_tell_s = now_s + TELL_S
        time.sleep(0.05)


def drain(scene: Scene) -> None:
    """Heals everything, stops submitting, waits until every job has ended; an operator retries the dead."""
    scene.heal()
    if scene.submitter:
        scene.submitter.terminate()
        scene.submitter.wait(30)
    end_s, began_s, first = time.monotonic() + DRAIN_S, time.monotonic(), 0
    while time.monotonic() < end_s:
        scene.keep_agents()
        with suppress(TransientError):
            for record in scene.jobs.dead():
                if record.job.spec["fault"] != "poison":
                    scene.faults["dead, retried by an operator"] += scene.jobs.retry(record.job_id)
            left = scene.jobs.outstanding("drill")
            if not left:
                return
            first = max(first, left)
            spent_s = time.monotonic() - began_s
            tell(f"draining, {left} jobs left", spent_s / max(1, first - left) * left)
        time.sleep(1.0)


def tell(text: str, left_s: float) -> None:
    """A progress line."""
    console.print(f"chaos: {text}, about {left_s:.0f} s left")


def judge(scene: Scene) -> dict[str, Any]:
    """The report, from files, Redis and events."""
    events = all_events(scene.redis.url)
    submitted, records = scene.submitted, {one.job_id: one for one in scene.jobs.list()}
    starts = scene.lines("starts")
    done = Counter(event.job_id for event in events if event.kind == "job.done")
    kinds = Counter(event.kind for event in events)
    poison = {job for job, line in submitted.items() if line["fault"] == "poison"}
    states = Counter(records[job].state for job in submitted if job in records)
    lost = {
        job: records[job].state if job in records else "unknown"
        for job in submitted
        if not accounted_for(records.get(job), is_poison=job in poison, may_be_cancelled=job in scene.asked)
    }
    again = len(starts) - len({line["job"] for line in starts})
    return {
        "seed": scene.seed,
        "faults": dict(sorted(scene.faults.items())),
        "disk_was_filled": scene.can_fill,
        "submitted": len(submitted),
        "states": dict(states),
        "effects": len(starts),
        "unique_effects": len({line["job"] for line in starts}),
        "duplicates_executed": again,
        "restarts_because": {kind: kinds[f"job.{kind}"] for kind in ("lost", "retry", "released", "retried")},
        "ran_twice_at_once": list(ran_twice_at_once(starts, scene.lines("steps"), scene.woken)),
        "met_a_zombie": len(scene.lines("overlaps")),
        "recorded": sum(done.values()),
        "recorded_unique": len(done),
        "recorded_twice": sorted(job for job, times in done.items() if times > 1),
        "fenced": kinds["job.fenced"],
        "dead_poison": sum(records[job].state == "dead" for job in poison if job in records),
        "cancelled": states["cancelled"],
        "done_although_cancelled": sorted(
            job for job in scene.cancelled if job in records and records[job].state == "done"
        ),
        "wrong_results": sorted(wrong(scene, records, submitted)),
        "lost": lost,
        "recovery_s": {victim: recovery(scene.kills, starts, victim) for victim in ("worker", "agent")},
        "lease_s": LEASE_S,
    }


def accounted_for(record: JobRecord | None, *, is_poison: bool, may_be_cancelled: bool) -> bool:
    """Whether an acknowledged job ended as it should."""
    if record is None:
        return False
    expected = {"dead"} if is_poison else {"done"}
    return record.state in expected | ({"cancelled"} if may_be_cancelled else set())


def ran_twice_at_once(
    starts: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]], woken: Collection[int]
) -> Iterator[str]:
    """Steps that a process took although another had started its job since.

    One that was frozen finishes the step that it had in hand when it wakes; that one is not counted.
    """
    begun: dict[str, list[Mapping[str, Any]]] = {}
    for start in starts:
        begun.setdefault(start["job"], []).append(start)
    late = Counter[tuple[str, int]]()
    for step in steps:
        own = max(one["at_ns"] for one in begun[step["job"]] if one["pid"] == step["pid"])
        late[step["job"], step["pid"]] += any(
            own < one["at_ns"] < step["at_ns"] for one in begun[step["job"]]
        )
    for (job, pid), count in late.items():
        if count > (pid in woken):
            yield f"{job}: {count} steps too late by process {pid}{', once frozen' * (pid in woken)}"


def wrong(scene: Scene, records: Mapping[str, JobRecord], submitted: Mapping[str, object]) -> Iterator[str]:
    """Jobs whose recorded artifact does not hold exactly their own steps, every byte verified; and why."""
    for job in submitted:
        record = records.get(job)
        if record is None or record.result is None:
            continue
        try:
            out = scene.store.checkout(record.result.outputs["steps"])
            names = sorted(path.name for path in out.iterdir() if path.read_text().startswith(f"{job} "))
        except Sim2OrError as error:
            yield f"{job}: {error}"
            continue
        expected = sorted(f"{step}.txt" for step in range(record.job.spec["steps"]))
        if names != expected:
            yield f"{job}: its files with its name in them are {names}, expected {expected}"


def recovery(kills: Sequence[Kill], starts: Sequence[Mapping[str, Any]], victim: str) -> dict[str, float]:
    """Times from a kill to the next start of the same job [s], its wait behind other jobs included."""
    times = []
    for kill in kills:
        after = [line["at_ns"] for line in starts if line["job"] == kill.job and line["at_ns"] > kill.at_ns]
        if kill.victim == victim and after:
            times.append((min(after) - kill.at_ns) / 1e9)
    if not times:
        return {"count": 0}
    times.sort()
    return {
        "count": len(times),
        "p50": round(statistics.median(times), 3),
        "p95": round(times[min(len(times) - 1, int(0.95 * len(times)))], 3),
        "max": round(times[-1], 3),
    }


def failures(report: Mapping[str, Any]) -> list[str]:
    """What must not be."""
    bad = [
        name
        for name in (
            "lost",
            "recorded_twice",
            "wrong_results",
            "done_although_cancelled",
            "ran_twice_at_once",
        )
        if report[name]
    ]
    if report["recorded"] != report["recorded_unique"]:
        bad.append("recorded")
    return bad


def show(report: Mapping[str, Any]) -> None:
    """The report for people."""
    table = Table("", "", title=f"chaos, seed {report['seed']}")
    for name, value in report.items():
        shown = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
        table.add_row(
            name.replace("_", " "), str(len(value) if isinstance(value, list) or name == "lost" else shown)
        )
    console.print(table)


@contextmanager
def stage(seed: int, minutes: float) -> Iterator[Scene]:
    """Sets the scene, and ends everything in it."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2o-chaos-")))
        disk = root / "disk"
        disk.mkdir()
        size_mb = round(DISK_MB + DISK_MB_PER_MINUTE * minutes)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(disk)]
        can_fill = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        if can_fill:
            stack.callback(subprocess.run, ["umount", "--lazy", str(disk)], check=False)
        redis = start_redis(root / "redis")
        socket = redis.sockets / "redis.sock"
        proxies = [stack.enter_context(FaultProxy(socket, seed=seed + number)) for number in range(1, AGENTS)]
        scene = Scene(root, disk, can_fill, seed, redis, proxies)
        stack.callback(close, scene)
        yield scene


def close(scene: Scene) -> None:
    """Ends every process."""
    for process in [*scene.agents.values(), scene.submitter]:
        if process:
            process.kill()
            process.wait()
    scene.redis.stop()


def main() -> int:
    """Parses the command line, soaks, drains, reports."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long things are broken")
    parser.add_argument("--seed", type=int, default=1, help="of every choice")
    parser.add_argument("--out", type=Path, default=REPORT, help="the report, JSON")
    given = parser.parse_args()
    started_s = time.monotonic()
    with stage(given.seed, given.minutes) as scene:
        soak(scene, 60 * given.minutes)
        drain(scene)
        report = judge(scene) | {"minutes": given.minutes, "wall_s": round(time.monotonic() - started_s, 1)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, report)
    show(report)
    bad = failures(report)
    for name in bad:
        console.print(f"{name}: {report[name]}")
    console.print(
        f"report: {given.out}; " + (f"BROKEN PROMISES: {', '.join(bad)}" if bad else "all promises kept")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
