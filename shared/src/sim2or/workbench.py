"""A pipeline's jobs, one after another in this process's main thread, so that a debugger stops in any stage.

The queue is the in-memory one; stages take and give real artifacts. An exception is not turned into a failed
job: it is raised where it happened. What is finished stays in the store, and the run's journal remembers it.
"""

from __future__ import annotations

import json
import os

from sim2or.bus.jobs import Claim
from sim2or.bus.queue import JobQueue
from sim2or.errors import ConfigError
from sim2or.messages.job import Progress
from sim2or.pipeline import Pipeline
from sim2or.service import assignment_of, result_message
from sim2or.settings import Settings
from sim2or.stages import StageInfo
from sim2or.worker import plain, run_assignment
from sim2or.workspace import remove

LEASE_S = 1e6
"""Nobody else takes a job while somebody looks at it in a debugger."""


class Workbench:
    """Does the jobs of one pipeline.

    Args:
        pipeline: Whose stages.
        jobs: The queue.
        settings: Where the run and its store are.

    Raises:
        ConfigError: A step needs a server, and there is none in this process.
    """

    name = f"workbench:{os.getpid()}"

    def __init__(self, pipeline: Pipeline, jobs: JobQueue, settings: Settings) -> None:
        check_needs(pipeline)
        self._stages = {step.info.queue: step.info for step in pipeline.steps}
        self._jobs = jobs
        self._settings = settings

    def work(self) -> None:
        """Does one job of each stage that has one."""
        for info in self._stages.values():
            claim = self._jobs.claim(info.queue, self.name, block_s=0.0)
            if claim:
                self._do(claim, info)

    def _do(self, claim: Claim, info: StageInfo) -> None:
        def report(progress: Progress) -> None:
            self._jobs.progress(claim, progress)

        os.environ["TRACEPARENT"] = claim.job.traceparent
        assignment = assignment_of(claim, self._settings, claim.job.traceparent)
        result = run_assignment(assignment, info, report, lambda: False)
        as_sent = json.loads(json.dumps(result, default=plain))
        self._jobs.complete(claim, result_message(as_sent, info.outputs))
        remove(assignment.work.parent)


def check_needs(pipeline: Pipeline) -> None:
    """Refuses a pipeline that asks servers.

    Raises:
        ConfigError: Names the step, the servers, and how to go without them.
    """
    served = {step.id for step in pipeline.steps if step.info.needs}
    if not served:
        return
    step = next(step for step in pipeline.steps if step.id in served)
    alone = [s.id for s in pipeline.steps if not served & {s.id, *pipeline.ancestors(s.id)}]
    raise ConfigError(
        f"{pipeline.path}: step {step.id!r} needs {' and '.join(step.info.needs)}, which --in-process does "
        f"not start: end before it with --until ({', '.join(alone)}), or run without --in-process"
    )
