"""One shard of a planned step, run by a pod: no bus, the answer beside the artifacts.

The pod's process is a service's own agent with a queue of one job in memory. So a pod has what a service has:
the job in a child process, limits on silence, the workspace that attempts inherit, metrics and health.
Kubernetes counts the attempts: a failure ends the process, and its status says whether another is worth it.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from types import FrameType

from sim2or import log, tracing
from sim2or.bus.memory import MemoryBus, MemoryJobs
from sim2or.cluster.plan import Plan
from sim2or.cluster.question import question
from sim2or.exit_status import ExitStatus
from sim2or.messages.job import Job, JobRecord
from sim2or.metrics import expose
from sim2or.service import Agent
from sim2or.settings import Settings
from sim2or.stages import Table

STATUSES: Mapping[str, ExitStatus] = {
    "done": ExitStatus.DONE,
    "failed": ExitStatus.PERMANENT,
    "dead": ExitStatus.TRANSIENT,
    "queued": ExitStatus.INTERRUPTED,
}
"""What a job's state in the pod's own queue means to who started the pod; queued: it was handed back."""


def run_shard(
    plan: Plan, step: str, shard: int, *, service: str, settings: Settings, table: Table
) -> ExitStatus:
    """Answers the question of one shard, unless it is answered already.

    Args:
        plan: The run.
        step: Which of its steps.
        shard: Which of the step's jobs.
        service: Whose code this process has.
        settings: Where the store and the work directories are.
        table: Stages and services.

    Returns:
        How it went.

    Raises:
        ConfigError: No such step or shard, another service's step, or a mirror that refuses us.
        TransientError: What it needs is not there yet.
    """
    log.configure(service)
    logger = log.get_logger(run=plan.run, step=step, shard=shard)
    asked = question(plan, step, shard, service=service, settings=settings, table=table, logger=logger)
    if asked is None:
        return ExitStatus.DONE
    job, answers = asked
    record = _work(job, service, settings, table)
    if record.state == "done":
        record = answers.put(record)
    error = record.error.message if record.error and record.state != "done" else ""
    outputs = record.result.outputs if record.result else {}
    logger.info(
        "shard", key=job.key, state=record.state, outputs=outputs, **({"error": error} if error else {})
    )
    return STATUSES[record.state]


def _work(job: Job, service: str, settings: Settings, table: Table) -> JobRecord:
    """Runs one job to its first end; SIGTERM and SIGINT hand it back."""
    jobs = MemoryJobs(MemoryBus(), lease_s=settings.lease_s, max_deliveries=1)
    job_id = jobs.submit(job).job_id
    agent = Agent(service, settings=settings, jobs=jobs, table=table)

    def stop(signum: int, frame: FrameType | None) -> None:
        agent.stop()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    tracing.configure(service)
    expose(settings, service, {"worker": agent.worker_readings})
    try:
        agent.run(until=lambda: jobs.get(job_id).final)
    finally:
        tracing.flush()
    return jobs.get(job_id)
