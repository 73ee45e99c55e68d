"""The lease queue where Redis itself matters; what any queue promises is in tests/contract."""

from __future__ import annotations

import pytest
from redis import Redis
from sim2or.bus.jobs import Claim, Jobs, Lease
from sim2or.errors import MessageError
from sim2or.messages.job import Job, JobResult

TINY_S = 0.05
RESULT = JobResult(outputs={"model": "sha256:1"})


def job(key: str = "k", stage: str = "train") -> Job:
    return Job(stage=stage, key=key, spec={"steps": 3}, inputs={"dataset": ("sha256:0",)})


def taken(jobs: Jobs, worker: str, *, block_s: float = 5.0, stage: str = "train") -> Claim:
    claim = jobs.claim(stage, worker, block_s=block_s)
    assert claim is not None, "no job came"
    return claim


@pytest.mark.parametrize("text", ["00-abc-def-01", "00-" + "A" * 32 + "-" + "b" * 16 + "-01"])
def test_a_wrong_trace_context_is_refused(text: str) -> None:
    """A job carries a W3C traceparent or none."""
    with pytest.raises(ValueError, match="traceparent"):
        Job(stage="train", key="k", traceparent=text)


def test_an_ended_job_leaves_its_stream(redis: Redis) -> None:
    """What is done takes no room in the queue, which autoscalers measure."""
    jobs = Jobs(redis)
    jobs.submit(job())
    assert redis.xlen("jobs:train:normal") == 1
    jobs.complete(taken(jobs, "w"), RESULT)
    assert redis.xlen("jobs:train:normal") == 0


def test_a_refused_job_leaves_no_key(redis: Redis) -> None:
    """A job over 32 KB is refused before Redis hears of it."""
    with pytest.raises(MessageError):
        Jobs(redis).submit(job().model_copy(update={"spec": {"blob": "x" * 40_000}}))
    assert redis.dbsize() == 0


def test_a_silent_worker_loses_its_job_in_real_time(redis: Redis) -> None:
    """A lease ends by Redis's own clock while another worker waits for it."""
    jobs = Jobs(redis, lease_s=TINY_S)
    jobs.submit(job())
    zombie = taken(jobs, "zombie")
    heir = taken(jobs, "heir")
    assert (heir.job_id, heir.attempt) == (zombie.job_id, 2)
    assert jobs.renew(zombie) is Lease.LOST
    assert not jobs.complete(zombie, RESULT)
    assert jobs.complete(heir, RESULT)


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
