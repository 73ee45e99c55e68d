"""Redis is killed, loses its files, is full, or takes no writes (F4, F5, F6); seen from outside."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from sim2or.artifacts.store import Store
from sim2or.bus.events import START, Events
from sim2or.bus.jobs import Jobs, Lease
from sim2or.bus.server import NOTE, connect, start
from sim2or.errors import TransientError
from sim2or.messages.event import Event
from sim2or.messages.job import Job, JobFailure, JobResult, Progress
from sim2or.process import Identity
from sim2or.supervisor import SupervisorState, read_state

sys.path.insert(0, str(Path(__file__).parents[2] / "shared" / "tests" / "toy"))
from sim2or_toy.bench import LEASE_S, Bench, gone, until, variables

PEER = Path(__file__).parent / "redis_peer.py"
SEED = 4
SUBMITTERS, WORKERS, EACH, KILLS = 3, 3, 300, 3

PIPELINE = """\
name: toy
stages:
  - id: quick
    stage: write
    with: {{count: 3, flags: {quick}}}
  - id: slow
    stage: write
    with: {{count: 25, pause_s: 0.1, flags: {slow}}}
  - stage: join
    inputs: {{numbers: [quick, slow]}}
"""


def every_event(redis: Redis) -> list[Event]:
    """All that happened."""
    found: list[Event] = []
    while batch := Events(redis).read(found[-1].id if found else START):
        found += batch
    return found


class Server:
    """A Redis that is killed and comes back on the same socket with what it had written."""

    def __init__(self, directory: Path, program: Path) -> None:
        self._directory, self._program = directory, program
        self.private = start(directory, server=program)
        self.socket = self.private.sockets / "redis.sock"

    def kill(self) -> None:
        self.private.process.kill()
        self.private.process.wait()

    def restart(self) -> None:
        self.private = start(self._directory, server=self._program, socket=self.socket)


@pytest.fixture
def server(tmp_path: Path, redis_program: Path) -> Iterator[Server]:
    """A Redis of the test's own, with an append-only file."""
    made = Server(tmp_path / "redis", redis_program)
    yield made
    made.private.stop()


@pytest.fixture
def bench(server: Server, tmp_path: Path) -> Iterator[Bench]:
    """Agents of the toy service on that Redis."""
    url = server.private.url
    made = Bench(tmp_path, Jobs(connect(url), lease_s=LEASE_S), url)
    yield made
    for agent in made.agents:
        agent.kill()
        agent.wait()


def patient_agent(bench: Bench) -> subprocess.Popen[bytes]:
    """An agent whose lease outlasts what a busy machine may need to bring Redis back."""
    extra = {"SIM2OR_LEASE_S": "20", "SIM2OR_REDIS_URL": bench.url, "SIM2OR_RUN_DIR": str(bench.root)}
    agent = subprocess.Popen(
        [sys.executable, "-m", "sim2or_toy"], env=variables(extra), stdout=subprocess.DEVNULL
    )
    bench.agents.append(agent)
    return agent


class Crowd:
    """Submitters and workers as processes."""

    def __init__(self, url: str, root: Path) -> None:
        self.acknowledged, self.effects = root / "acknowledged", root / "effects"
        self.submitters = [
            self._peer("submit", url, f"s{n}", self.acknowledged, str(EACH)) for n in range(SUBMITTERS)
        ]
        self.workers = [self._peer("work", url, f"w{n}", self.effects) for n in range(WORKERS)]

    def _peer(self, role: str, url: str, name: str, path: Path, *more: str) -> subprocess.Popen[bytes]:
        path.touch()
        return subprocess.Popen([sys.executable, PEER, role, url, name, path, *more])

    def lines(self, path: Path) -> list[str]:
        return path.read_text().splitlines()

    def end(self) -> None:
        for peer in self.submitters + self.workers:
            peer.kill()
            peer.wait()


@pytest.mark.faults("F4")
def test_what_redis_acknowledged_survives_kill_9(server: Server, tmp_path: Path) -> None:
    """Three kills under load: every acknowledged job is recorded once, and nobody had to be restarted."""
    crowd = Crowd(server.private.url, tmp_path)
    chance = random.Random(SEED)
    total = SUBMITTERS * EACH
    try:
        for number in range(KILLS):
            mark = (number + chance.random()) * total / KILLS
            until(lambda mark=mark: len(crowd.lines(crowd.acknowledged)) >= mark, "submissions")  # type: ignore[misc]
            server.kill()
            server.restart()
        for submitter in crowd.submitters:
            assert submitter.wait(timeout=60) == 0
        jobs = Jobs(connect(server.private.url))
        until(lambda: jobs.outstanding("noop") == 0, "end of all jobs", timeout_s=60)
        assert [worker.poll() for worker in crowd.workers] == [None] * WORKERS
    finally:
        crowd.end()
    acknowledged = crowd.lines(crowd.acknowledged)
    assert len(set(acknowledged)) == total
    assert {record.job_id for record in jobs.list("done")} == set(acknowledged)
    told = Counter((event.kind, event.job_id) for event in every_event(connect(server.private.url)))
    assert all(told["job.done", job_id] == 1 for job_id in acknowledged)
    effects = Counter(line.split()[0] for line in crowd.lines(crowd.effects))
    assert set(effects) == set(acknowledged)
    assert all(count <= told["job.started", job_id] for job_id, count in effects.items() if count > 1)


@pytest.mark.faults("F4")
def test_a_running_job_keeps_its_lease_when_redis_comes_back_in_time(server: Server, bench: Bench) -> None:
    """Redis dies and returns within the lease: the job goes on in the same worker, and is started once."""
    agent = patient_agent(bench)
    job_id = bench.submit(count=30, pause_s=0.1)
    until(lambda: bench.marks("wrote-5-"), "progress")
    worker = bench.worker_pid()
    server.kill()
    server.restart()
    record = bench.wait(job_id, "done")
    assert record.attempts == 1
    assert not gone(worker)
    assert agent.poll() is None
    assert len(bench.marks("started-")) == 1
    assert bench.events(job_id).count("job.done") == 1


@pytest.mark.faults("F6")
def test_a_full_redis_takes_results_but_no_new_jobs(server: Server, bench: Bench) -> None:
    """Submitting fails with an error that says what to do; what is queued runs, and is recorded."""
    redis = connect(server.private.url)
    agent = bench.agent()
    running = bench.submit(count=10, pause_s=0.1)
    waiting = bench.submit(key="waiting")
    until(lambda: bench.marks("wrote-1-"), "progress")
    redis.config_set("maxmemory", 1)
    with pytest.raises(TransientError, match="free memory or disk, or raise maxmemory"):
        bench.submit(key="refused")
    for job_id in (running, waiting):
        assert bench.wait(job_id, "done").attempts == 1
        assert bench.events(job_id).count("job.done") == 1
    redis.config_set("maxmemory", 0)
    bench.wait(bench.submit(key="refused"), "done")
    assert agent.poll() is None


@pytest.mark.faults("F6")
def test_whatever_ends_a_job_passes_a_full_redis(server: Server) -> None:
    """Claim, progress, failure, retry, release, cancel and completion need no free memory; new jobs do."""
    redis = connect(server.private.url)
    jobs = Jobs(redis)
    ids = [jobs.submit(Job(stage="train", key=str(n))).job_id for n in range(6)]
    redis.config_set("maxmemory", 1)
    claims = [jobs.claim("train", f"w{n}", block_s=0) for n in range(5)]
    done, failed, delayed, released, cancelled = [claim for claim in claims if claim]
    assert jobs.progress(done, Progress(done=1.0, total=2.0)) is Lease.OWNED
    assert jobs.complete(done, JobResult())
    jobs.fail(failed, JobFailure(kind="permanent", message="no camera"))
    jobs.fail(delayed, JobFailure(kind="transient", message="store away"))
    jobs.release(released)
    assert jobs.cancel(cancelled.job_id)
    assert jobs.renew(cancelled) is Lease.CANCELLED
    jobs.release(cancelled)
    assert jobs.cancel(ids[5])
    states = ["done", "failed", "queued", "queued", "cancelled", "cancelled"]
    assert [jobs.get(job_id).state for job_id in ids] == states
    with pytest.raises(TransientError, match="raise maxmemory"):
        jobs.submit(Job(stage="train", key="refused"))
    assert len(jobs.list()) == len(ids)


@pytest.mark.faults("F6")
def test_a_completion_waits_until_redis_takes_writes_again(server: Server, bench: Bench) -> None:
    """A job that ends while Redis is read-only is recorded once it is not, from its only attempt."""
    redis = connect(server.private.url)
    agent = patient_agent(bench)
    job_id = bench.submit(count=20, pause_s=0.1)
    until(lambda: bench.marks("wrote-17-"), "progress")
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    until(lambda: bench.marks("finished-"), "end of the stage")
    with pytest.raises(TransientError, match="Redis accepts no writes"):
        bench.submit(key="refused")
    assert bench.jobs.get(job_id).state == "running"
    redis.execute_command("REPLICAOF", "NO", "ONE")
    assert bench.wait(job_id, "done").attempts == 1
    assert bench.events(job_id).count("job.done") == 1
    bench.wait(bench.submit(key="next"), "done")
    assert agent.poll() is None


class Place:
    """A directory in which a user works."""

    def __init__(self, root: Path) -> None:
        self.root, self.run_dir = root, root / "runs" / "toy"
        self.quick, self.slow = root / "quick", root / "slow"
        self.started: list[subprocess.Popen[str]] = []
        for flags in (self.quick, self.slow):
            flags.mkdir()
        (root / "toy.yaml").write_text(PIPELINE.format(quick=self.quick, slow=self.slow))

    def sim2or(self, *arguments: str) -> subprocess.Popen[str]:
        command = subprocess.Popen(
            [sys.executable, "-c", "from sim2or.cli.main import app; app()", *arguments],
            cwd=self.root,
            env=variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(command)
        return command

    def state(self) -> SupervisorState:
        return until(lambda: s if (s := read_state(self.run_dir)) and s.ready else None, "supervisor")

    def lose_the_volume(self) -> None:
        """Kills Redis and deletes its files before the supervisor can start it again."""
        supervisor = self.state().identity.pid
        directory = self.run_dir / "redis"
        redis = Identity.model_validate_json((directory / NOTE).read_bytes())
        os.kill(supervisor, signal.SIGSTOP)
        try:
            os.kill(redis.pid, signal.SIGKILL)
            until(lambda: gone(redis.pid), "end of Redis")
            shutil.rmtree(directory / "appendonlydir", ignore_errors=True)
            (directory / "appendonly.aof").unlink(missing_ok=True)
        finally:
            os.kill(supervisor, signal.SIGCONT)

    def marks(self, flags: Path, prefix: str) -> int:
        return len(list(flags.glob(f"{prefix}*")))

    def events(self) -> str:
        return self.sim2or("events", "--run", "toy").communicate(timeout=30)[0]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An empty directory; what was started in it is killed at the end."""
    made = Place(tmp_path)
    yield made
    for command in made.started:
        command.kill()
        command.wait()


@pytest.mark.faults("F5")
def test_a_run_goes_on_when_its_redis_comes_back_empty(place: Place) -> None:
    """Its file is lost in the middle of a run: what was done is not done again, the rest is, loudly."""
    run = place.sim2or("run", "toy.yaml")
    until(lambda: place.marks(place.slow, "wrote-5-"), "progress")
    until(lambda: '"ended"' in (place.run_dir / "journal.jsonl").read_text(), "end of the quick job")
    place.lose_the_volume()
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output
    assert "came back empty" in output + (place.run_dir / "supervisor.log").read_text()
    assert place.marks(place.quick, "started-") == 1
    assert (place.marks(place.slow, "started-"), place.marks(place.slow, "finished-")) == (2, 1)
    events = place.events()
    assert events.count("bus.restored") == 1
    assert events.count("job.done") == 3
    assert sum(int(p.read_text()) for p in (place.run_dir / "report").iterdir()) == 3 + 300
    again = place.sim2or("run", "toy.yaml")
    assert again.communicate(timeout=60)[0].count("reused") == 3


@pytest.mark.faults("F5")
def test_services_finish_what_a_dead_submitter_asked_for(place: Place) -> None:
    """The submitter is dead and Redis lost its files: the supervisor queues the journal's unfinished jobs."""
    place.sim2or("up", "--run", "toy", "--services", "toy")
    place.state()
    run = place.sim2or("run", "toy.yaml")
    until(lambda: place.marks(place.slow, "wrote-5-"), "progress")
    run.kill()
    run.communicate()
    place.lose_the_volume()
    until(lambda: place.marks(place.slow, "finished-"), "end of the slow job", timeout_s=60)
    until(lambda: place.events().count("job.done") == 2, "record of both jobs")
    assert place.marks(place.quick, "started-") == 1
    assert len(list(Store(place.run_dir / "store").digests())) == 2
