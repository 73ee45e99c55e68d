"""The worker: the child process that imports a service's stages once and runs one job at a time.

It talks to its agent in JSON lines over pipes::

    agent → worker   {"run": {...}}   {"alive": true}   (end of file: the agent is gone)
    worker → agent   {"ready": 1.2}   {"progress": {...}}   {"result": {...}}   {"failure": {...}}

SIGTERM asks the running stage to unwind at its next ``context.progress``. A worker that hears nothing for
most of a lease ends itself: its agent is frozen, and somebody else may own the job soon.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from pydantic import ValidationError

from sim2or.artifacts.store import Store, take_back
from sim2or.clock import utc_now
from sim2or.errors import ConfigError, JobError, Sim2OrError, TransientError
from sim2or.messages.job import Progress
from sim2or.messages.message import Spec
from sim2or.process import die_with_parent
from sim2or.stage import Cancelled, StageResult
from sim2or.stages import StageInfo, load_table

PROGRESS_PERIOD_S = 0.25
PATIENCE = 0.8
"""Share of the lease that a worker waits for its agent: it has ended before another may get its job."""

FailureKind = Literal["permanent", "transient", "crashed"]


class Assignment(Spec):
    """One job, as the agent hands it to the worker.

    Attributes:
        job_id: The job.
        attempt: 1 for the first delivery.
        stage: Name of the stage.
        key: Result key, kept in the artifacts.
        spec: Its configuration, not yet validated.
        inputs: Role to digests.
        shard: 0 ≤ shard < shards.
        shards: How many jobs share the stage.
        work: Work directory.
        store: Root of the artifact store.
        run_id: The run it belongs to.
        traceparent: W3C trace context, passed on in ``TRACEPARENT``.
        lease_s: How long the job stays with an agent that is not heard of [s]; the worker waits less.
    """

    job_id: str
    attempt: int
    stage: str
    key: str
    spec: dict[str, Any]
    inputs: dict[str, tuple[str, ...]]
    shard: int = 0
    shards: int = 1
    work: Path
    store: Path
    run_id: str = ""
    traceparent: str = ""
    lease_s: float = 10.0


@dataclass
class StageContext:
    """The ``Context`` that stages are given, by a worker and by ``python -m sim2or_<service> run``.

    Attributes:
        report: Called with the progress, at most four times a second.
        cancelled: Whether the stage must unwind.
    """

    work: Path
    inputs: Mapping[str, Sequence[Path]]
    digests: Mapping[str, Sequence[str]]
    report: Callable[[Progress], None]
    cancelled: Callable[[], bool] = lambda: False
    shard: int = 0
    shards: int = 1
    _next_s: float = field(default=0.0, init=False)
    _started_s: float = field(default_factory=time.monotonic, init=False)

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        """Reports progress and raises ``Cancelled`` when the job must stop."""
        if self.cancelled():
            raise Cancelled
        now_s = time.monotonic()
        if now_s < self._next_s and done < total:
            return
        self._next_s = now_s + PROGRESS_PERIOD_S
        elapsed_s = now_s - self._started_s
        self.report(
            Progress(
                done=max(0.0, float(done)),
                total=max(0.0, float(total)),
                unit=unit,
                eta_s=elapsed_s * max(0.0, total - done) / done if done > 0 else None,
                metrics={name: float(v) for name, v in metrics.items() if math.isfinite(v)},
            )
        )


def failure_of(error: BaseException) -> dict[str, str]:
    """Says what kind of failure an exception is: only ``TransientError`` is worth another try."""
    kind: FailureKind = "transient" if isinstance(error, TransientError) else "permanent"
    message = str(error) if isinstance(error, Sim2OrError) else f"{type(error).__name__}: {error}"
    return {"kind": kind, "message": message, "traceback": traceback.format_exc(limit=20)}


def parse_spec(info: StageInfo, spec: Mapping[str, Any]) -> Spec:
    """Validates a stage's configuration.

    Raises:
        ConfigError: A key or value is wrong.
    """
    from sim2or.explanation import explain

    cls = info.spec_class()
    try:
        return cls.model_validate_json(json.dumps(spec))
    except ValidationError as error:
        raise ConfigError("; ".join(str(p) for p in explain(error, cls, info.name))) from error


def run_assignment(
    assignment: Assignment,
    info: StageInfo,
    report: Callable[[Progress], None],
    cancelled: Callable[[], bool],
) -> dict[str, Any]:
    """Runs one job: inputs from the store, the stage, outputs into the store.

    Returns:
        ``{"outputs": {role: digest}, "summary": {...}}``.
    """
    store = Store(assignment.store)
    started_at, started_s = utc_now(), time.monotonic()
    context = StageContext(
        work=assignment.work,
        inputs={role: [store.checkout(d) for d in digests] for role, digests in assignment.inputs.items()},
        digests=assignment.inputs,
        report=report,
        cancelled=cancelled,
        shard=assignment.shard,
        shards=assignment.shards,
    )
    assignment.work.mkdir(parents=True, exist_ok=True)
    take_back(assignment.work)
    result = info.load_stage().run(parse_spec(info, assignment.spec), context)
    producer = {
        "job": assignment.job_id,
        "run": assignment.run_id,
        "attempt": assignment.attempt,
        "started_at": started_at,
        "wall_s": round(time.monotonic() - started_s, 3),
        "summary": dict(result.summary),
    }
    outputs = {
        role: store.put(
            path,
            kind=info.outputs[role],
            meta={
                "stage": info.name,
                "spec": assignment.spec,
                "shard": assignment.shard,
                "shards": assignment.shards,
            },
            parents=assignment.inputs,
            key=assignment.key,
            producer=producer,
        ).digest
        for role, path in checked_outputs(info, result).items()
    }
    return {"outputs": outputs, "summary": dict(result.summary)}


def checked_outputs(info: StageInfo, result: StageResult) -> dict[str, Path]:
    """The outputs of a stage, which must be those that the table promises.

    Raises:
        JobError: One is missing or unknown.
    """
    if set(result.outputs) != set(info.outputs):
        raise JobError(
            f"stage {info.name!r} made {sorted(result.outputs)}; the table says {sorted(info.outputs)}"
        )
    return dict(result.outputs)


class Worker:
    """One worker process: a reader thread hears the agent, the main thread runs stages."""

    def __init__(self, stages: Mapping[str, StageInfo], out: int) -> None:
        self._stages = stages
        self._out = out
        self._assignments: SimpleQueue[Assignment] = SimpleQueue()
        self._patience_s: float | None = None
        self._stopping = threading.Event()
        self._sending = threading.Lock()

    def run(self) -> None:
        """Imports the stages, then runs jobs until the agent goes away."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the agent decides, not the terminal
        threading.Thread(target=self._hear, name="agent", daemon=True).start()
        started_s = time.monotonic()
        problem = self._import()
        self._send({"ready": round(time.monotonic() - started_s, 3)})
        while not self._stopping.is_set():
            assignment = self._assignments.get()
            self._send(problem or self._attempt(assignment))
            self._patience_s = None

    def _import(self) -> dict[str, Any] | None:
        try:
            for info in self._stages.values():
                info.load_stage()
        except Exception as error:  # noqa: BLE001 - the handler's border: a service that cannot start says why in its jobs
            return {"failure": failure_of(error)}
        return None

    def _attempt(self, assignment: Assignment) -> dict[str, Any]:
        os.environ.pop("TRACEPARENT", None)
        if assignment.traceparent:
            os.environ["TRACEPARENT"] = assignment.traceparent

        def report(progress: Progress) -> None:
            self._send({"progress": progress.model_dump(mode="json")})

        try:
            info = self._stages[assignment.stage]
            return {"result": run_assignment(assignment, info, report, self._stopping.is_set)}
        except Cancelled:
            return {"failure": {"kind": "transient", "message": "stopped", "traceback": ""}}
        except Exception as error:  # noqa: BLE001 - the handler's border
            return {"failure": failure_of(error)}

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message, default=_plain).encode() + b"\n"
        with self._sending:
            while line:
                line = line[os.write(self._out, line) :]

    def _on_term(self, *_: object) -> None:
        if self._patience_s is None:
            os._exit(0)
        self._stopping.set()

    def _hear(self) -> None:
        buffer = b""
        while True:
            patience_s = self._patience_s
            ready, _, _ = select.select([0], [], [], 1.0 if patience_s is None else patience_s)
            if not ready and patience_s is not None and self._patience_s is not None:
                os._exit(3)
            chunk = os.read(0, 65536) if ready else b"\n"
            if not chunk:
                os._exit(3)
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in filter(None, lines):
                message = json.loads(line)
                if "run" in message:
                    assignment = Assignment.model_validate(message["run"])
                    self._patience_s = PATIENCE * assignment.lease_s
                    self._assignments.put(assignment)


def _plain(value: Any) -> Any:
    """JSON for what summaries tend to hold: numpy scalars and arrays, paths, tuples."""
    for method in ("tolist", "as_posix"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} is not JSON")


def main() -> None:
    """``python -m sim2or.worker SERVICE``: started by the agent only."""
    die_with_parent(signal.SIGKILL)
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not mix with the protocol
    sys.stdout = sys.stderr
    table = load_table(os.environ.get("SIM2OR_PLUGINS", ""))
    Worker(table.of_service(sys.argv[1]), out).run()


if __name__ == "__main__":
    main()
