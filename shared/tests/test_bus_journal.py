"""The journal of a run, and what it brings back to a bus that came back empty."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis
from sim2or.bus.events import Events
from sim2or.bus.jobs import Claim, Jobs
from sim2or.bus.journal import Journal, Recovered, recover
from sim2or.errors import ConfigError, TransientError
from sim2or.messages.job import Job, JobFailure, JobResult

MODEL = "sha256:" + "1" * 64
RESULT = JobResult(outputs={"model": MODEL}, kinds={"model": "model"}, summary={"loss": 0.25})


def job(key: str) -> Job:
    return Job(stage="train", key=key, spec={"steps": 3}, run_id="r", name=key)


class Submitter:
    """One who notes what it submits, as the runner does."""

    def __init__(self, redis: Redis, path: Path) -> None:
        self.jobs, self.events, self.path = Jobs(redis), Events(redis), path
        self.journal = Journal(path)
        self.store = {MODEL}
        assert self.recover() is None

    def recover(self, *, resubmit: bool = True) -> Recovered | None:
        return recover(
            self.jobs,
            self.journal,
            self.events,
            holds=self.store.__contains__,
            resubmit=resubmit,
            run_id="r",
        )

    def submit(self, key: str) -> str:
        submitted = self.jobs.submit(job(key))
        self.journal.note_submitted(job(key))
        return submitted.job_id

    def claim(self, worker: str = "w") -> Claim:
        claim = self.jobs.claim("train", worker, block_s=5.0)
        assert claim is not None
        return claim

    def do(self, key: str) -> str:
        """Submits a job, does it, and notes its end."""
        job_id = self.submit(key)
        assert self.jobs.complete(self.claim(), RESULT)
        self.journal.note_ended(self.jobs.get(job_id))
        return job_id

    def told(self) -> list[str]:
        return [event.kind for event in self.events.read()]


@pytest.fixture
def submitter(redis: Redis, tmp_path: Path) -> Submitter:
    """A submitter on an empty bus, with a new journal."""
    return Submitter(redis, tmp_path / "run" / "journal.jsonl")


def test_an_empty_bus_gets_back_what_was_done_and_what_was_not(submitter: Submitter, redis: Redis) -> None:
    """The done job is done with its result and never started; the unfinished ones are queued; it is told."""
    done = submitter.do("done")
    before = submitter.jobs.get(done)
    waiting, taken = submitter.submit("waiting"), submitter.submit("taken")
    submitter.claim("lost")
    previous = submitter.jobs.epoch()
    redis.flushall()
    recovered = submitter.recover()
    assert recovered is not None
    assert (recovered.previous, recovered.epoch) == (previous, submitter.jobs.epoch())
    assert (recovered.restored, recovered.resubmitted, recovered.missing) == (1, 2, 0)
    assert submitter.jobs.get(done) == before
    assert [submitter.jobs.get(one).state for one in (waiting, taken)] == ["queued", "queued"]
    assert submitter.jobs.outstanding("train") == 2
    (restored,) = [event for event in submitter.events.read() if event.kind == "bus.restored"]
    assert restored.run_id == "r"
    assert restored.detail["resubmitted"] == 2
    assert "job.started" not in submitter.told()
    assert submitter.told().count("job.done") == 1
    assert submitter.told().count("artifact.stored") == 1
    assert submitter.recover() is None


def test_a_job_that_was_running_is_run_again_and_recorded_once(submitter: Submitter, redis: Redis) -> None:
    """Its worker of before the loss is fenced, whatever it still sends; the new attempt is recorded."""
    job_id = submitter.submit("a")
    old = submitter.claim("old")
    redis.flushall()
    submitter.recover()
    assert not submitter.jobs.complete(old, RESULT)
    new = submitter.claim("new")
    assert not submitter.jobs.complete(old, RESULT)
    submitter.jobs.fail(old, JobFailure(kind="permanent", message="too late"))
    assert submitter.jobs.complete(new, RESULT)
    assert submitter.jobs.get(job_id).state == "done"
    assert submitter.told().count("job.done") == 1


def test_a_done_job_without_its_files_is_not_restored(submitter: Submitter, redis: Redis) -> None:
    """What the store lost is no answer: the job is asked again by whoever needs it."""
    done = submitter.do("done")
    submitter.store.clear()
    redis.flushall()
    recovered = submitter.recover()
    assert recovered is not None
    assert (recovered.restored, recovered.resubmitted, recovered.missing) == (0, 0, 1)
    with pytest.raises(ConfigError, match="no job"):
        submitter.jobs.get(done)
    assert not submitter.jobs.submit(job("done")).existing


def test_what_failed_or_was_dropped_stays_away(submitter: Submitter, redis: Redis) -> None:
    """Failed and cancelled jobs are not queued behind people's backs; a retried one is."""
    failed, again = submitter.submit("failed"), submitter.submit("again")
    for job_id in (failed, again):
        submitter.jobs.fail(submitter.claim(), JobFailure(kind="permanent", message="no camera"))
        submitter.journal.note_ended(submitter.jobs.get(job_id))
    submitter.journal.note_submitted(job("again"))
    dropped = submitter.submit("dropped")
    submitter.journal.note_dropped(dropped)
    redis.flushall()
    submitter.recover()
    assert [record.job_id for record in submitter.jobs.list()] == [again]


def test_a_run_that_starts_anew_drops_what_it_left(submitter: Submitter, redis: Redis) -> None:
    """Without resubmission done jobs come back and unfinished ones are forgotten for good."""
    done = submitter.do("done")
    submitter.submit("left")
    redis.flushall()
    assert submitter.recover(resubmit=False) is not None
    assert [record.job_id for record in submitter.jobs.list()] == [done]
    assert Journal(submitter.path).unfinished == []


def test_a_recovery_that_was_cut_short_is_repeated(submitter: Submitter, redis: Redis) -> None:
    """The journal takes the new bus's name last, so a second recovery finds all and changes nothing twice."""
    submitter.do("done")
    submitter.submit("left")
    redis.flushall()
    for record in submitter.journal.ended.values():
        submitter.jobs.restore(record)  # as far as the first one came
    recovered = submitter.recover()
    assert recovered is not None
    assert (recovered.restored, recovered.resubmitted) == (0, 1)
    assert submitter.told().count("job.done") == 1


def test_two_who_notice_recover_once(submitter: Submitter, redis: Redis) -> None:
    """Runner and supervisor share a journal: the second to look finds the work done."""
    submitter.submit("left")
    second = Submitter(redis, submitter.path)
    redis.flushall()
    assert submitter.recover() is not None
    assert second.recover() is None
    assert submitter.told().count("bus.restored") == 1


def test_the_journal_survives_torn_and_foreign_lines(submitter: Submitter) -> None:
    """What a killed writer left is cut off by the next; a line of another version is passed over and told."""
    submitter.submit("first")
    with submitter.path.open("ab") as file:
        file.write(b'{"later": 1, "submitted": 5}\n{"submitted": {"stage": "tr')
    torn = Journal(submitter.path)
    assert [one.key for one, _ in torn.unfinished] == ["first"]
    torn.note_submitted(job("second"))
    assert [one.key for one, _ in Journal(submitter.path).unfinished] == ["first", "second"]
    assert submitter.path.read_bytes().endswith(b"\n")


def test_the_journal_says_everything_once(submitter: Submitter) -> None:
    """Submitting, and seeing the end of, the same job again adds no line."""
    job_id = submitter.do("a")
    submitter.submit("b")
    size = submitter.path.stat().st_size
    submitter.submit("b")
    submitter.journal.note_ended(submitter.jobs.get(job_id))
    Submitter(submitter.jobs._redis, submitter.path).journal.note_ended(submitter.jobs.get(job_id))
    assert submitter.path.stat().st_size == size


def test_a_journal_that_cannot_be_written_refuses_the_submission(
    submitter: Submitter, tmp_path: Path
) -> None:
    """A submission is not acknowledged when the disk does not take its line; the error says what to do."""
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "journal.jsonl")
    with pytest.raises(TransientError, match="free disk space and submit again"):
        journal.note_submitted(job("a"))


def test_only_a_done_job_is_restored(submitter: Submitter) -> None:
    """Restoring anything else is refused: it has no result."""
    record = submitter.jobs.get(submitter.submit("a"))
    with pytest.raises(ConfigError, match="queued; only a done job"):
        submitter.jobs.restore(record)
