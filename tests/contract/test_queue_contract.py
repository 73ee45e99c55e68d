"""What every bus promises, on the twin and on real Redis servers alike."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from desks import Desk
from sim2or.bus.jobs import Claim, Lease
from sim2or.bus.queue import JobQueue
from sim2or.errors import ConfigError, MessageError
from sim2or.messages.event import Event
from sim2or.messages.job import Job, JobFailure, JobResult, Progress

LEASE_S = 10.0
RESULT = JobResult(outputs={"model": "sha256:1"})
CRASH = JobFailure(kind="crashed", message="exit code -9", traceback="")


def job(key: str = "k", stage: str = "train") -> Job:
    return Job(stage=stage, key=key, spec={"steps": 3}, inputs={"dataset": ("sha256:0",)})


def taken(jobs: JobQueue, worker: str, *, block_s: float = 5.0, stage: str = "train") -> Claim:
    claim = jobs.claim(stage, worker, block_s=block_s)
    assert claim is not None, "no job came"
    return claim


def kinds(desk: Desk) -> list[str]:
    return [event.kind.removeprefix("job.") for event in desk.events().read()]


def test_a_job_goes_its_way(desk: Desk) -> None:
    """Submitted, started, progressing, done: every step is in the record and in the events."""
    jobs = desk.jobs(run_id="run-1")
    submitted = jobs.submit(job())
    assert (submitted.state, submitted.existing) == ("queued", False)
    claim = taken(jobs, "w")
    assert claim.job.spec == {"steps": 3}
    assert claim.job.inputs == {"dataset": ("sha256:0",)}
    assert (
        jobs.progress(claim, Progress(done=1.0, total=3.0, unit="steps", metrics={"loss": 0.5}))
        is Lease.OWNED
    )
    running = jobs.get(submitted.job_id)
    assert (running.state, running.owner, running.attempts) == ("running", "w", 1)
    assert running.progress is not None
    assert running.progress.metrics == {"loss": 0.5}
    assert jobs.complete(claim, RESULT)
    done = jobs.get(submitted.job_id)
    assert (done.state, done.result, done.final) == ("done", RESULT, True)
    assert done.submitted_ms <= done.started_ms <= done.finished_ms  # type: ignore[operator]
    assert kinds(desk) == ["submitted", "started", "artifact.stored", "done"]
    assert {event.run_id for event in desk.events().read()} == {"run-1"}
    assert jobs.outstanding("train") == 0


def test_a_worker_of_several_stages_takes_the_jobs_of_all(desk: Desk) -> None:
    """The first stage's jobs come first, each claim takes one, and nothing is left in the end."""
    jobs = desk.jobs()
    stages = ("import", "convert", "train")
    for stage in ("train", "convert", "convert"):
        jobs.submit(job(key=f"{stage}{jobs.outstanding(stage)}", stage=stage))
    got = []
    while claim := jobs.claim(stages, "w", block_s=0):
        assert jobs.complete(claim, RESULT)
        got.append(claim.job.stage)
    assert got == ["convert", "convert", "train"]


@pytest.mark.parametrize("stage", ["import", "convert", "train"])
def test_a_worker_waits_for_all_its_stages_at_once(desk: Desk, stage: str) -> None:
    """A job that comes to any stage while a worker waits for all is taken; so is one whose retry is due."""
    jobs, stages = desk.jobs(retry_delays_s={"transient": 0.3}), ("import", "convert", "train")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(desk.jobs().claim, stages, "w", block_s=30.0)
        jobs.submit(job(stage=stage))
        claim = waiting.result(timeout=40)
    assert claim is not None
    assert jobs.fail(claim, JobFailure(kind="transient", message="store away", traceback=""))
    again = jobs.claim(stages, "w", block_s=30.0)
    assert again is not None
    assert (again.job.stage, again.attempt) == (stage, 2)


def test_fifty_submissions_are_one_job(desk: Desk) -> None:
    """The same question asked fifty times at once is queued once."""
    jobs = desk.jobs()
    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda _: jobs.submit(job()), range(50)))
    assert len({answer.job_id for answer in answers}) == 1
    assert [answer.existing for answer in answers].count(False) == 1
    assert jobs.outstanding("train") == 1
    assert taken(jobs, "w").attempt == 1
    assert jobs.claim("train", "w2", block_s=0) is None


def test_an_answered_question_is_not_asked_again(desk: Desk) -> None:
    """Submitting a done job returns it with its result; another key or shard is another job."""
    jobs = desk.jobs()
    jobs.submit(job())
    jobs.complete(taken(jobs, "w"), RESULT)
    again = jobs.submit(job())
    assert (again.state, again.existing) == ("done", True)
    assert jobs.get(again.job_id).result == RESULT
    assert not jobs.submit(job("other")).existing
    assert not jobs.submit(job().model_copy(update={"shards": 2, "shard": 1})).existing


def test_a_silent_worker_loses_its_job_and_is_fenced(desk: Desk) -> None:
    """A worker that stops renewing loses the job; when it wakes, it can neither renew nor record."""
    jobs = desk.jobs(lease_s=LEASE_S)
    jobs.submit(job())
    zombie = taken(jobs, "zombie")
    desk.pass_time(LEASE_S)
    heir = taken(jobs, "heir")
    assert heir.job_id == zombie.job_id
    assert heir.attempt == 2
    assert jobs.renew(zombie) is Lease.LOST
    assert jobs.progress(zombie, Progress(done=1.0, total=1.0)) is Lease.LOST
    assert not jobs.complete(zombie, JobResult(outputs={"model": "wrong"}))
    jobs.fail(zombie, CRASH)
    jobs.release(zombie)
    assert jobs.complete(heir, RESULT)
    assert jobs.get(heir.job_id).result == RESULT
    assert not jobs.complete(zombie, JobResult(outputs={"model": "wrong"}))
    assert jobs.get(heir.job_id).result == RESULT
    expected = ["submitted", "started", "lost", "started", "fenced", "artifact.stored", "done", "fenced"]
    assert kinds(desk) == expected


def test_a_worker_that_lost_and_regained_a_job_fences_its_older_self(desk: Desk) -> None:
    """The attempt, not only the name, is the fence."""
    jobs = desk.jobs(lease_s=LEASE_S)
    jobs.submit(job())
    old = taken(jobs, "a")
    desk.pass_time(LEASE_S)
    middle = taken(jobs, "b")
    jobs.release(middle)
    new = taken(jobs, "a")
    assert new.attempt == 3
    assert not jobs.complete(old, RESULT)
    assert jobs.complete(new, RESULT)


def test_a_renewed_job_is_never_given_twice(desk: Desk) -> None:
    """While its worker renews, a job stays with it for many times the lease."""
    jobs = desk.jobs(lease_s=0.4)
    jobs.submit(job())
    claim = taken(jobs, "w")
    for _ in range(10):
        assert jobs.claim("train", "thief", block_s=0.05) is None
        assert jobs.renew(claim) is Lease.OWNED
    assert jobs.complete(claim, RESULT)
    assert jobs.get(claim.job_id).attempts == 1


def test_a_completion_whose_reply_was_lost_counts_as_success(desk: Desk) -> None:
    """The owner may send its completion again; nothing is recorded twice."""
    jobs = desk.jobs()
    jobs.submit(job())
    claim = taken(jobs, "w")
    assert jobs.complete(claim, RESULT)
    assert jobs.complete(claim, RESULT)
    assert kinds(desk).count("done") == 1
    assert kinds(desk).count("artifact.stored") == 1


def test_a_chain_can_be_followed_from_events_alone(desk: Desk) -> None:
    """A completion tells each artifact with its kind and parents, the verdict, and the first figures."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    jobs = desk.jobs()
    asked = job(stage="evaluate").model_copy(update={"traceparent": trace})
    jobs.submit(asked)
    summary = {"success": 0.98, "passed": True, "worst": "m1", "lost": float("inf"), "films": [1, 2]}
    result = JobResult(outputs={"verdict": "sha256:7"}, kinds={"verdict": "verdict"}, summary=summary)
    assert jobs.complete(taken(jobs, "w", stage="evaluate"), result)
    figures = {"success": 0.98, "passed": True, "worst": "m1"}
    told = [(event.kind, event.detail) for event in desk.events().read()][-3:]
    assert told == [
        (
            "artifact.stored",
            {
                "role": "verdict",
                "kind": "verdict",
                "digest": "sha256:7",
                "parents": {"dataset": ["sha256:0"]},
            },
        ),
        ("verdict.recorded", {"digest": "sha256:7", "summary": figures}),
        ("job.done", {"summary": figures}),
    ]
    assert {(event.job_id, event.traceparent) for event in desk.events().read()} == {(asked.job_id, trace)}


def test_a_cancelled_completion_stores_nothing(desk: Desk) -> None:
    """What is not recorded as done is not told as stored either."""
    jobs = desk.jobs()
    job_id = jobs.submit(job()).job_id
    claim = taken(jobs, "w")
    jobs.cancel(job_id)
    assert not jobs.complete(claim, RESULT)
    assert "artifact.stored" not in kinds(desk)


def test_a_claim_whose_reply_was_lost_is_given_again(desk: Desk) -> None:
    """A worker that asks again gets the job it already has, without a second start."""
    jobs = desk.jobs()
    jobs.submit(job())
    jobs.submit(job("next"))
    assert taken(jobs, "w") == taken(jobs, "w")
    assert kinds(desk).count("started") == 1


def test_a_claim_whose_waits_are_tiny_returns(desk: Desk) -> None:
    """A wait of a millisecond or less ends: Redis 6.2 reads a timeout of 0.001 s as 0, which is for ever."""
    assert desk.jobs(lease_s=0.004).claim("train", "w", block_s=0.1) is None


def test_a_job_that_kills_its_workers_becomes_a_dead_letter(desk: Desk) -> None:
    """After max_deliveries lost leases a job is dead, with the reason, and the queue flows on."""
    jobs = desk.jobs(lease_s=LEASE_S, max_deliveries=3)
    jobs.submit(job("poison"))
    starts = []
    for n in range(3):
        starts.append(taken(jobs, f"victim-{n}").attempt)
        desk.pass_time(LEASE_S)
    assert starts == [1, 2, 3]
    jobs.submit(job("good"))
    claim = taken(jobs, "survivor")
    assert claim.job.key == "good"
    assert jobs.complete(claim, RESULT)
    assert jobs.claim("train", "survivor", block_s=0) is None
    (dead,) = jobs.dead()
    assert (dead.state, dead.job.key, dead.attempts) == ("dead", "poison", 3)
    assert dead.error is not None
    assert "died or froze 3 times, last victim-2" in dead.error.message
    assert jobs.outstanding("train") == 0


def test_a_crash_is_retried_then_dead_with_its_traceback(desk: Desk) -> None:
    """Reported crashes are retried, and the last one's traceback is in the dead letter."""
    jobs = desk.jobs(max_deliveries=3, retry_delays_s={"crashed": 0.01})
    jobs.submit(job())
    for attempt in range(1, 4):
        claim = taken(jobs, "w")
        assert claim.attempt == attempt
        jobs.fail(claim, JobFailure(kind="crashed", message=f"exit {attempt}", traceback="Traceback: here"))
    (dead,) = jobs.dead()
    assert dead.error == JobFailure(kind="crashed", message="exit 3", traceback="Traceback: here")
    assert dead.owner == "w"


def test_a_permanent_failure_is_not_retried(desk: Desk) -> None:
    """Trying again would give the same: the job fails at once, and a person may retry it."""
    jobs = desk.jobs()
    job_id = jobs.submit(job()).job_id
    jobs.fail(taken(jobs, "w"), JobFailure(kind="permanent", message="no such camera"))
    assert jobs.get(job_id).state == "failed"
    assert [record.job_id for record in jobs.dead()] == [job_id]
    assert jobs.claim("train", "w", block_s=0) is None
    assert jobs.retry(job_id)
    assert jobs.dead() == []
    assert jobs.complete(taken(jobs, "w"), RESULT)
    assert not jobs.retry(job_id)


def test_a_failed_job_is_queued_anew_when_submitted_again(desk: Desk) -> None:
    """A failure is no answer: the same question may be asked again."""
    jobs = desk.jobs()
    jobs.submit(job())
    jobs.fail(taken(jobs, "w"), JobFailure(kind="permanent", message="disk full"))
    assert not jobs.submit(job()).existing
    assert taken(jobs, "w").attempt == 2


def test_a_transient_failure_waits_before_its_retry(desk: Desk) -> None:
    """The delay doubles with each failure, and a waiting worker starts the job when it is due."""
    jobs = desk.jobs(retry_delays_s={"transient": 0.1})
    job_id = jobs.submit(job()).job_id
    for expected_ms in (100, 200):
        claim = taken(jobs, "w")
        jobs.fail(claim, JobFailure(kind="transient", message="store away"))
        waiting = jobs.get(job_id)
        assert waiting.state == "queued"
        assert waiting.due_ms is not None
        assert jobs.claim("train", "w", block_s=0) is None
        assert jobs.outstanding("train") == 1
        again = taken(jobs, "w")
        started_ms = jobs.get(job_id).started_ms
        assert started_ms is not None
        assert started_ms >= waiting.due_ms
        assert waiting.due_ms - waiting.started_ms >= expected_ms  # type: ignore[operator]
        jobs.release(again)


def test_a_released_job_is_taken_at_once_and_first(desk: Desk) -> None:
    """A worker told to stop hands its job back: first in the queue, no wait, no strike."""
    jobs = desk.jobs(max_deliveries=2)
    jobs.submit(job("first"))
    jobs.submit(job("second"))
    for attempt in range(1, 6):
        claim = taken(jobs, f"w{attempt}", block_s=0)
        assert (claim.job.key, claim.attempt) == ("first", attempt)
        jobs.release(claim)
    assert jobs.get(claim.job_id).strikes == 0


def test_a_released_job_is_found_by_who_looked_in_vain_before(desk: Desk) -> None:
    """A worker that just learned that no lease can end soon still gets at once what is handed back."""
    jobs = desk.jobs(lease_s=60)
    jobs.submit(job("k"))
    claim = taken(jobs, "w1")
    assert jobs.claim("train", "w2", block_s=0) is None
    jobs.release(claim)
    assert taken(jobs, "w2", block_s=0).attempt == 2


def test_leases_of_several_lengths_end_each_in_its_time(desk: Desk) -> None:
    """Who grants long leases learns nothing that keeps another from finding a short one ended."""
    patient, hasty = desk.jobs(lease_s=60), desk.jobs(lease_s=0.2)
    patient.submit(job("k"))
    taken(hasty, "w1")
    assert patient.claim("train", "w2", block_s=0) is None
    assert taken(hasty, "w3").attempt == 2


def test_a_cancelled_job_never_runs(desk: Desk) -> None:
    """A queued or delayed job that is cancelled is not started, also when it is released or due."""
    jobs = desk.jobs(retry_delays_s={"transient": 0.02})
    delayed = jobs.submit(job("delayed")).job_id
    jobs.fail(taken(jobs, "w"), JobFailure(kind="transient", message=""))
    queued = jobs.submit(job("queued")).job_id
    assert jobs.cancel(queued)
    assert jobs.cancel(delayed)
    assert not jobs.cancel(queued)
    assert jobs.claim("train", "w", block_s=0.1) is None
    assert {jobs.get(one).state for one in (queued, delayed)} == {"cancelled"}
    assert jobs.outstanding("train") == 0
    assert kinds(desk).count("started") == 1


def test_a_running_job_learns_of_its_cancellation(desk: Desk) -> None:
    """The worker hears it at its next renewal; what it still sends is never recorded."""
    jobs = desk.jobs()
    job_id = jobs.submit(job()).job_id
    claim = taken(jobs, "w")
    assert jobs.cancel(job_id)
    assert jobs.get(job_id).cancelling
    assert jobs.renew(claim) is Lease.CANCELLED
    assert not jobs.complete(claim, RESULT)
    record = jobs.get(job_id)
    assert (record.state, record.result) == ("cancelled", None)
    assert jobs.outstanding("train") == 0


def test_a_cancelled_job_whose_worker_died_is_not_restarted(desk: Desk) -> None:
    """When the lease of a cancelled job ends, the job ends too."""
    jobs = desk.jobs(lease_s=LEASE_S)
    job_id = jobs.submit(job()).job_id
    taken(jobs, "w")
    jobs.cancel(job_id)
    assert jobs.claim("train", "other", block_s=0) is None
    desk.pass_time(LEASE_S)
    assert jobs.claim("train", "other", block_s=0) is None
    assert jobs.get(job_id).state == "cancelled"


def test_a_job_submitted_while_it_is_being_cancelled_runs_after_that(desk: Desk) -> None:
    """The new attempt starts when the old worker has let go, never beside it."""
    jobs = desk.jobs()
    job_id = jobs.submit(job()).job_id
    old = taken(jobs, "w")
    jobs.cancel(job_id)
    assert jobs.submit(job()).state == "running"
    assert jobs.claim("train", "other", block_s=0) is None
    jobs.release(old)
    new = taken(jobs, "other")
    assert (new.job_id, new.attempt) == (job_id, 2)
    assert jobs.complete(new, RESULT)


def test_higher_priorities_go_first_and_one_at_a_time(desk: Desk) -> None:
    """Jobs come by priority, then by age, and a claim takes exactly one."""
    jobs = desk.jobs()
    for key, priority in (("l", "low"), ("n1", "normal"), ("n2", "normal"), ("h", "high")):
        jobs.submit(job(key), priority=priority)  # type: ignore[arg-type]
    order = []
    for n in range(4):
        order.append(taken(jobs, f"w{n}", block_s=0).job.key)
        assert len(jobs.list(state="running")) == n + 1
    assert order == ["h", "n1", "n2", "l"]
    with pytest.raises(ConfigError, match="valid: high, low, normal"):
        jobs.submit(job("x"), priority="urgent")  # type: ignore[arg-type]


def test_a_waiting_worker_is_woken_by_a_submission(desk: Desk) -> None:
    """Every waiting worker gets one of the jobs that are submitted together, without polling for it."""
    waiting = [desk.jobs() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        claims = [
            threads.submit(jobs.claim, "train", f"w{index}", block_s=10.0)
            for index, jobs in enumerate(waiting)
        ]
        for index in range(4):
            desk.jobs().submit(job(str(index)))
        got = [claim.result(timeout=10) for claim in claims]
    assert {claim.job.key for claim in got if claim} == {"0", "1", "2", "3"}


def test_an_unreadable_job_is_a_dead_letter_at_once(desk: Desk) -> None:
    """A job that this version cannot parse fails with the field's name, and the next one runs."""
    jobs = desk.jobs()
    bad = jobs.submit(job("bad")).job_id
    text = desk.fields(bad)["job"]
    jobs.submit(job("good"))
    desk.write(bad, job=text.replace('"shards":1', '"shards":"one"'))
    assert taken(jobs, "w").job.key == "good"
    kept = desk.fields(bad)
    assert "shards" in kept["error"]
    assert kept["state"] == "failed"


def test_large_payloads_are_refused_with_the_limit(desk: Desk) -> None:
    """A job over 32 KB names the limit and the way out, and leaves nothing behind."""
    jobs = desk.jobs()
    with pytest.raises(MessageError, match="at most 32768 are accepted: store it as an artifact"):
        jobs.submit(job().model_copy(update={"spec": {"blob": "x" * 40_000}}))
    assert jobs.list() == []
    assert desk.events().read() == []


def test_an_unknown_job_is_named(desk: Desk) -> None:
    """Asking for a job that does not exist says how to list them."""
    with pytest.raises(ConfigError, match=r"no job 'x'; `sim2or jobs ls`"):
        desk.jobs().get("x")


def test_many_workers_record_every_job_once(desk: Desk) -> None:
    """Six workers, of which some lose, crash or release jobs: every job is recorded exactly once."""
    total = 60
    submitter = desk.jobs()
    for index in range(total):
        submitter.submit(job(str(index)))
    recorded: list[str] = []
    lock = threading.Lock()

    def work(name: str) -> None:
        jobs = desk.jobs(lease_s=0.2, max_deliveries=50, retry_delays_s={"crashed": 0.01})
        turn = 0
        while claim := jobs.claim("train", name, block_s=0.4):
            turn += 1
            if turn % 7 == 3:
                jobs.fail(claim, CRASH)
            elif turn % 7 == 5:
                jobs.release(claim)
            elif jobs.complete(claim, RESULT):
                with lock:
                    recorded.append(claim.job_id)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, [f"w{n}" for n in range(6)]))
    assert len(recorded) == len(set(recorded)) == total
    assert kinds(desk).count("done") == total
    assert submitter.outstanding("train") == 0


def test_events_are_followed_from_where_one_left(desk: Desk) -> None:
    """A follower gets what comes after the id it knows, and stops when nothing comes."""
    jobs, events = desk.jobs(), desk.events()
    jobs.submit(job("1"))
    seen = events.last()
    jobs.submit(job("2"))
    (event,) = events.follow(seen, timeout_s=0.05)
    assert event.job_id == job("2").job_id
    assert event.time_ms > 0
    assert [one.id for one in events.read(seen)] == [event.id]


def test_a_job_is_told_when_another_run_asks_for_it(desk: Desk) -> None:
    """A question that a second run asks again is answered by the first run's job, and both are on record."""
    jobs = desk.jobs()
    jobs.submit(job().model_copy(update={"run_id": "run-1"}))
    assert jobs.submit(job().model_copy(update={"run_id": "run-1"})).existing
    assert jobs.submit(job().model_copy(update={"run_id": "run-2"})).existing
    (reused,) = [event for event in desk.events().read() if event.kind == "job.reused"]
    assert reused.run_id == "run-1"
    assert (reused.detail["run_id"], reused.detail["traceparent"]) == ("run-2", "")
    (asked,) = [event for event in desk.events().read() if event.kind == "job.submitted"]
    assert asked.detail == {
        name: reused.detail[name] for name in ("name", "key", "shard", "shards", "inputs")
    }


def test_jobs_are_listed_by_state_and_stage(desk: Desk) -> None:
    """A list holds what was asked for, oldest submission first."""
    jobs = desk.jobs()
    for key, stage in (("1", "train"), ("2", "evaluate"), ("3", "train")):
        jobs.submit(job(key, stage))
    taken(jobs, "w", stage="evaluate")
    times_ms = [record.submitted_ms or 0 for record in jobs.list()]
    assert times_ms == sorted(times_ms)
    assert {record.job.key for record in jobs.list("queued", "train")} == {"1", "3"}
    assert [record.job.key for record in jobs.list("running")] == ["2"]
    assert jobs.list(stage="export") == []


def test_events_of_others_stand_in_the_same_stream(desk: Desk) -> None:
    """What a person or a service adds is read back as it was, between what the jobs tell."""
    jobs, events = desk.jobs(), desk.events()
    jobs.submit(job())
    said = Event(kind="approval.given", run_id="run-1", worker="ana", attempt=3, detail={"for": "sha256:1"})
    identity = events.append(said)
    jobs.cancel(job().job_id)
    assert [event.kind for event in events.read()] == ["job.submitted", "approval.given", "job.cancelled"]
    assert events.read()[1] == said.model_copy(update={"id": identity})
    assert [event.kind for event in events.read(identity)] == ["job.cancelled"]
    assert [event.id for event in events.read(count=2)][1] == identity


def test_a_lost_bus_begins_again(desk: Desk) -> None:
    """After everything is lost, an old claim is worth nothing, and new jobs run."""
    jobs = desk.jobs()
    jobs.submit(job())
    claim = taken(jobs, "w")
    desk.clear()
    assert jobs.renew(claim) is Lease.LOST
    assert not jobs.complete(claim, RESULT)
    jobs.fail(claim, CRASH)
    jobs.release(claim)
    assert not jobs.cancel(claim.job_id)
    assert not jobs.retry(claim.job_id)
    jobs.submit(job())
    assert jobs.complete(taken(jobs, "w"), RESULT)


def test_figures_say_how_a_queue_stands(desk: Desk) -> None:
    """Every job is counted where it is, every event since the bus exists, and the longest wait is told."""
    jobs = desk.jobs(lease_s=LEASE_S, max_deliveries=2, retry_delays_s={"transient": 60.0})
    for key in ("fails", "waits", "runs", "done", "back", "lost", "queued"):
        jobs.submit(job(key))
    jobs.fail(taken(jobs, "w1"), JobFailure(kind="permanent", message="no"))
    jobs.fail(taken(jobs, "w1"), JobFailure(kind="transient", message="later"))
    taken(jobs, "w2")
    jobs.complete(taken(jobs, "w3"), RESULT)
    jobs.release(taken(jobs, "w4"))
    assert taken(jobs, "w5").job.key == "back"
    lost = taken(jobs, "w6")
    desk.pass_time(LEASE_S)
    assert taken(jobs, "w7").job.key == "runs"
    assert taken(jobs, "w8").job.key == "back"
    assert taken(jobs, "w9").job.key == "lost"
    assert not jobs.complete(lost, RESULT)
    figures = jobs.figures("train")
    assert (figures.queued, figures.delayed, figures.running, figures.outstanding) == (1, 1, 3, 5)
    assert (figures.submitted, figures.started, figures.done, figures.failed) == (7, 10, 1, 1)
    assert (figures.retried, figures.released, figures.lost, figures.fenced) == (1, 1, 3, 1)
    assert (figures.dead_letters, figures.dead, figures.cancelled) == (1, 0, 0)
    assert figures.oldest_age_s >= 0
    nothing = jobs.figures("export")
    assert (nothing.outstanding, nothing.oldest_age_s, nothing.submitted) == (0, 0, 0)


def test_a_worker_takes_the_next_job_as_it_completes_one(desk: Desk) -> None:
    """One step records and claims; sent again after a lost reply it gives the same."""
    jobs = desk.jobs(lease_s=LEASE_S)
    for key in ("1", "2"):
        jobs.submit(job(key))
    first = taken(jobs, "w")
    recorded, second = jobs.complete_and_claim(first, RESULT)
    assert recorded
    assert second is not None
    assert (second.job.key, second.attempt) == ("2", 1)
    assert jobs.complete_and_claim(first, RESULT) == (True, second)
    assert jobs.complete_and_claim(second, RESULT) == (True, None)
    assert kinds(desk).count("done") == 2


def test_a_bus_has_a_name_until_it_is_lost(desk: Desk) -> None:
    """Everybody hears the same name; one that comes back empty has another."""
    name = desk.jobs().epoch()
    assert name
    assert desk.jobs().epoch() == name
    desk.clear()
    assert desk.jobs().epoch() != name


def test_a_done_job_is_restored_on_an_empty_bus(desk: Desk) -> None:
    """What a journal knows to be done is done again with its events, once, and not asked anew."""
    jobs = desk.jobs(run_id="run-1")
    jobs.submit(job())
    jobs.complete(taken(jobs, "w"), RESULT)
    record = jobs.get(job().job_id)
    desk.clear()
    assert jobs.restore(record)
    assert not jobs.restore(record)
    assert jobs.get(record.job_id) == record
    assert [one.job_id for one in jobs.list()] == [record.job_id]
    assert kinds(desk) == ["submitted", "artifact.stored", "done"]
    assert desk.events().read()[-1].detail == {"summary": {}, "restored": True}
    assert jobs.submit(job()).state == "done"
    assert jobs.claim("train", "w", block_s=0) is None
    with pytest.raises(ConfigError, match="only a done job is restored"):
        jobs.restore(record.model_copy(update={"state": "failed", "result": None}))


def test_what_ended_long_ago_is_forgotten_when_asked(desk: Desk) -> None:
    """Pruning forgets ended jobs and old events, keeps what is queued or running, and nothing else does."""
    jobs = desk.jobs()
    for key in ("done", "running", "queued"):
        jobs.submit(job(key))
    jobs.complete(taken(jobs, "w"), RESULT)
    taken(jobs, "w")
    assert jobs.prune(60.0).jobs == 0
    assert len(jobs.list()) == 3
    told = len(desk.events().read())
    pruned = jobs.prune(-1.0)
    assert (pruned.jobs, pruned.events) == (1, told)
    assert {one.job.key for one in jobs.list()} == {"running", "queued"}
    assert desk.events().read() == []
    assert not jobs.submit(job("done")).existing


def test_failures_are_told_with_who_and_why(desk: Desk) -> None:
    """Every failure's event names the attempt and its worker, and carries the reason."""
    jobs = desk.jobs(lease_s=LEASE_S, max_deliveries=2, retry_delays_s={"crashed": 0.0})
    jobs.submit(job())
    jobs.fail(taken(jobs, "w1"), JobFailure(kind="crashed", message="exit code -9", traceback="here"))
    zombie = taken(jobs, "w2")
    desk.pass_time(LEASE_S)
    assert jobs.claim("train", "w3", block_s=0) is None
    assert not jobs.complete(zombie, RESULT)
    jobs.retry(zombie.job_id)
    jobs.fail(taken(jobs, "w4"), JobFailure(kind="permanent", message="no such camera"))
    told = [(event.kind, event.attempt, event.worker, event.detail) for event in desk.events().read()]
    frozen = "its workers died or froze 2 times, last w2"
    assert told[1:] == [
        ("job.started", 1, "w1", {}),
        ("job.retry", 1, "w1", {"kind": "crashed", "message": "exit code -9", "traceback": "here"}),
        ("job.started", 2, "w2", {}),
        ("job.lost", 2, "w2", {}),
        ("job.dead", 2, "w2", {"kind": "crashed", "message": frozen, "traceback": ""}),
        ("job.fenced", 2, "w2", {"worker": "w2", "attempt": 2}),
        ("job.retried", 2, "", {}),
        ("job.started", 3, "w4", {}),
        ("job.failed", 3, "w4", {"kind": "permanent", "message": "no such camera", "traceback": ""}),
    ]
