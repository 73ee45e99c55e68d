"""The worker: the child process that imports a service's stages once and runs one job at a time.

It talks to its agent in JSON lines over pipes::

    agent → worker   {"alive": 81.2, "figures": true, "run": {...}}   (end of file: the agent is gone)
    worker → agent   {"ready": 1.2} {"progress": {...}} {"figures": [...]} {"result": {…}} {"failure": {…}}

SIGTERM asks the running stage to unwind at its next ``context.progress``. A worker that hears nothing for
most of a lease ends itself: its agent is frozen, and somebody else may own the job soon. ``alive`` says when
the lease was renewed, by the monotonic clock that both read: a worker that was frozen together with its agent
is not deceived by messages that waited for it.
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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from pydantic import ValidationError

from sim2or import tracing
from sim2or.artifacts.mirrored import MirroredStore, open_store
from sim2or.artifacts.store import Store
from sim2or.clock import utc_now
from sim2or.counts import LIVE
from sim2or.disk import is_full, room
from sim2or.errors import ConfigError, JobError, Sim2OrError, TransientError
from sim2or.messages.job import Progress
from sim2or.messages.message import Spec
from sim2or.process import die_with_parent
from sim2or.settings import load_settings
from sim2or.stage import Cancelled, StageResult
from sim2or.stages import StageInfo, load_table
from sim2or.workspace import inherit

PROGRESS_PERIOD_S = 0.25
PATIENCE = 0.8
"""Share of the lease that a worker waits for its agent: it has ended before another may get its job."""

JUDGE_S = 0.01
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
        work: Workspace of this attempt, in the job's directory.
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


def failure_of(error: BaseException, *places: Path) -> dict[str, str]:
    """Says what kind of failure an exception is: ``TransientError`` and a full disk are worth another try.

    Args:
        error: What was raised.
        places: Where the job writes.
    """
    full = is_full(error, *places)
    kind: FailureKind = "transient" if isinstance(error, TransientError) or full else "permanent"
    message = str(error) if isinstance(error, Sim2OrError) else f"{type(error).__name__}: {error}"
    if full:
        message += f" ({room(*places)}); free space, the job is tried again"
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
    started_at, started_s = utc_now(), time.monotonic()
    context = StageContext(
        work=assignment.work,
        inputs={},
        digests=assignment.inputs,
        report=report,
        cancelled=cancelled,
        shard=assignment.shard,
        shards=assignment.shards,
    )
    store = open_store(
        assignment.store,
        load_settings().mirror,
        progress=lambda done, total: context.progress(done, total, "bytes moved"),
    )
    context.inputs = {role: [store.checkout(d) for d in ds] for role, ds in assignment.inputs.items()}
    if cancelled():
        raise Cancelled
    with held(assignment.work):
        inherit(assignment.work)
        result = info.load_stage().run(parse_spec(info, assignment.spec), context)
        wall_s = round(time.monotonic() - started_s, 3)
        outputs = keep(assignment, info, result, store, {"started_at": started_at, "wall_s": wall_s})
    send_away(store, outputs.values(), info.service, context)
    return {"outputs": outputs, "summary": dict(result.summary)}


@contextmanager
def held(workspace: Path) -> Iterator[None]:
    """What goes wrong in a workspace that is another attempt's by now says nothing about the job.

    Raises:
        TransientError: It was taken away.
    """
    try:
        yield
    except Exception as error:
        if workspace.exists() or is_full(error):
            raise
        raise TransientError(f"another attempt of the job has its workspace now: {error}") from error


def keep(
    assignment: Assignment,
    info: StageInfo,
    result: StageResult,
    store: Store,
    times: Mapping[str, Any],
) -> dict[str, str]:
    """Puts a stage's outputs into the store.

    Args:
        assignment: The job.
        info: Its stage.
        result: What that made.
        store: The store.
        times: When it began and how long it took, for the artifacts' manifests.

    Returns:
        Role to digest.

    Raises:
        JobError: They are not those that the table promises.
    """
    producer = {
        "job": assignment.job_id,
        "run": assignment.run_id,
        "attempt": assignment.attempt,
        **times,
        "summary": dict(result.summary),
    }
    return {
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


def send_away(store: Store, digests: Collection[str], service: str, context: StageContext) -> None:
    """Sends artifacts to the mirror, and to the store that keeps them, where there are such.

    ``SIM2OR_MIRROR`` names a mirror, from which inputs are fetched too; ``SIM2OR_UPLOAD_ENDPOINT`` the
    receiver of a store, which only takes.

    Raises:
        TransientError: The mirror or the receiver is silent, busy or full for too long.
    """
    if isinstance(store, MirroredStore):
        for digest in digests:
            store.push(digest)
    settings = load_settings()
    if not settings.upload_endpoint:
        return
    from sim2or.bus.keys import load_keyring
    from sim2or.bus.upload import Uploader
    from sim2or.messages.envelope import Origin

    keys = load_keyring(settings.keys, service)
    with closing(Uploader(settings.upload_endpoint, Origin(service), keys=keys)) as uploader:
        for digest in digests:
            uploader.push(
                store, digest, progress=lambda done, total: context.progress(done, total, "bytes stored")
            )


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
        self._deadline_s = math.inf
        self._tells_figures = False
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
            self._must_unwind()
            end = problem or self._attempt(assignment)
            self._tell_figures()
            self._patience_s, self._deadline_s = None, math.inf  # before the agent can send the next job
            self._send(end)

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
            return {"result": run_assignment(assignment, info, report, self._must_unwind)}
        except Cancelled:
            return {"failure": {"kind": "transient", "message": "stopped", "traceback": ""}}
        except Exception as error:  # noqa: BLE001 - the handler's border
            return {"failure": failure_of(error, assignment.work, assignment.store)}

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message, default=plain).encode() + b"\n"
        with self._sending:
            while line:
                line = line[os.write(self._out, line) :]

    def _tell_figures(self) -> None:
        """Tells the agent what this process counts, where somebody looks at it."""
        if self._tells_figures:
            self._send({"figures": [asdict(reading) for reading in LIVE.readings()]})

    def _must_unwind(self) -> bool:
        """Whether the job must stop; it never returns in a process whose agent is not heard of any more."""
        while time.monotonic() > self._deadline_s:
            time.sleep(JUDGE_S)  # the reader judges: it finds word of the agent, or ends the process
        return self._stopping.is_set()

    def _on_term(self, *_: object) -> None:
        if self._patience_s is None:
            tracing.flush()
            os._exit(0)
        self._stopping.set()

    def _hear(self) -> None:
        buffer = b""
        while True:
            left_s = max(0.0, self._deadline_s - time.monotonic())
            ready, _, _ = select.select([0], [], [], min(left_s, 1.0))
            if not ready and self._patience_s is not None and time.monotonic() > self._deadline_s:
                os._exit(3)
            chunk = os.read(0, 65536) if ready else b"\n"
            if not chunk:
                os._exit(3)
            *lines, buffer = (buffer + chunk).split(b"\n")
            asked = False
            for line in filter(None, lines):
                message = json.loads(line)
                if "alive" in message and self._patience_s is not None:
                    self._deadline_s = message["alive"] + self._patience_s
                if "figures" in message:
                    self._tells_figures = asked = message["figures"]
                if "run" in message:
                    assignment = Assignment.model_validate(message["run"])
                    self._patience_s = PATIENCE * assignment.lease_s
                    self._deadline_s = message["alive"] + self._patience_s
                    self._assignments.put(assignment)
            if asked:  # once, however many questions waited while the job was in C
                self._tell_figures()


def plain(value: Any) -> Any:
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
    tracing.configure(sys.argv[1])
    table = load_table(os.environ.get("SIM2OR_PLUGINS", ""))
    Worker(table.of_service(sys.argv[1]), out).run()
    tracing.flush()


if __name__ == "__main__":
    main()
