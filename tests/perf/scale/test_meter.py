"""The meter reads a real server's counters."""

from __future__ import annotations

import sys
from pathlib import Path

from redis import Redis

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import questions
from meter import Meter
from sim2or.bus.jobs import Jobs


def test_a_jobs_lease_messages_and_progress_are_told_apart(redis: Redis) -> None:
    """Two bare renewals and three with progress are five lease messages; a job sets its fields four times."""
    jobs = Jobs(redis)
    jobs.epoch()
    meter = Meter(redis)
    jobs.submit(questions.question(1))
    claim = jobs.claim(questions.STAGE, "worker", block_s=0.0)
    assert claim
    for _ in range(2):
        jobs.renew(claim)
    for number in range(3):
        jobs.progress(claim, questions.progress(number))
    jobs.complete(claim, questions.answer(1))
    work = meter.work()
    assert (work.renewals, work.writes - 4, work.scripts) == (5, 3, 8)


def test_reading_costs_nothing(redis: Redis) -> None:
    """A meter that nothing happens between counts no command and no bytes worth speaking of."""
    work = Meter(redis).work()
    assert work.commands == 0
    assert abs(work.in_bytes) < 100


def test_an_operation_is_a_share_of_the_whole(redis: Redis) -> None:
    """Ten pings are ten commands, one each, of 14 bytes on the wire."""
    redis.ping()
    meter = Meter(redis)
    for _ in range(10):
        redis.ping()
    each = meter.work().each(10)
    assert each["commands"] == 1
    assert each["in_bytes"] == 14  # *1\r\n$4\r\nPING\r\n
