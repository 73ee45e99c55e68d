"""Jobs per second, and the time from a job's submission to its start: the lease queue, celery and taskiq.

Each contender has one worker process that runs one job at a time, on a Redis of the same kind with an
append-only file. A round has two parts: a backlog that is submitted before the worker starts is worked off
(rate from 10 % to 100 %), and an idle worker gets 100 jobs at 50 a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import queue_workers
from paired import Figures, Section, paired, section
from queue_workers import LINE_BYTES, STAGE
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import PrivateRedis, connect, start
from sim2or.goals import Goal, at_least, at_most
from sim2or.messages.job import Job

HERE = Path(__file__).parent
LATENCY_JOBS = 100
PERIOD_S = 0.02
PATIENCE_S = 60.0
FIRST_LATENCY_JOB = 1_000_000
OURS, PRODUCT = "sim2or (everysec)", "sim2or (always)"
CELERY, SOLO, TASKIQ = "celery (prefork)", "celery (solo)", "taskiq (streams)"
NOTES = (
    "no-op jobs that append 40 bytes; one worker process, one job at a time; jobs_per_s: of a backlog, from "
    "10 % to 100 %; p50_ms, p99_ms: submission to start of 100 jobs at 50/s into an idle worker. Redis on a "
    "unix socket, appendonly, appendfsync everysec; 'always' is the product's setting. celery: acks_late, "
    "prefetch 1, no results, one child (prefork, its default) or in its main process (solo), without gossip, "
    "mingle and heartbeat. taskiq: RedisStreamBroker with its defaults (reads 100 at once), one task at a "
    "time. sim2or: leases, fencing, events and the result in one step with the next claim."
)

Submit = Callable[[int], object]


@dataclass(frozen=True)
class Contender:
    """One queue.

    Attributes:
        backlog: How many jobs its backlog has: some seconds of work.
        command: Starts its worker, given the bus's address and the file.
        submitter: Opens what submits a job by its number.
        fsync: ``appendfsync`` of its Redis.
    """

    backlog: int
    command: Callable[[str, Path], list[str]]
    submitter: Callable[[], contextlib.AbstractContextManager[Submit]]
    fsync: str = "everysec"


def our_command(url: str, path: Path) -> list[str]:
    """Our worker."""
    return [sys.executable, str(HERE / "queue_workers.py"), url, str(path)]


def celery_command(pool: str, _: str, __: Path) -> list[str]:
    """Celery's worker."""
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
    return [sys.executable, "-m", "celery", "-A", "queue_workers", "worker", "-P", pool, "-c", "1", *quiet]


def taskiq_command(_: str, __: Path) -> list[str]:
    """Taskiq's worker."""
    one = ["--workers", "1", "--max-async-tasks", "1", "--log-level", "ERROR"]
    return [sys.executable, "-m", "taskiq", "worker", "queue_workers:taskiq_broker", *one]


@contextlib.contextmanager
def our_submitter() -> Iterator[Submit]:
    """Submits to ours."""
    redis = connect(os.environ["BENCH_QUEUE_URL"])
    jobs = Jobs(redis)
    yield lambda number: jobs.submit(Job(stage=STAGE, key=str(number), spec={"number": number}))
    redis.close()


@contextlib.contextmanager
def celery_submitter() -> Iterator[Submit]:
    """Submits to celery."""
    app = queue_workers.celery_app()
    task = app.tasks[STAGE]
    yield task.delay
    app.close()


@contextlib.contextmanager
def taskiq_submitter() -> Iterator[Submit]:
    """Submits to taskiq."""
    loop = asyncio.new_event_loop()
    broker = queue_workers.taskiq_broker()
    loop.run_until_complete(broker.startup())
    task = broker.find_task(STAGE)
    yield lambda number: loop.run_until_complete(task.kiq(number))
    loop.run_until_complete(broker.shutdown())
    loop.close()


CONTENDERS: Mapping[str, Contender] = {
    OURS: Contender(4000, our_command, our_submitter),
    PRODUCT: Contender(3000, our_command, our_submitter, fsync="always"),
    CELERY: Contender(1500, partial(celery_command, "prefork"), celery_submitter),
    SOLO: Contender(1500, partial(celery_command, "solo"), celery_submitter),
    TASKIQ: Contender(1500, taskiq_command, taskiq_submitter),
}


def measure(rounds: int) -> list[Section]:
    """Runs every contender ``rounds`` times, in turn."""
    names = {name: partial(one_round, contender) for name, contender in CONTENDERS.items()}
    return [section("job queue", NOTES, paired("job queue", names, rounds=rounds), goals)]


def goals(figures: Mapping[str, Figures]) -> list[Goal]:
    """What was to be reached, against celery as it runs by default."""
    rate = figures[OURS]["jobs_per_s"]
    return [
        at_least(
            "job queue: jobs/s, × celery (prefork, its default)", rate / figures[CELERY]["jobs_per_s"], 10
        ),
        at_most("job queue: submission to start p50 [ms]", figures[OURS]["p50_ms"], 1.0),
    ]


def one_round(contender: Contender) -> Figures:
    """One contender's backlog and latencies, on a Redis of its own."""
    with tempfile.TemporaryDirectory() as directory, bus(Path(directory), contender.fsync) as server:
        path = Path(directory) / "effects"
        path.touch()
        os.environ |= {"BENCH_QUEUE_URL": server.url, "BENCH_QUEUE_FILE": str(path)}
        with contender.submitter() as submit:
            for number in range(contender.backlog):
                submit(number)
            with worker(contender.command(server.url, path), Path(directory) / "worker.log"):
                rate = backlog_rate(path, contender.backlog)
                latencies_ms = start_latencies_ms(submit, path)
    ordered = sorted(latencies_ms)
    return {
        "jobs_per_s": rate,
        "p50_ms": statistics.median(ordered),
        "p99_ms": ordered[round(0.99 * (len(ordered) - 1))],
    }


@contextlib.contextmanager
def bus(directory: Path, fsync: str) -> Iterator[PrivateRedis]:
    """A Redis of the round's own."""
    server = start(directory / "redis")
    redis = connect(server.url)
    redis.config_set("appendfsync", fsync)
    redis.close()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def worker(command: list[str], log: Path) -> Iterator[None]:
    """A worker process, ended by force."""
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": paths},
            cwd=HERE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
    except TimeoutError as error:
        raise TimeoutError(f"{error}\n{log.read_text(errors='replace')[-2000:]}") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def wait_for(path: Path, lines: int) -> None:
    """Waits until a file has so many lines; looks seldom, so as not to disturb."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (found := path.stat().st_size // LINE_BYTES) < lines:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{found} of {lines} jobs ran in {PATIENCE_S:g} s")
        time.sleep(0.01)


def starts_ns(path: Path) -> dict[int, int]:
    """When each job was started [ns], by its number."""
    return {int(number): int(at) for number, at in (line.split() for line in path.read_text().splitlines())}


def backlog_rate(path: Path, total: int) -> float:
    """How fast the backlog was worked off, from 10 % on [jobs/s]."""
    wait_for(path, total)
    times = sorted(starts_ns(path).values())
    first = total // 10
    return (total - 1 - first) / ((times[-1] - times[first]) * 1e-9)


def start_latencies_ms(submit: Submit, path: Path) -> list[float]:
    """From submission to start of jobs that come to an idle worker [ms]."""
    before = path.stat().st_size // LINE_BYTES
    submitted_ns: dict[int, int] = {}
    next_s = time.monotonic() + 0.5
    for number in range(FIRST_LATENCY_JOB, FIRST_LATENCY_JOB + LATENCY_JOBS):
        time.sleep(max(0.0, next_s - time.monotonic()))
        next_s += PERIOD_S
        submitted_ns[number] = time.monotonic_ns()
        submit(number)
    wait_for(path, before + LATENCY_JOBS)
    started_ns = starts_ns(path)
    return [(started_ns[number] - at) * 1e-6 for number, at in submitted_ns.items()]
