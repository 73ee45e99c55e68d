"""``sim2or jobs`` as a person reads it, on a real Redis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from sim2or.bus.jobs import Claim, Jobs
from sim2or.bus.journal import NAME, Journal
from sim2or.bus.server import PrivateRedis
from sim2or.cli.jobs import duration
from sim2or.cli.main import app
from sim2or.messages.job import Job, JobFailure, JobResult, Progress
from typer.testing import CliRunner

Command = Callable[..., str]


def job(key: str) -> Job:
    return Job(
        stage="train", key=key, spec={"steps": 3}, inputs={"data": ("sha256:0",)}, run_id="r", name=key
    )


def taken(jobs: Jobs, worker: str = "trainer@lab:12-ab") -> Claim:
    claim = jobs.claim("train", worker, block_s=5.0)
    assert claim is not None
    return claim


@pytest.fixture
def jobs(redis: Redis) -> Jobs:
    """An empty queue."""
    return Jobs(redis, retry_delays_s={"transient": 60.0})


@pytest.fixture
def command(redis_server: PrivateRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs ``sim2or jobs …`` in an empty directory and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIM2OR_REDIS_URL", redis_server.url)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["jobs", *arguments, "--run", "r"])
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_a_list_says_who_works_on_what_and_how_long(jobs: Jobs, command: Command) -> None:
    """A running job shows worker, progress and time left; a delayed one when it is tried again."""
    jobs.submit(job("late"))
    jobs.fail(taken(jobs), JobFailure(kind="transient", message="store away"))
    jobs.submit(job("busy"))
    jobs.progress(taken(jobs), Progress(done=30, total=120, unit="steps", eta_s=5400.0))
    jobs.submit(job("next"))
    late, busy, *_ = [line for line in command("ls").splitlines() if line.lstrip().startswith("train-")]
    assert "queued, retry in" in late
    assert all(
        words in busy for words in ("busy", "running", "30/120 steps (25 %)", "1 h ", "trainer@lab:12-ab")
    )
    standing = command("ls").splitlines()[-1]
    assert standing.startswith("train: 1 running, 1 queued (the first waits ")
    assert standing.endswith("1 to be retried, 0 done, 0 failed for good")
    assert "busy" not in command("ls", "--state", "done")


def test_dead_letters_tell_worker_and_reason(jobs: Jobs, command: Command) -> None:
    """One line a job: what it was, how often it was tried, by whom, why it failed, and what to do."""
    job_id = jobs.submit(job("poison")).job_id
    jobs.fail(
        taken(jobs), JobFailure(kind="permanent", message="no camera 'wrist'", traceback="Traceback: here")
    )
    first, *_, last = command("dead").splitlines()
    assert first.startswith(f"{job_id} poison failed after 1 try by trainer@lab:12-ab, ")
    assert first.endswith("ago: no camera 'wrist'")
    assert "sim2or jobs retry JOB --run r" in last
    shown = command("show", job_id)
    for words in (
        "priority normal",
        "worker     trainer@lab:12-ab",
        "input      data: sha256:0",
        "spec       steps: 3",
    ):
        assert words in shown
    assert "permanent: no camera 'wrist'\nTraceback: here" in shown
    assert '"message": "no camera \'wrist\'"' in command("show", job_id, "--json")


def test_what_a_person_does_is_in_the_journal(jobs: Jobs, command: Command, tmp_path: Path) -> None:
    """A cancelled job stays cancelled when the bus is lost, and a retried one is brought back."""
    path = tmp_path / "runs" / "r" / NAME
    job_id = jobs.submit(job("a")).job_id
    Journal(path).note_submitted(job("a"))
    assert "cancelled" in command("cancel", job_id)
    assert Journal(path).unfinished == []
    assert "had already ended" in command("cancel", job_id)
    assert "queued" in command("retry", job_id)
    assert [one.key for one, _ in Journal(path).unfinished] == ["a"]
    assert "is neither failed, dead nor cancelled" in command("retry", job_id)


def test_nothing_is_forgotten_but_by_a_person(jobs: Jobs, command: Command, redis: Redis) -> None:
    """Pruning takes what ended long enough ago, jobs and events, and leaves what is unfinished."""
    jobs.submit(job("done"))
    jobs.complete(taken(jobs), JobResult())
    jobs.submit(job("waiting"))
    assert command("prune") == "forgot 0 jobs and 0 events older than 30 days\n"
    assert command("prune", "--older-days", "0").startswith("forgot 1 jobs and ")
    assert [record.job.key for record in jobs.list()] == ["waiting"]
    assert redis.xlen("events") <= 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (12.3, "12 s"),
        (185, "3 min 5 s"),
        (7440, "2 h 4 min"),
        (262_800, "3 d 1 h"),
    ],
)
def test_times_are_short(seconds: float, text: str) -> None:
    """Two units at most."""
    assert duration(seconds) == text
