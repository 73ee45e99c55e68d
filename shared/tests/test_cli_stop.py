"""Stopping a run's robot ends its deployments and nothing else."""

from __future__ import annotations

from redis import Redis
from sim2or.bus.jobs import Jobs, Lease
from sim2or.cli.stop import stop_deployments
from sim2or.messages.job import Job


def job(stage: str, run_id: str) -> Job:
    return Job(stage=stage, key=f"{stage} of {run_id}", run_id=run_id, name=stage)


def test_stop_cancels_the_deployments_of_the_run(redis: Redis) -> None:
    """The running deployment is cancelled and said to hold; other stages and other runs go on."""
    jobs = Jobs(redis)
    mine = jobs.submit(job("deploy", "lab")).job_id
    claim = jobs.claim("deploy", "bridge-1", block_s=1.0)
    assert claim is not None
    assert claim.job_id == mine
    others = [jobs.submit(job("deploy", "other")).job_id, jobs.submit(job("train", "lab")).job_id]
    (said,) = stop_deployments(jobs, "lab")
    assert said.startswith(f"{mine}: cancelled; the arm holds")
    assert jobs.renew(claim) is Lease.CANCELLED
    assert [jobs.get(other).state for other in others] == ["queued", "queued"]


def test_a_waiting_deployment_never_starts(redis: Redis) -> None:
    """A deployment that is still queued is cancelled before anything moves."""
    jobs = Jobs(redis)
    waiting = jobs.submit(job("deploy", "lab")).job_id
    assert stop_deployments(jobs, "lab") == [f"{waiting}: cancelled before it moved anything"]
    assert jobs.claim("deploy", "bridge-1", block_s=0.05) is None


def test_nothing_to_stop(redis: Redis) -> None:
    """Without a deployment there is nothing to say."""
    assert stop_deployments(Jobs(redis), "lab") == []
