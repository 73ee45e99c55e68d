"""A process that helps with a shard: one of several that torchrun started, and not the first.

The first one, rank 0, is the job: workspace, progress, artifacts and answer are its own. The others run the
same stage on the same inputs in a directory that they throw away. They have no queue and no child process.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from sim2or import log
from sim2or.artifacts.mirrored import open_store
from sim2or.cluster.plan import Plan
from sim2or.cluster.question import question
from sim2or.code_digest import code_digest
from sim2or.errors import ConfigError, JobError
from sim2or.exit_status import ExitStatus, status_of
from sim2or.messages.job import Job
from sim2or.metrics import expose
from sim2or.settings import Settings
from sim2or.stage import Cancelled
from sim2or.stages import StageInfo, Table
from sim2or.worker import StageContext, failure_of, parse_spec


def is_peer(environment: Mapping[str, str]) -> bool:
    """Whether torchrun's variables say that another process is the first."""
    return environment.get("WORLD_SIZE", "1") != "1" and environment.get("RANK", "0") != "0"


def run_peer(
    plan: Plan, step: str, shard: int, *, service: str, settings: Settings, table: Table
) -> ExitStatus:
    """Helps with the question of one shard, unless it is answered already.

    Args:
        plan: The run.
        step: Which of its steps.
        shard: Which of the step's jobs.
        service: Whose code this process has.
        settings: Where the store is.
        table: Stages and services.

    Returns:
        How it went; interrupted where this process was told to stop.

    Raises:
        ConfigError: No such step or shard, another service's step, or a mirror that refuses us.
        TransientError: What it needs is not there yet.
    """
    log.configure(service)
    logger = log.get_logger(run=plan.run, step=step, shard=shard, rank=os.environ.get("RANK"))
    asked = question(plan, step, shard, service=service, settings=settings, table=table, logger=logger)
    if asked is None:
        return ExitStatus.DONE
    job, _ = asked
    module = table.services[service].module
    if job.code not in ("", code_digest(module)):
        raise JobError(
            f"the job asks for {service} code {job.code[:19]}…, here is {code_digest(module)[:19]}…; build "
            "all images from one commit and render the plan there"
        )
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one of a pod's processes tells its health
        expose(settings, service)
    status, error = _help(job, table.stage(job.stage), settings, _stop_event())
    logger.info("peer", key=job.key, status=status.name.lower(), **({"error": error} if error else {}))
    return status


def _stop_event() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stopping = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopping.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    return stopping


def _help(job: Job, info: StageInfo, settings: Settings, stopping: threading.Event) -> tuple[ExitStatus, str]:
    """Runs the stage in a directory of its own; how it went, and why."""
    with tempfile.TemporaryDirectory(prefix="s2o-peer-") as work:
        context = StageContext(
            work=Path(work),
            inputs={},
            digests=job.inputs,
            report=lambda progress: None,
            cancelled=stopping.is_set,
            shard=job.shard,
            shards=job.shards,
        )
        try:
            store = open_store(
                settings.store_root,
                settings.mirror,
                progress=lambda done, total: context.progress(done, total, "bytes moved"),
            )
            context.inputs = {role: [store.checkout(d) for d in ds] for role, ds in job.inputs.items()}
            info.load_stage().run(parse_spec(info, job.spec), context)
        except Cancelled:
            return ExitStatus.INTERRUPTED, ""
        except Exception as error:  # noqa: BLE001 - the handler's border, as in a worker
            if stopping.is_set():
                return ExitStatus.INTERRUPTED, str(error)
            return _judge(error, Path(work), settings.store_root)
    return ExitStatus.DONE, ""


def _judge(error: Exception, *places: Path) -> tuple[ExitStatus, str]:
    """What an error means to who started the process: the same as a worker's."""
    failure = failure_of(error, *places)
    if isinstance(error, ConfigError):
        return status_of(error), failure["message"]
    kinds = {"transient": ExitStatus.TRANSIENT, "permanent": ExitStatus.PERMANENT}
    return kinds[failure["kind"]], failure["message"]
