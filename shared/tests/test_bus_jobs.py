from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis
from sim2or.bus.events import Events
from sim2or.bus.jobs import Claim, Jobs, Lease
from sim2or.bus.server import PrivateRedis, connect
from sim2or.errors import ConfigError, MessageError
from sim2or.messages.job import Job, JobFailure, JobResult, Progress

TINY_S = 0.05
RESULT = JobResult(outputs={"model": "sha256:1"})
CRASH = JobFailure(kind="crashed", message="exit code -9", traceback="")

Eventually = Callable[..., None]


def job(key: str = "k", stage: str = "train") -> Job:
    return Job(stage=stage, key=key, spec={"steps": 3}, inputs={"dataset": ("sha256:0",)})


def taken(jobs: Jobs, worker: str, *, block_s: float = 5.0, stage: str = "train") -> Claim:
    claim = jobs.claim(stage, worker, block_s=block_s)
    assert claim is not None, "no job came"
    return claim


def kinds(redis: Redis) -> list[str]:
    return [event.kind.removeprefix("job.") for event in Events(redis).read()]


def test_a_job_goes_its_way(redis: Redis) -> None:
    """Submitted, started, progressing, done: every step is in the record and in the events."""
    jobs = Jobs(redis, run_id="run-1")
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
    assert kinds(redis) == ["submitted", "started", "artifact.stored", "done"]
    assert {event.run_id for event in Events(redis).read()} == {"run-1"}
    assert jobs.outstanding("train") == 0
    assert redis.xlen("jobs:train:normal") == 0


def test_fifty_submissions_are_one_job(redis: Redis) -> None:
    """The same question asked fifty times at once is queued once."""
    jobs = Jobs(redis)
    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda _: jobs.submit(job()), range(50)))
    assert len({answer.job_id for answer in answers}) == 1
    assert [answer.existing for answer in answers].count(False) == 1
    assert jobs.outstanding("train") == 1
    assert taken(jobs, "w").attempt == 1
    assert jobs.claim("train", "w2", block_s=0) is None


def test_an_answered_question_is_not_asked_again(redis: Redis) -> None:
    """Submitting a done job returns it with its result; another key or shard is another job."""
    jobs = Jobs(redis)
    jobs.submit(job())
    jobs.complete(taken(jobs, "w"), RESULT)
    again = jobs.submit(job())
    assert (again.state, again.existing) == ("done", True)
    assert jobs.get(again.job_id).result == RESULT
    assert not jobs.submit(job("other")).existing
    assert not jobs.submit(job().model_copy(update={"shards": 2, "shard": 1})).existing


def test_a_silent_worker_loses_its_job_and_is_fenced(redis: Redis) -> None:
    """A worker that stops renewing loses the job; when it wakes, it can neither renew nor record."""
    jobs = Jobs(redis, lease_s=TINY_S)
    jobs.submit(job())
    zombie = taken(jobs, "zombie")
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
    assert kinds(redis) == expected


def test_a_worker_that_lost_and_regained_a_job_fences_its_older_self(redis: Redis) -> None:
    """The attempt, not only the name, is the fence."""
    jobs = Jobs(redis, lease_s=TINY_S)
    jobs.submit(job())
    old = taken(jobs, "a")
    middle = taken(jobs, "b")
    jobs.release(middle)
    new = taken(jobs, "a")
    assert new.attempt == 3
    assert not jobs.complete(old, RESULT)
    assert jobs.complete(new, RESULT)


def test_a_renewed_job_is_never_given_twice(redis: Redis) -> None:
    """While its worker renews, a job stays with it for many times the lease."""
    jobs = Jobs(redis, lease_s=0.4)
    jobs.submit(job())
    claim = taken(jobs, "w")
    for _ in range(15):
        assert jobs.claim("train", "thief", block_s=0.05) is None
        assert jobs.renew(claim) is Lease.OWNED
    assert jobs.complete(claim, RESULT)
    assert jobs.get(claim.job_id).attempts == 1


def test_a_completion_whose_reply_was_lost_counts_as_success(redis: Redis) -> None:
    """The owner may send its completion again; nothing is recorded twice."""
    jobs = Jobs(redis)
    jobs.submit(job())
    claim = taken(jobs, "w")
    assert jobs.complete(claim, RESULT)
    assert jobs.complete(claim, RESULT)
    assert kinds(redis).count("done") == 1
    assert kinds(redis).count("artifact.stored") == 1


def test_a_chain_can_be_followed_from_events_alone(redis: Redis) -> None:
    """A completion tells each artifact with its kind and parents, the verdict, and the first figures."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    jobs = Jobs(redis)
    asked = job(stage="evaluate").model_copy(update={"traceparent": trace})
    jobs.submit(asked)
    summary = {"success": 0.98, "passed": True, "worst": "m1", "lost": float("inf"), "films": [1, 2]}
    result = JobResult(outputs={"verdict": "sha256:7"}, kinds={"verdict": "verdict"}, summary=summary)
    assert jobs.complete(taken(jobs, "w", stage="evaluate"), result)
    figures = {"success": 0.98, "passed": True, "worst": "m1"}
    told = [(event.kind, event.detail) for event in Events(redis).read()][-3:]
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
    assert {(event.job_id, event.traceparent) for event in Events(redis).read()} == {(asked.job_id, trace)}


def test_a_cancelled_completion_stores_nothing(redis: Redis) -> None:
    """What is not recorded as done is not told as stored either."""
    jobs = Jobs(redis)
    job_id = jobs.submit(job()).job_id
    claim = taken(jobs, "w")
    jobs.cancel(job_id)
    assert not jobs.complete(claim, RESULT)
    assert "artifact.stored" not in kinds(redis)


@pytest.mark.parametrize("text", ["00-abc-def-01", "00-" + "A" * 32 + "-" + "b" * 16 + "-01"])
def test_a_wrong_trace_context_is_refused(text: str) -> None:
    """A job carries a W3C traceparent or none."""
    with pytest.raises(ValueError, match="traceparent"):
        Job(stage="train", key="k", traceparent=text)


def test_a_claim_whose_reply_was_lost_is_given_again(redis: Redis) -> None:
    """A worker that asks again gets the job it already has, without a second start."""
    jobs = Jobs(redis)
    jobs.submit(job())
    jobs.submit(job("next"))
    assert taken(jobs, "w") == taken(jobs, "w")
    assert kinds(redis).count("started") == 1


def test_a_claim_whose_waits_are_tiny_returns(redis: Redis) -> None:
    """A wait of a millisecond or less ends: Redis 6.2 reads a timeout of 0.001 s as 0, which is for ever."""
    assert Jobs(redis, lease_s=0.004).claim("train", "w", block_s=0.1) is None


def test_a_job_that_kills_its_workers_becomes_a_dead_letter(redis: Redis) -> None:
    """After max_deliveries lost leases a job is dead, with the reason, and the queue flows on."""
    jobs = Jobs(redis, lease_s=TINY_S, max_deliveries=3)
    jobs.submit(job("poison"))
    starts = [taken(jobs, f"victim-{n}").attempt for n in range(3)]
    assert starts == [1, 2, 3]
    jobs.submit(job("good"))
    claim = taken(jobs, "survivor")
    while claim.job.key != "good":
        claim = taken(jobs, "survivor")
    assert jobs.complete(claim, RESULT)
    assert jobs.claim("train", "survivor", block_s=4 * TINY_S) is None
    (dead,) = jobs.dead()
    assert (dead.state, dead.job.key, dead.attempts) == ("dead", "poison", 3)
    assert dead.error is not None
    assert "died or froze 3 times, last victim-2" in dead.error.message
    assert jobs.outstanding("train") == 0


def test_a_crash_is_retried_then_dead_with_its_traceback(redis: Redis) -> None:
    """Reported crashes are retried, and the last one's traceback is in the dead letter."""
    jobs = Jobs(redis, max_deliveries=3, retry_delays_s={"crashed": 0.01})
    jobs.submit(job())
    for attempt in range(1, 4):
        claim = taken(jobs, "w")
        assert claim.attempt == attempt
        jobs.fail(claim, JobFailure(kind="crashed", message=f"exit {attempt}", traceback="Traceback: here"))
    (dead,) = jobs.dead()
    assert dead.error == JobFailure(kind="crashed", message="exit 3", traceback="Traceback: here")
    assert dead.owner == "w"


def test_a_permanent_failure_is_not_retried(redis: Redis) -> None:
    """Trying again would give the same: the job fails at once, and a person may retry it."""
    jobs = Jobs(redis)
    job_id = jobs.submit(job()).job_id
    jobs.fail(taken(jobs, "w"), JobFailure(kind="permanent", message="no such camera"))
    assert jobs.get(job_id).state == "failed"
    assert [record.job_id for record in jobs.dead()] == [job_id]
    assert jobs.claim("train", "w", block_s=0) is None
    assert jobs.retry(job_id)
    assert jobs.dead() == []
    assert jobs.complete(taken(jobs, "w"), RESULT)
    assert not jobs.retry(job_id)


def test_a_failed_job_is_queued_anew_when_submitted_again(redis: Redis) -> None:
    """A failure is no answer: the same question may be asked again."""
    jobs = Jobs(redis)
    jobs.submit(job())
    jobs.fail(taken(jobs, "w"), JobFailure(kind="permanent", message="disk full"))
    assert not jobs.submit(job()).existing
    assert taken(jobs, "w").attempt == 2


def test_a_transient_failure_waits_before_its_retry(redis: Redis) -> None:
    """The delay doubles with each failure, and a waiting worker starts the job when it is due."""
    jobs = Jobs(redis, retry_delays_s={"transient": 0.1})
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


def test_a_released_job_is_taken_at_once_and_first(redis: Redis) -> None:
    """A worker told to stop hands its job back: first in the queue, no wait, no strike."""
    jobs = Jobs(redis, max_deliveries=2)
    jobs.submit(job("first"))
    jobs.submit(job("second"))
    for attempt in range(1, 6):
        claim = taken(jobs, f"w{attempt}", block_s=0)
        assert (claim.job.key, claim.attempt) == ("first", attempt)
        jobs.release(claim)
    assert jobs.get(claim.job_id).strikes == 0


def test_a_cancelled_job_never_runs(redis: Redis) -> None:
    """A queued or delayed job that is cancelled is not started, also when it is released or due."""
    jobs = Jobs(redis, retry_delays_s={"transient": 0.02})
    delayed = jobs.submit(job("delayed")).job_id
    jobs.fail(taken(jobs, "w"), JobFailure(kind="transient", message=""))
    queued = jobs.submit(job("queued")).job_id
    assert jobs.cancel(queued)
    assert jobs.cancel(delayed)
    assert not jobs.cancel(queued)
    assert jobs.claim("train", "w", block_s=0.1) is None
    assert {jobs.get(one).state for one in (queued, delayed)} == {"cancelled"}
    assert jobs.outstanding("train") == 0
    assert kinds(redis).count("started") == 1


def test_a_running_job_learns_of_its_cancellation(redis: Redis) -> None:
    """The worker hears it at its next renewal; what it still sends is never recorded."""
    jobs = Jobs(redis)
    job_id = jobs.submit(job()).job_id
    claim = taken(jobs, "w")
    assert jobs.cancel(job_id)
    assert jobs.get(job_id).cancelling
    assert jobs.renew(claim) is Lease.CANCELLED
    assert not jobs.complete(claim, RESULT)
    record = jobs.get(job_id)
    assert (record.state, record.result) == ("cancelled", None)
    assert jobs.outstanding("train") == 0


def test_a_cancelled_job_whose_worker_died_is_not_restarted(redis: Redis) -> None:
    """When the lease of a cancelled job ends, the job ends too."""
    jobs = Jobs(redis, lease_s=TINY_S)
    job_id = jobs.submit(job()).job_id
    taken(jobs, "w")
    jobs.cancel(job_id)
    assert jobs.claim("train", "other", block_s=4 * TINY_S) is None
    assert jobs.get(job_id).state == "cancelled"


def test_a_job_submitted_while_it_is_being_cancelled_runs_after_that(redis: Redis) -> None:
    """The new attempt starts when the old worker has let go, never beside it."""
    jobs = Jobs(redis)
    job_id = jobs.submit(job()).job_id
    old = taken(jobs, "w")
    jobs.cancel(job_id)
    assert jobs.submit(job()).state == "running"
    assert jobs.claim("train", "other", block_s=0) is None
    jobs.release(old)
    new = taken(jobs, "other")
    assert (new.job_id, new.attempt) == (job_id, 2)
    assert jobs.complete(new, RESULT)


def test_higher_priorities_go_first_and_one_at_a_time(redis: Redis) -> None:
    """Jobs come by priority, then by age, and a claim takes exactly one."""
    jobs = Jobs(redis)
    for key, priority in (("l", "low"), ("n1", "normal"), ("n2", "normal"), ("h", "high")):
        jobs.submit(job(key), priority=priority)  # type: ignore[arg-type]
    order = []
    for n in range(4):
        order.append(taken(jobs, f"w{n}", block_s=0).job.key)
        assert len(jobs.list(state="running")) == n + 1
    assert order == ["h", "n1", "n2", "l"]
    with pytest.raises(ConfigError, match="valid: high, low, normal"):
        jobs.submit(job("x"), priority="urgent")  # type: ignore[arg-type]


def test_a_waiting_worker_is_woken_by_a_submission(redis: Redis, redis_server: PrivateRedis) -> None:
    """Every waiting worker gets one of the jobs that are submitted together, without polling for it."""
    waiting = [Jobs(connect(redis_server.url)) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        claims = [
            threads.submit(jobs.claim, "train", f"w{index}", block_s=10.0)
            for index, jobs in enumerate(waiting)
        ]
        for index in range(4):
            Jobs(redis).submit(job(str(index)))
        got = [claim.result(timeout=10) for claim in claims]
    assert {claim.job.key for claim in got if claim} == {"0", "1", "2", "3"}


def test_an_empty_redis_is_used_again(redis: Redis) -> None:
    """After everything is lost, groups are made again from the beginning; old claims are lost."""
    jobs = Jobs(redis)
    jobs.submit(job())
    claim = taken(jobs, "w")
    redis.flushall()
    assert jobs.renew(claim) is Lease.LOST
    assert not jobs.complete(claim, RESULT)
    redis.flushall()
    jobs.submit(job())
    redis.script_flush()
    assert jobs.complete(taken(jobs, "w"), RESULT)


def test_a_vanished_stream_or_entry_is_cleared_away(redis: Redis) -> None:
    """A pending entry whose message was deleted is acknowledged, not given out (6.2 keeps it)."""
    jobs = Jobs(redis, lease_s=TINY_S)
    jobs.submit(job())
    taken(jobs, "w")
    (entry,) = redis.xrange("jobs:train:normal")
    redis.xdel("jobs:train:normal", entry[0])
    assert jobs.claim("train", "other", block_s=4 * TINY_S) is None
    assert redis.xpending("jobs:train:normal", "workers")["pending"] == 0


def test_an_unreadable_job_is_a_dead_letter_at_once(redis: Redis) -> None:
    """A job that this version cannot parse fails with the field's name, and the next one runs."""
    jobs = Jobs(redis)
    bad = jobs.submit(job("bad")).job_id
    text = redis.hget(f"job:{bad}", "job")
    jobs.submit(job("good"))
    redis.hset(f"job:{bad}", "job", str(text).replace('"shards":1', '"shards":"one"'))
    assert taken(jobs, "w").job.key == "good"
    error = redis.hget(f"job:{bad}", "error")
    assert "shards" in str(error)
    assert redis.hget(f"job:{bad}", "state") == "failed"


def test_large_payloads_are_refused_with_the_limit(redis: Redis) -> None:
    """A job over 32 KB names the limit and the way out, and leaves nothing behind."""
    jobs = Jobs(redis)
    with pytest.raises(MessageError, match="at most 32768 are accepted: store it as an artifact"):
        jobs.submit(job().model_copy(update={"spec": {"blob": "x" * 40_000}}))
    assert redis.dbsize() == 0


def test_an_unknown_job_is_named(redis: Redis) -> None:
    """Asking for a job that does not exist says how to list them."""
    with pytest.raises(ConfigError, match=r"no job 'x'; `sim2or jobs ls`"):
        Jobs(redis).get("x")


def test_many_workers_record_every_job_once(redis: Redis, redis_server: PrivateRedis) -> None:
    """Six workers, of which some lose, crash or release jobs: every job is recorded exactly once."""
    total = 60
    submitter = Jobs(redis)
    for index in range(total):
        submitter.submit(job(str(index)))
    recorded: list[str] = []
    lock = threading.Lock()

    def work(name: str) -> None:
        jobs = Jobs(
            connect(redis_server.url), lease_s=0.2, max_deliveries=50, retry_delays_s={"crashed": 0.01}
        )
        turn = 0
        while claim := jobs.claim("train", name, block_s=1.0):
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
    assert kinds(redis).count("done") == total
    assert submitter.outstanding("train") == 0


def test_events_are_followed_from_where_one_left(redis: Redis, eventually: Eventually) -> None:
    """A follower gets what comes after the id it knows, and stops when nothing comes."""
    jobs, events = Jobs(redis), Events(redis)
    jobs.submit(job("1"))
    seen = events.last()
    jobs.submit(job("2"))
    (event,) = events.follow(seen, timeout_s=0.05)
    assert event.job_id == job("2").job_id
    assert event.time_ms > 0
    assert [one.id for one in events.read(seen)] == [event.id]
