"""Workers and agents are killed, frozen and hung; what they did is read from files, Redis and events."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from proxy import FaultProxy
from sim2or.messages.job import Job
from yard import GRACE_S, LEASE_S, Yard, environment, gone, until

STEPS = 8
MARGIN_S = 10.0
"""A generous bound of what must happen "soon": the figures are printed, a busy machine fails nothing."""

SUBMITTER = """\
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import connect
from sim2or.messages.job import Job
job = Job.model_validate_json(sys.argv[2])
queues = [Jobs(connect(sys.argv[1])) for _ in range(10)]
together = threading.Barrier(len(queues))
def submit(jobs):
    together.wait(30)
    return jobs.submit(job).job_id
with ThreadPoolExecutor(len(queues)) as pool:
    print(*pool.map(submit, queues))
"""


def kill_at_random(yard: Yard, seed: int) -> tuple[str, float | None]:
    """One job, one kill -9 at a random moment; returns who was killed, and the time to the next start [s]."""
    draw = random.Random(seed)
    job_id = yard.submit(f"seed {seed}", steps=STEPS, pause_s=0.03, ballast_mb=0.2)
    first = yard.started(job_id)
    victim = draw.choice(["worker", "agent"])
    time.sleep(draw.uniform(0, 0.25))
    record = yard.jobs.get(job_id)
    if record.state != "running":
        return "nobody, it was done", None
    agent = yard.owner(job_id)
    os.kill(first["pid"] if victim == "worker" else agent.pid, signal.SIGKILL)
    killed_ns = time.monotonic_ns()
    if victim == "agent":
        agent.wait()
        yard.agent()
    record = yard.wait(job_id, "done")
    starts = yard.lines("starts", job_id)
    assert record.attempts == yard.kinds(job_id)["job.started"]
    assert yard.kinds(job_id)["job.done"] == 1
    assert sorted(yard.files(record)) == sorted(f"{step}.txt" for step in range(STEPS))
    assert all(text.startswith(job_id) and len(text) > 200_000 for text in yard.files(record).values())
    return victim, (starts[1]["at_ns"] - killed_ns) / 1e9 if len(starts) > 1 else None


def survive_kills(yard: Yard, seeds: range) -> None:
    """Kills at random points of many jobs, then looks for what was left behind."""
    for _ in range(2):
        yard.agent()
    figures = {seed: kill_at_random(yard, seed) for seed in seeds}
    waits_s = {seed: (who, wait_s) for seed, (who, wait_s) in figures.items() if wait_s is not None}
    for seed, (who, wait_s) in figures.items():
        print(f"seed {seed}: {who} killed, next start after {wait_s or 0:.2f} s")
    worst_s = max(wait_s for _, wait_s in waits_s.values())
    print(f"{len(waits_s)} restarts, slowest {worst_s:.2f} s, lease {LEASE_S:g} s")
    assert len(waits_s) > len(seeds) / 4
    assert worst_s < LEASE_S + MARGIN_S
    assert yard.lines("overlaps") == []
    yard.agent()
    until(lambda: not yard.leftovers(), "end of temporary files and work directories")


@pytest.mark.faults("F1")
def test_kill_9_at_random_points_costs_an_attempt_and_nothing_else(yard: Yard) -> None:
    """Worker or agent killed anywhere in a job: it runs again, one result, all bytes right, nothing left."""
    survive_kills(yard, range(20))


@pytest.mark.deep
@pytest.mark.faults("F1")
def test_kill_9_at_a_hundred_random_points(yard: Yard) -> None:
    """The same, a hundred times."""
    survive_kills(yard, range(100, 200))


@pytest.mark.faults("F2")
@pytest.mark.parametrize("frozen", ["agent", "agent and worker"])
def test_a_frozen_worker_loses_its_job_and_cannot_take_it_back(yard: Yard, frozen: str) -> None:
    """Stopped for longer than the lease, then woken: the job moved, the zombie ends, one result stands."""
    first = yard.agent()
    job_id = yard.submit(steps=30, pause_s=0.1)
    worker = yard.stepped(job_id)["pid"]
    victims = [first.pid] if frozen == "agent" else [first.pid, worker]
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    yard.agent()
    heir = yard.started(job_id, 2)["pid"]
    before = len(yard.lines("steps", job_id))
    until(lambda: len(yard.lines("steps", job_id)) > before, "a step of the heir")
    for pid in victims:
        os.kill(pid, signal.SIGCONT)
    until(lambda: gone(worker), "end of the zombie", timeout_s=GRACE_S + MARGIN_S)
    record = yard.wait(job_id, "done")
    kinds = yard.kinds(job_id)
    assert (record.attempts, kinds["job.lost"], kinds["job.done"]) == (2, 1, 1)
    assert str(heir) not in (str(worker), str(first.pid))
    steps = [line["step"] for line in yard.lines("steps", job_id) if line["pid"] == heir]
    assert len(steps) == len(set(steps))
    zombie = [
        line
        for line in yard.lines("steps", job_id)
        if line["pid"] == worker and line["at_ns"] > yard.started(job_id, 2)["at_ns"]
    ]
    assert len(zombie) <= 1  # the one in hand when it was frozen
    assert sorted(yard.files(record)) == sorted(f"{step}.txt" for step in range(30))
    assert first.poll() is None
    assert yard.wait(yard.submit("next"), "done").attempts == 1


@pytest.mark.faults("F2")
@pytest.mark.parametrize("open_file", [False, True], ids=["by name", "by open file"])
def test_the_last_write_of_a_zombie_reaches_no_artifact(yard: Yard, open_file: bool) -> None:
    """A worker in C outlives its lease and then writes once more: the heir's result is whole."""
    first = yard.agent()
    job_id = yard.submit(steps=2, fault="spoil", hold_s=int(10 * LEASE_S), open_file=open_file)
    zombie = yard.stepped(job_id)["pid"]
    os.kill(first.pid, signal.SIGSTOP)
    yard.agent()
    record = yard.wait(job_id, "done")
    assert not gone(zombie)
    until(lambda: gone(zombie), "end of the zombie")
    assert yard.files(record) == {f"{step}.txt": f"{job_id} {step}\n" for step in range(2)}
    os.kill(first.pid, signal.SIGCONT)


@pytest.mark.faults("F2")
def test_a_claim_whose_answer_came_too_late_begins_nothing(yard: Yard) -> None:
    """An agent that hears of its job after the lease is over leaves it alone: another has it by then."""
    with FaultProxy(Path(yard.redis.url.removeprefix("unix://"))) as proxy:
        late = yard.agent(url=f"redis://127.0.0.1:{proxy.port}/0")
        until(lambda: proxy.counts.bytes["down"] > 500, "conversation of the late agent with Redis")
        proxy.line("down", delay_s=2.5 * LEASE_S)
        job_id = yard.submit(steps=30, pause_s=0.1)
        until(lambda: yard.jobs.get(job_id).state == "running", "claim")
        assert yard.owner(job_id).pid == late.pid
        yard.agent()
        record = yard.wait(job_id, "done")
        proxy.heal()
        assert (record.attempts, yard.kinds(job_id)["job.lost"]) == (2, 1)
        assert len({line["pid"] for line in yard.lines("steps", job_id)}) == 1
        assert len(yard.lines("starts", job_id)) == 1


@pytest.mark.faults("F3")
def test_a_hung_job_is_ended_and_tried_again(yard: Yard) -> None:
    """Stuck in C with the interpreter's lock and no progress: SIGTERM, SIGKILL, retry, and why is told."""
    yard.agent({"SIM2OR_STALL_S": "2"})
    job_id = yard.submit(fault="hang", steps=4)
    hung = yard.started(job_id)["pid"]
    record = yard.wait(job_id, "done")
    assert gone(hung)
    assert record.attempts == 2
    (retry,) = [event for event in yard.events(job_id) if event.kind == "job.retry"]
    assert "no progress for 2 s" in retry.detail["message"]
    assert "SIM2OR_STALL_S" in retry.detail["message"]
    assert record.result is not None
    assert record.result.summary["resumed_from"] == 1


@pytest.mark.faults("F3")
def test_a_job_that_is_busy_in_c_keeps_its_lease(yard: Yard) -> None:
    """Holding the interpreter's lock for several leases, with no limit, a job is started once, never lost."""
    yard.agent()
    yard.agent()
    job_id = yard.submit(fault="hold", hold_s=round(4 * LEASE_S), steps=1)
    record = yard.wait(job_id, "done")
    assert record.attempts == 1
    assert len(yard.lines("starts", job_id)) == 1
    assert yard.kinds(job_id)["job.lost"] == 0


@pytest.mark.faults("F12")
def test_fifty_submissions_at_once_are_one_job(yard: Yard) -> None:
    """Five processes of ten threads ask the same question: one id, one start, one result."""
    yard.agent()
    job = yard.job("the same", steps=5, pause_s=0.2)
    command = [sys.executable, "-c", SUBMITTER, yard.redis.url, job.model_dump_json()]
    asked = [
        subprocess.Popen(
            command, env=environment(yard.root, yard.redis.url), stdout=subprocess.PIPE, text=True
        )
        for _ in range(5)
    ]
    told = [line for process in asked for line in process.communicate(timeout=60)[0].split()]
    assert Counter(told) == {job.job_id: 50}
    assert yard.wait(job.job_id, "done").attempts == 1
    assert len(yard.lines("starts", job.job_id)) == 1
    assert yard.kinds(job.job_id)["job.submitted"] == yard.kinds(job.job_id)["job.done"] == 1


@pytest.mark.faults("F12")
def test_an_entry_delivered_again_is_dropped(yard: Yard) -> None:
    """The job's entry copied by hand, while it runs and after it ended, starts nothing and leaves nothing."""
    yard.agent()
    yard.agent()
    job_id = yard.submit(steps=10, pause_s=0.1)
    client = yard.jobs._redis
    yard.stepped(job_id)
    for _ in range(3):
        client.xadd("jobs:drill:normal", {"id": job_id})
    record = yard.wait(job_id, "done")
    client.xadd("jobs:drill:normal", {"id": job_id})
    until(lambda: client.xlen("jobs:drill:normal") == 0, "end of the copies")
    assert record.attempts == len(yard.lines("starts", job_id)) == yard.kinds(job_id)["job.done"] == 1
    assert yard.jobs.get(job_id).state == "done"


@pytest.mark.faults("F13")
def test_poison_goes_to_the_dead_letters_and_the_queue_flows(yard: Yard) -> None:
    """A job that kills every worker is dead after five, with reason and worker; others are done meanwhile."""
    yard.agent()
    poison = yard.submit("poison", fault="poison", steps=9)
    others = [yard.submit(f"other {number}") for number in range(6)]
    for other in others:
        assert yard.wait(other, "done").attempts == 1
    record = yard.wait(poison, "dead")
    assert record.attempts == record.strikes == yard.jobs.max_deliveries == 5
    assert record.error is not None
    assert "SIGKILL" in record.error.message
    assert record.owner.startswith("drill@")
    assert [dead.job_id for dead in yard.jobs.dead()] == [poison]


@pytest.mark.faults("F13")
def test_an_unreadable_job_is_a_dead_letter_at_once(yard: Yard) -> None:
    """A job that breaks its schema is never started; the letter names the field, and the queue flows."""
    yard.agent()
    bad = yard.jobs.submit(Job(stage="drill", key="bad", spec={"effects": "x"})).job_id
    yard.wait(bad, "done", "failed")
    client = yard.jobs._redis
    broken = json.dumps({"stage": "drill", "key": "b", "shard": "first"})
    client.hset("job:drill-bad", mapping={"job": broken, "stage": "drill", "state": "queued"})
    entry = client.xadd("jobs:drill:normal", {"id": "drill-bad"})
    client.hset("job:drill-bad", mapping={"entry": entry, "stream": "jobs:drill:normal"})
    after = yard.submit("after")
    assert yard.wait(after, "done").attempts == 1
    assert client.hget("job:drill-bad", "state") == "failed"
    assert "shard" in client.hget("job:drill-bad", "error")
    assert client.zscore("jobs:dead", "drill-bad") is not None
    assert yard.lines("starts", "drill-bad") == []


@pytest.mark.faults("F19")
def test_sigterm_checkpoints_hands_back_and_the_next_attempt_goes_on(yard: Yard) -> None:
    """Told to stop, the stage unwinds, the lease is free at once, and the heir starts at the checkpoint."""
    first = yard.agent()
    job_id = yard.submit(steps=20, pause_s=0.1)
    yard.stepped(job_id, 3)
    yard.agent()
    told_s = time.monotonic()
    first.terminate()
    assert first.wait(timeout=GRACE_S + MARGIN_S) == 0
    ended_s = time.monotonic()
    heir = yard.started(job_id, 2)
    (unwound,) = yard.lines("unwound", job_id)
    print(
        f"ended {ended_s - told_s:.2f} s after SIGTERM, next start {heir['at_ns'] / 1e9 - told_s:.2f} s after"
    )
    record = yard.wait(job_id, "done")
    assert heir["step"] == unwound["step"] >= 3
    kinds = yard.kinds(job_id)
    assert (kinds["job.released"], kinds["job.lost"], kinds["job.done"], record.strikes) == (1, 0, 1, 0)
    steps = [line["step"] for line in yard.lines("steps", job_id)]
    assert sorted(steps) == list(range(20))


@pytest.mark.faults("F19")
def test_a_worker_may_use_its_whole_grace(yard: Yard) -> None:
    """A stage that unwinds for three leases keeps its job for so long, and leaves its heir a checkpoint."""
    grace = {"SIM2OR_GRACE_S": str(20 * LEASE_S)}
    first = yard.agent(grace)
    job_id = yard.submit(steps=20, pause_s=0.1, unwind_s=3 * LEASE_S)
    yard.stepped(job_id, 3)
    yard.agent(grace)
    told_s = time.monotonic()
    first.terminate()
    assert first.wait(timeout=20 * LEASE_S + MARGIN_S) == 0
    print(f"ended {time.monotonic() - told_s:.2f} s after SIGTERM, lease {LEASE_S:g} s")
    heir = yard.started(job_id, 2)
    (unwound,) = yard.lines("unwound", job_id)
    assert heir["at_ns"] > unwound["at_ns"]
    assert heir["step"] == unwound["step"] >= 3
    record = yard.wait(job_id, "done")
    kinds = yard.kinds(job_id)
    assert (kinds["job.released"], kinds["job.lost"], record.attempts, record.strikes) == (1, 0, 2, 0)
    assert yard.lines("overlaps") == []
    assert sorted(line["step"] for line in yard.lines("steps", job_id)) == list(range(20))


@pytest.mark.faults("F19")
def test_what_is_done_in_the_grace_is_recorded(yard: Yard) -> None:
    """A stage that was near its end when it was told to stop, and ends well, has not to be run again."""
    agent = yard.agent({"SIM2OR_GRACE_S": str(20 * LEASE_S)})
    job_id = yard.submit(steps=1, fault="deaf", pause_s=3 * LEASE_S)
    yard.started(job_id)
    agent.terminate()
    assert agent.wait(timeout=20 * LEASE_S + MARGIN_S) == 0
    kinds = yard.kinds(job_id)
    assert (yard.jobs.get(job_id).state, kinds["job.started"], kinds["job.released"]) == ("done", 1, 0)


@pytest.mark.faults("F19")
def test_a_grace_ends(yard: Yard) -> None:
    """A stage that unwinds for longer than its grace is ended, and its job is free at once."""
    agent = yard.agent()
    job_id = yard.submit(steps=20, pause_s=0.1, unwind_s=600)
    worker = yard.stepped(job_id)["pid"]
    agent.terminate()
    assert agent.wait(timeout=GRACE_S + MARGIN_S) == 0
    assert gone(worker)
    assert (yard.jobs.get(job_id).state, yard.lines("unwound", job_id)) == ("queued", [])


@pytest.mark.faults("F19")
def test_a_job_that_is_lost_in_the_grace_is_let_go(yard: Yard) -> None:
    """Told to stop, then without a bus: worker and agent end long before the grace, and one heir works."""
    with FaultProxy(Path(yard.redis.url.removeprefix("unix://"))) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        first = yard.agent({"SIM2OR_GRACE_S": "600"}, url=url)
        job_id = yard.submit(steps=20, pause_s=0.1, unwind_s=600)
        worker = yard.stepped(job_id)["pid"]
        first.terminate()
        until(lambda: yard.lines("told", job_id), "stage that unwinds")
        proxy.cut()
        until(lambda: gone(worker), "end of the worker", timeout_s=LEASE_S + MARGIN_S)
        yard.agent()
        yard.started(job_id, 2)
        proxy.heal()
        assert first.wait(timeout=60) == 0
    assert (yard.kinds(job_id)["job.lost"], yard.lines("overlaps")) == (1, [])
