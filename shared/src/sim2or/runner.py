"""The runner: submits a pipeline's jobs as their inputs come to exist, and follows them to the end.

What is done is known by result keys, so a run that was stopped at any point goes on when it is started again.
A journal beside the run brings it all back when the bus comes back empty. ``run.json`` tells people, and the
report, what happened.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sim2or.artifacts.manifest import canonical_json, digest_of
from sim2or.artifacts.store import Store, write_json
from sim2or.bus.jobs import Submitted
from sim2or.bus.journal import NAME, Journal, recover
from sim2or.bus.queue import EventLog, JobQueue
from sim2or.clock import utc_now
from sim2or.code_digest import code_digest, codes_digest, locks_digest
from sim2or.errors import ConfigError, JobError, TransientError
from sim2or.messages.job import Job, JobRecord
from sim2or.pipeline import Pipeline
from sim2or.settings import result_variables
from sim2or.stages import ANY, Table
from sim2or.step import Source, Step
from sim2or.tracing import environment_traceparent, new_traceparent

POLL_S = 0.2
BUS_PATIENCE_S = 60.0
MAX_SUMMARY_CHARACTERS = 4000


@dataclass
class StepState:
    """How far a step is.

    Attributes:
        step: The step.
        records: The jobs submitted so far, by shard.
        reused: The shards that were answered before this run.
        first_started_ms: When each job was first started, by shard [ms since 1970].
    """

    step: Step
    records: dict[int, JobRecord] = field(default_factory=dict)
    reused: set[int] = field(default_factory=set)
    first_started_ms: dict[int, int] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether every job is done."""
        return len(self.records) == self.step.jobs and all(r.state == "done" for r in self.records.values())

    @property
    def fraction(self) -> float:
        """Share of the work that is done, 0 to 1."""
        return sum(_fraction(record) for record in self.records.values()) / self.step.jobs

    @property
    def span_ms(self) -> tuple[int, int] | None:
        """First start and last end [ms since 1970] of a finished step."""
        if not self.done:
            return None
        starts = [self.first_started_ms[n] for n in self.records if n in self.first_started_ms]
        ends = [r.finished_ms for r in self.records.values() if r.finished_ms]
        return (min(starts), max(ends)) if starts and ends else None

    @property
    def wall_s(self) -> float | None:
        """First start to last end [s]."""
        span = self.span_ms
        return None if span is None else round((span[1] - span[0]) / 1000, 3)


class Display(Protocol):
    """Shows a run to people."""

    def show(self, states: Mapping[str, StepState]) -> None:
        """Shows how far each step is; called several times a second."""


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        states: How each step went.
        report: The exported report, when the pipeline makes one.
        wall_s: How long this invocation took [s].
    """

    states: Mapping[str, StepState]
    report: Path | None
    wall_s: float


class Runner:
    """Runs one pipeline.

    Args:
        pipeline: A validated pipeline.
        jobs: The queue.
        events: Its events.
        store: Where artifacts are.
        run_dir: Where ``run.json`` and the report go.
        table: Services and their locks.
        display: Shows progress.
        force: Asks every question anew.
        started_s: Monotonic time from which the run's wall time counts [s]; now when None.
        environment: Of the services: some settings there change results; this process's when None.
        check: Called regularly; raises when the services can no longer do the work.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        jobs: JobQueue,
        events: EventLog,
        store: Store,
        run_dir: Path,
        table: Table,
        display: Display,
        force: bool = False,
        started_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._pipeline = pipeline
        self._jobs = jobs
        self._events = events
        self._journal = Journal(run_dir / NAME)
        self._store = store
        self._run_dir = run_dir
        self._table = table
        self._display = display
        self._check = check
        self._again = uuid.uuid4().hex if force else ""
        self._states = {step.id: StepState(step) for step in pipeline.steps}
        self._environment = environment
        self.traceparent = new_traceparent(environment_traceparent())
        self._code: dict[tuple[str, ...], tuple[str, str]] = {}
        self._services_code: dict[str, str] = {}
        self._history = _earlier_starts(run_dir / "run.json")
        self._started_utc = utc_now()
        self._started_s = time.monotonic() if started_s is None else started_s
        self._heard_s = time.monotonic()

    def run(self) -> Finished:
        """Submits and follows the jobs until all are done.

        Raises:
            ConfigError: What the pipeline takes from the store is not there, or does not fit.
            JobError: A job failed for good.
            TransientError: The bus did not answer for a minute.
        """
        self._check_stored()
        while True:
            self._check()
            try:
                changed = self._advance()
                self._heard_s = time.monotonic()
            except TransientError:
                if time.monotonic() > self._heard_s + BUS_PATIENCE_S:
                    raise
                changed = False
            if changed:
                self._write()
            self._display.show(self._states)
            self._raise_failure()
            if all(state.done for state in self._states.values()):
                return self._finish()
            if not changed:
                time.sleep(POLL_S)

    def _check_stored(self) -> None:
        """Refuses an artifact of another kind than its input takes, before any work starts."""
        for step in self._pipeline.steps:
            for role, sources in step.inputs.items():
                rule = step.info.inputs.get(role) or step.info.inputs[ANY]
                for digest in [source.output for source in sources if not source.step]:
                    kind = self._store.manifest(digest).kind
                    if not rule.takes(kind):
                        raise ConfigError(
                            f"{step.id}: inputs.{role}: {digest} is of kind {kind!r}; "
                            f"valid: {' or '.join(rule.kinds)}"
                        )

    def cancel(self) -> None:
        """Cancels what this run still has on the bus."""
        for state in self._states.values():
            for record in state.records.values():
                if not record.final:
                    self._jobs.cancel(record.job_id)
                    self._journal.note_dropped(record.job_id)

    def _advance(self) -> bool:
        changed = self._recover()
        for state in self._states.values():
            for shard, record in list(state.records.items()):
                if not record.final:
                    changed |= self._refresh(state, shard)
            for shard in range(state.step.jobs):
                if shard not in state.records:
                    inputs = self._inputs(state.step, shard)
                    if inputs is not None:
                        self._submit(state, shard, inputs)
                        changed = True
        return changed

    def _recover(self) -> bool:
        """Brings this run's jobs back to a bus that lost them; says whether it had to."""
        return bool(
            recover(
                self._jobs,
                self._journal,
                self._events,
                holds=self._store.holds,
                run_id=self._run_dir.name,
            )
        )

    def _refresh(self, state: StepState, shard: int) -> bool:
        before = state.records[shard]
        record = self._found(before)
        if record.final:
            self._journal.note_ended(record)
        state.records[shard] = record
        if record.started_ms:
            earlier = self._history.get(record.job_id, record.started_ms)
            state.first_started_ms.setdefault(shard, min(earlier, record.started_ms))
        return record.state != before.state

    def _found(self, before: JobRecord) -> JobRecord:
        """What the bus knows of a job; one that it lost is submitted again."""
        try:
            return self._jobs.get(before.job_id)
        except ConfigError:
            return self._jobs.get(self._submit_noted(before.job).job_id)

    def _submit_noted(self, job: Job) -> Submitted:
        """Submits a job, and notes it in the journal before anybody relies on it."""
        submitted = self._jobs.submit(job)
        if submitted.state != "done":
            self._journal.note_submitted(job)
        return submitted

    def _inputs(self, step: Step, shard: int) -> dict[str, tuple[str, ...]] | None:
        """The digests of a job's inputs, or None while some do not exist yet."""
        found: dict[str, tuple[str, ...]] = {}
        for role, sources in step.inputs.items():
            digests: list[str] = []
            for source in sources:
                made = self._made(source, only=shard if source.step == step.each else None)
                if made is None:
                    return None
                digests += made
            found[role] = tuple(digests)
        return found

    def _made(self, source: Source, only: int | None) -> list[str] | None:
        if not source.step:
            return [source.output]
        state = self._states[source.step]
        shards = range(state.step.jobs) if only is None else [only]
        digests = []
        for shard in shards:
            record = state.records.get(shard)
            if record is None or record.state != "done" or record.result is None:
                return None
            digests.append(record.result.outputs[source.output])
        return digests

    def _submit(self, state: StepState, shard: int, inputs: Mapping[str, tuple[str, ...]]) -> None:
        step = state.step
        spec = dict(step.spec)
        before = (
            {name: self._states[name] for name in self._pipeline.ancestors(step.id)} if step.fills else {}
        )
        if "wall_s" in step.fills:
            spec["wall_s"] = wall_times_s(before.values())
        if "summaries" in step.fills:
            spec["summaries"] = summaries(before.values())
        job = Job(
            stage=step.info.queue,
            key=self._key(step, spec, inputs, shard),
            spec=spec,
            inputs=dict(inputs),
            shard=shard,
            shards=step.jobs,
            run_id=self._run_dir.name,
            name=step.id if step.jobs == 1 else f"{step.id}[{shard}]",
            traceparent=self.traceparent,
            code=self._code_of(step.info.service),
        )
        submitted = self._submit_until_stored(job)
        state.records[shard] = self._jobs.get(submitted.job_id)
        if submitted.state == "done":
            state.reused.add(shard)
        self._refresh(state, shard)

    def _submit_until_stored(self, job: Job) -> Submitted:
        """Submits a job; where the queue remembers an answer whose files are gone, under the next key."""
        for key in itertools.chain([job.key], (f"{job.key}+{n}" for n in itertools.count(1))):
            submitted = self._submit_noted(job.model_copy(update={"key": key}))
            if submitted.state != "done" or self._stored(self._jobs.get(submitted.job_id)):
                return submitted
        raise AssertionError("endless")

    def _stored(self, record: JobRecord) -> bool:
        return record.result is not None and all(map(self._store.holds, record.result.outputs.values()))

    def _code_of(self, service: str) -> str:
        """The digest of a service's code, read once in a run."""
        if service not in self._services_code:
            self._services_code[service] = code_digest(self._table.services[service].module)
        return self._services_code[service]

    def _key(
        self, step: Step, spec: Mapping[str, Any], inputs: Mapping[str, tuple[str, ...]], shard: int
    ) -> str:
        names = (step.info.service, *step.info.needs)
        if names not in self._code:
            services = [self._table.services[name] for name in names]
            self._code[names] = (
                codes_digest(service.module for service in services),
                locks_digest((service.module, service.lock) for service in services),
            )
        code, lock = self._code[names]
        return result_key(
            stage=step.info.queue,
            code=code,
            lock=lock,
            inputs=inputs,
            spec=spec,
            shard=shard,
            shards=step.jobs,
            settings=result_variables(names, self._environment),
            again=self._again,
        )

    def _raise_failure(self) -> None:
        for state in self._states.values():
            for record in state.records.values():
                if record.state in ("failed", "dead", "cancelled"):
                    self._write()
                    self.cancel()
                    reason = record.error.message if record.error else "no reason recorded"
                    raise JobError(
                        f"{record.job.name} {record.state} after {record.attempts} attempts: {reason}\n"
                        f"see it: sim2or jobs show {record.job_id} --run {self._run_dir.name}"
                    )

    def _finish(self) -> Finished:
        report = None
        for state in self._states.values():
            for record in state.records.values():
                if record.result and "report" in record.result.outputs:
                    report = export(self._store, record.result.outputs["report"], self._run_dir / "report")
        if report and self._is_whole():
            _set_total(report.parent / "summary.json", time.monotonic() - self._started_s)
        self._write(finished=True)
        return Finished(self._states, report, time.monotonic() - self._started_s)

    def _is_whole(self) -> bool:
        """Whether this invocation did all of the work, so that its wall time is the run's."""
        return not any(
            shard in state.reused or record.job_id in self._history
            for state in self._states.values()
            for shard, record in state.records.items()
        )

    def _write(self, *, finished: bool = False) -> None:
        write_json(self._run_dir / "run.json", self._summary(finished))

    def _summary(self, finished: bool) -> dict[str, Any]:
        return {
            "pipeline": self._pipeline.name,
            "file": self._pipeline.path.name,
            "file_digest": digest_of(self._pipeline.path.read_bytes()),
            "started_utc": self._started_utc,
            "traceparent": self.traceparent,
            "finished": finished,
            "invocation_wall_s": round(time.monotonic() - self._started_s, 3),
            "wall_s": wall_times_s(self._states.values()),
            "stages": {name: _step_summary(state) for name, state in self._states.items()},
        }


def result_key(
    *,
    stage: str,
    code: str,
    lock: str,
    inputs: Mapping[str, tuple[str, ...]],
    spec: Mapping[str, Any],
    shard: int,
    shards: int,
    settings: Mapping[str, str] | None = None,
    again: str = "",
) -> str:
    """The digest of a question: equal questions have equal keys.

    Args:
        stage: Its queue.
        code: Digest of the code that answers: the service's, and that of the servers it needs.
        lock: Digest of the locked requirements they run with.
        inputs: Role to digests.
        spec: Resolved configuration, seed included.
        shard: Number of this part.
        shards: How many parts there are.
        settings: Variables of the environment that change the answer.
        again: A random text asks an answered question once more.
    """
    question = {
        "stage": stage,
        "code": code,
        "lock": lock,
        "inputs": {role: list(digests) for role, digests in inputs.items()},
        "spec": spec,
        "shard": shard,
        "shards": shards,
        "settings": dict(settings or {}),
    } | ({"again": again} if again else {})
    return hashlib.sha256(canonical_json(question)).hexdigest()


def export(store: Store, digest: str, target: Path) -> Path:
    """Copies an artifact's files to a directory for people; what was there is replaced.

    Returns:
        The page to open: ``index.html`` where there is one.
    """
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    shutil.copytree(store.checkout(digest), fresh, copy_function=shutil.copyfile)
    if target.exists():
        shutil.rmtree(target)
    fresh.rename(target)
    page = target / "index.html"
    return page if page.exists() else target


def wall_times_s(states: Iterable[StepState]) -> dict[str, float]:
    """Wall times of what is finished [s]: of each step by its id, of each phase by its name, and ``total``.

    A step is timed from its first start to its last end. A phase (converting and merging make ``dataset``,
    trials and their verdict make ``evaluate``) and the total count what ran side by side once, and pauses
    not at all.
    """
    steps: dict[str, float] = {}
    phases: dict[str, list[tuple[int, int]]] = {"total": []}
    for state in sorted(states, key=lambda state: state.step.id):
        if state.wall_s is None or state.span_ms is None:
            continue
        steps[state.step.id] = state.wall_s
        for phase in (state.step.info.phase or state.step.info.name, "total"):
            phases.setdefault(phase, []).append(state.span_ms)
    return {**steps, **{phase: busy_s(spans) for phase, spans in phases.items()}}


def summaries(states: Iterable[StepState]) -> dict[str, dict[str, Any]]:
    """The summary of each stage that is one finished job here, by the stage's name; no large ones."""
    found: dict[str, list[dict[str, Any]]] = {}
    for state in states:
        for record in state.records.values():
            found.setdefault(state.step.info.name, []).append(record.result.summary if record.result else {})
    return {
        name: given[0]
        for name, given in sorted(found.items())
        if len(given) == 1 and len(json.dumps(given[0])) <= MAX_SUMMARY_CHARACTERS
    }


def _set_total(path: Path, total_s: float) -> None:
    """Puts the whole run's time into the exported summary: the report itself could not know it."""
    if path.exists():
        summary = json.loads(path.read_text())
        write_json(path, {**summary, "wall_s": {**summary.get("wall_s", {}), "total": round(total_s, 1)}})


def busy_s(spans_ms: list[tuple[int, int]]) -> float:
    """Length of the union of time spans [s]: interruptions between runs are not counted.

    Args:
        spans_ms: (start, end) [ms], in any order.
    """
    total_ms, reached = 0, 0
    for start, end in sorted(spans_ms):
        total_ms += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total_ms / 1000


def _fraction(record: JobRecord) -> float:
    if record.state == "done":
        return 1.0
    progress = record.progress
    if progress is None or progress.total <= 0:
        return 0.0
    return min(1.0, progress.done / progress.total)


def _step_summary(state: StepState) -> dict[str, Any]:
    return {
        "stage": state.step.info.name,
        "wall_s": state.wall_s,
        "jobs": [
            {
                "job": record.job_id,
                "key": record.job.key,
                "shard": shard,
                "state": record.state,
                "attempts": record.attempts,
                "reused": shard in state.reused,
                "first_started_ms": state.first_started_ms.get(shard),
                "finished_ms": record.finished_ms,
                "outputs": record.result.outputs if record.result else {},
                "summary": record.result.summary if record.result else {},
            }
            for shard, record in sorted(state.records.items())
        ],
    }


def _earlier_starts(path: Path) -> dict[str, int]:
    """First starts [ms] of jobs that an earlier invocation of this run saw."""
    return {
        job["job"]: job["first_started_ms"]
        for stage in _read_run(path).get("stages", {}).values()
        for job in stage["jobs"]
        if job.get("first_started_ms")
    }


def _read_run(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found
