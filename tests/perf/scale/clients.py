"""How much one Redis takes: jobs and lease messages per second from many clients, and agents that wait."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import lease_queue
import questions
from lease_queue import backlog_rate, bus
from meter import Meter
from operations import LONG_S, worker
from paired import Figures, Section, paired, section
from redis import Redis
from sim2or.bus.jobs import Claim, Jobs
from sim2or.bus.server import connect

WORKERS = (1, 2, 4, 8)
TELLERS = (1, 4, 16)
WAITING = (0, 50, 200)
BACKLOG = 2000
WINDOW_S, START_S = 1.5, 0.5
WAITING_S = 4.0
PATIENCE_S = 60.0
ASK_FOR_S = 0.5
"""How long an agent waits for work of all its stages together. Source: ``Agent._claim`` in service.py."""

SIM_STAGES = ("collect", "rollout")

JOB_NOTES = (
    f"A backlog of {BACKLOG} no-op jobs, worked off by so many worker processes, one job at a time each; "
    "Redis with appendfsync always. jobs_per_s: from 10 % to 100 %; redis_us_per_job: CPU time of the server "
    "process. Clients and server share two cores: the clients' Python is what fills them."
)
TELL_NOTES = (
    "Lease renewals with progress from so many processes, each as fast as answers come, for "
    f"{WINDOW_S:g} s. redis_share: CPU time of the server per second."
)
WAIT_NOTES = (
    "So many connections that ask for jobs of the sim service's two stages as an idle agent does, for "
    f"{WAITING_S:g} s; nothing waits or runs, both stages had a job before. Threads of one process. Figures "
    "per agent; of 0 agents: of a Redis that nobody asks. memory_bytes: for the connection and its buffers."
)


def measure(rounds: int, _: int) -> list[Section]:
    """Runs each load ``rounds`` times, in turn."""
    jobs = {f"{count} workers": partial(jobs_of, count) for count in WORKERS}
    tellers = {f"{count} clients": partial(lease_messages_of, count) for count in TELLERS}
    waiting = {waiting_name(count): partial(waiting_for, count) for count in WAITING}
    return [
        section("jobs per second", JOB_NOTES, paired("jobs per second", jobs, rounds=rounds)),
        section("lease messages per second", TELL_NOTES, paired("lease messages", tellers, rounds=rounds)),
        section("waiting agents", WAIT_NOTES, paired("waiting agents", waiting, rounds=rounds)),
    ]


def waiting_name(count: int) -> str:
    """A contender's name."""
    return f"{count} agents"


def jobs_of(count: int) -> Figures:
    """A backlog, worked off by ``count`` worker processes."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(bus(directory, "always"))
        path = directory / "effects"
        path.touch()
        os.environ["BENCH_QUEUE_URL"] = server.url
        with lease_queue.our_submitter() as submit:
            for number in range(BACKLOG):
                submit(number)
        redis = connect(server.url)
        meter = Meter(redis)
        for number in range(count):
            log = directory / f"worker-{number}.log"
            stack.enter_context(lease_queue.worker(lease_queue.our_command(server.url, path), log))
        rate = backlog_rate(path, BACKLOG)
        work = meter.work()
        redis.close()
    return {"jobs_per_s": rate, "redis_us_per_job": work.cpu_s / BACKLOG * 1e6}


def lease_messages_of(count: int) -> Figures:
    """Progress of ``count`` jobs, told by a process each."""
    with tempfile.TemporaryDirectory() as directory, bus(Path(directory), "always") as server:
        redis = connect(server.url)
        claims = claimed(Jobs(redis, lease_s=LONG_S), count)
        meter = Meter(redis)
        begin_s = time.monotonic() + START_S
        forked = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(count, mp_context=forked) as pool:
            told = sum(pool.map(partial(tell, server.url, begin_s), claims))
        work = meter.work()
        redis.close()
    return {
        "messages_per_s": told / WINDOW_S,
        "redis_us": work.cpu_s / work.renewals * 1e6,
        "redis_share": work.cpu_s / WINDOW_S,
    }


def claimed(jobs: Jobs, count: int) -> list[Claim]:
    """Jobs that are running, each on a worker of its own."""
    for number in range(count):
        jobs.submit(questions.question(number))
    found = [jobs.claim(questions.STAGE, worker(number), block_s=0.0) for number in range(count)]
    return [claim for claim in found if claim]


def tell(url: str, begin_s: float, claim: Claim) -> int:
    """Tells progress as fast as it is taken; how often within the window."""
    redis = connect(url)
    jobs, told, end_s = Jobs(redis, lease_s=LONG_S), 0, begin_s + WINDOW_S
    while (now_s := time.monotonic()) < end_s:
        jobs.progress(claim, questions.progress(told))
        told += now_s >= begin_s
    redis.close()
    return told


def waiting_for(count: int) -> Figures:
    """``count`` agents that wait for work."""
    with tempfile.TemporaryDirectory() as directory, bus(Path(directory), "always") as server:
        redis = connect(server.url)
        for stage in SIM_STAGES:
            work_once(Jobs(redis), stage)
        all_here, ended = threading.Barrier(count + 1), threading.Event()
        agents = [
            threading.Thread(target=wait_for_work, args=(server.url, worker(number), all_here, ended))
            for number in range(count)
        ]
        alone_bytes = client_bytes(redis)
        for agent in agents:
            agent.start()
        all_here.wait(PATIENCE_S)
        meter = Meter(redis)
        time.sleep(WAITING_S)
        work = meter.work()
        memory_bytes = client_bytes(redis) - alone_bytes
        ended.set()
        for agent in agents:
            agent.join()
        redis.close()
    agent_s = WAITING_S * max(count, 1)
    return {
        "claims_per_s": work.scripts / agent_s,
        "commands_per_s": work.commands / agent_s,
        "redis_us_per_s": work.cpu_s / agent_s * 1e6,
        "memory_bytes": memory_bytes / max(count, 1),
    }


def work_once(jobs: Jobs, stage: str) -> None:
    """Lets a stage have had a job, so that its queue exists."""
    jobs.submit(questions.question(0).model_copy(update={"stage": stage}))
    claim = jobs.claim(stage, worker(0), block_s=0.0)
    assert claim is not None
    jobs.complete(claim, questions.answer(0))


def client_bytes(redis: Redis) -> float:
    """Memory of all connections and their buffers."""
    return float(redis.info("memory")["mem_clients_normal"])


def wait_for_work(url: str, name: str, all_here: threading.Barrier, ended: threading.Event) -> None:
    """Asks for jobs of the sim service's stages, one stage after the other, until told to end."""
    redis = connect(url)
    jobs = Jobs(redis)
    ask(jobs, name)
    all_here.wait(PATIENCE_S)
    while not ended.is_set():
        ask(jobs, name)
    redis.close()


def ask(jobs: Jobs, name: str) -> None:
    """Waits for work of every stage, as long as an agent does before it looks after itself."""
    for stage in SIM_STAGES:
        jobs.claim(stage, name, block_s=ASK_FOR_S / len(SIM_STAGES))
