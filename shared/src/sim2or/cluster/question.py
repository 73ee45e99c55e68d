"""The question of a pod: one job of a planned step, unless somebody has answered it."""

from __future__ import annotations

from structlog.typing import FilteringBoundLogger

from sim2or.artifacts.answers import Answers
from sim2or.artifacts.mirrored import check_mirror, open_store
from sim2or.cluster.plan import Desk, Plan
from sim2or.errors import ConfigError
from sim2or.messages.job import Job
from sim2or.settings import Settings
from sim2or.stages import Table


def question(
    plan: Plan,
    step: str,
    shard: int,
    *,
    service: str,
    settings: Settings,
    table: Table,
    logger: FilteringBoundLogger,
) -> tuple[Job, Answers] | None:
    """What one shard of a step has to find out, and where its answer is kept.

    Args:
        plan: The run.
        step: Which of its steps.
        shard: Which of the step's jobs.
        service: Whose code this process has.
        settings: Where the store is.
        table: Stages and services.
        logger: Is told where nothing is left to do.

    Returns:
        None where it is answered already.

    Raises:
        ConfigError: No such step or shard, another service's step, or a mirror that refuses us.
        TransientError: What it needs is not there yet.
    """
    owner = table.stage(plan.step(step).stage).service
    if owner != service:
        raise ConfigError(f"--step {step}: the {owner} service runs it, this is {service}")
    check_mirror(settings.mirror)
    answers = Answers(open_store(settings.store_root, settings.mirror))
    job = Desk(plan, table, answers.get).job(step, shard)
    if answers.get(job.key):
        logger.info("answered before", key=job.key)
        return None
    return job, answers
