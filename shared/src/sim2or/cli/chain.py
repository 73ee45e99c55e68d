"""One run's whole chain, rebuilt from the stream of events alone.

Every job that the run asked for, whoever answered it: its attempts, workers and times, what it made and from
what, verdicts, and what was reused from other runs on the same bus. The store and the queue's records are not
looked at, so the chain can be told after both are gone, and compared with them while they are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from redis import Redis
from rich.console import Console

from sim2or.bus.events import START, Events
from sim2or.errors import ConfigError, choices
from sim2or.messages.event import Event
from sim2or.messages.job import FINAL_STATES
from sim2or.messages.message import Spec

DIGEST_CHARACTERS = 19


class Attempt(Spec):
    """One start of a job. Times are Redis's clock [ms since 1970].

    Attributes:
        number: Counts the starts of the job, from 1.
        worker: Who had it.
        started_ms: When; None where the events do not go back so far.
        ended_ms: When it ended or was given up; None while it runs.
        outcome: ``done``, ``failed``, ``dead``, ``cancelled``, ``retry``, ``released`` or ``lost``; "" while
            it runs.
        fenced: Whether a result came after somebody else had the job, and was discarded.
    """

    number: int
    worker: str
    started_ms: int | None
    ended_ms: int | None = None
    outcome: str = ""
    fenced: bool = False


class Made(Spec):
    """An artifact.

    Attributes:
        role: The output of its job's stage.
        kind: What it is, for example ``"dataset"``.
        digest: Names it.
        parents: Input role to the digests it was made from.
    """

    role: str
    kind: str
    digest: str
    parents: dict[str, tuple[str, ...]]


class ChainJob(Spec):
    """One job of the chain.

    Attributes:
        job_id: Names it.
        stage: Its stage.
        name: What the run calls it.
        asked_by: The runs that asked for it, first the one that it was run for.
        reused: Whether another run had asked for it before.
        state: Its state at the end of the events.
        submitted_ms: When it was first queued [ms since 1970]; None where the events do not go back so far.
        inputs: Role to digests, as it was asked.
        attempts: Its starts.
        artifacts: What it made.
        verdicts: What was judged: digest and figures.
        summary: Its figures.
        error: Why it failed last; "" when it did not.
    """

    job_id: str
    stage: str
    name: str
    asked_by: tuple[str, ...]
    reused: bool
    state: str
    submitted_ms: int | None
    inputs: dict[str, tuple[str, ...]]
    attempts: tuple[Attempt, ...]
    artifacts: tuple[Made, ...]
    verdicts: tuple[dict[str, Any], ...]
    summary: dict[str, Any]
    error: str

    @property
    def wall_s(self) -> float | None:
        """First start to last end [s]; None while one of them is not known."""
        starts = [attempt.started_ms for attempt in self.attempts if attempt.started_ms is not None]
        ends = [attempt.ended_ms for attempt in self.attempts if attempt.ended_ms is not None]
        return (max(ends) - min(starts)) / 1000 if starts and ends else None


class Chain(Spec):
    """A run, from its first question to what it made in the end.

    Attributes:
        run: Its name.
        traces: Ids of its W3C traces; one for each invocation.
        jobs: In the order in which the run asked for them.
    """

    run: str
    traces: tuple[str, ...]
    jobs: tuple[ChainJob, ...]

    def makers(self) -> dict[str, tuple[ChainJob, Made]]:
        """Digest to the artifact and the job that made it."""
        return {made.digest: (job, made) for job in self.jobs for made in job.artifacts}

    def ends(self) -> list[str]:
        """The artifacts of which nothing else was made, in the order they were asked for."""
        used = {d for job in self.jobs for m in job.artifacts for ds in m.parents.values() for d in ds}
        return [digest for digest in self.makers() if digest not in used]


@dataclass(frozen=True)
class Link:
    """One step of a walk through a chain, the same as ``artifacts.lineage`` walks through the store.

    Attributes:
        depth: 0 for the artifact that the walk began with.
        role: The input role by which its child used it; "" at depth 0.
        digest: The artifact.
        repeated: Met before: its own parents are not listed again.
    """

    depth: int
    role: str
    digest: str
    repeated: bool


@dataclass
class _Story:
    """What the events have told about a job so far."""

    job_id: str
    stage: str = ""
    names: dict[str, str] = field(default_factory=dict)
    reusing: set[str] = field(default_factory=set)
    traces: dict[str, list[str]] = field(default_factory=dict)
    place: dict[str, int] = field(default_factory=dict)
    state: str = ""
    submitted_ms: int | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    artifacts: dict[tuple[str, str], Made] = field(default_factory=dict)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def tell(self, event: Event, place: int) -> None:
        """Goes on with the next event."""
        self.stage = event.stage or self.stage
        what = event.kind.removeprefix("job.")
        if what in ("submitted", "reused"):
            self._asked(event, place, reused=what == "reused")
        elif what == "started":
            self.state = "running"
            self.attempts.append(Attempt(number=event.attempt, worker=event.worker, started_ms=event.time_ms))
        elif what in ("lost", "released", "retry", *FINAL_STATES):
            self._ended(event, what)
        elif what == "fenced":
            self._fenced(int(event.detail.get("attempt", 0)))
        elif what == "retried":
            self.state = "queued"
        elif event.kind == "artifact.stored":
            made = Made.model_validate(event.detail)
            self.artifacts[made.role, made.digest] = made
        elif event.kind == "verdict.recorded":
            self.verdicts.append(event.detail)

    def _asked(self, event: Event, place: int, *, reused: bool) -> None:
        run = str(event.detail.get("run_id", "")) if reused else event.run_id
        trace = str(event.detail.get("traceparent", "")) if reused else event.traceparent
        self.names[run] = str(event.detail.get("name", "")) or self.names.get(run, "")
        self.place.setdefault(run, place)
        if trace and trace[3:35] not in self.traces.setdefault(run, []):
            self.traces[run].append(trace[3:35])
        if reused:
            self.reusing.add(run)
            return
        self.reusing.discard(run)
        self.state, self.error = "queued", ""
        self.submitted_ms = self.submitted_ms or event.time_ms
        self.inputs = event.detail.get("inputs", self.inputs)

    def _ended(self, event: Event, what: str) -> None:
        self.state = what if what in FINAL_STATES else "queued"
        self.error = str(event.detail.get("message", "")) or self.error
        if what == "done":
            self.summary, self.error = event.detail.get("summary", {}), ""
        for index in reversed(range(len(self.attempts))):
            attempt = self.attempts[index]
            if attempt.number == event.attempt and not attempt.outcome:
                self.attempts[index] = attempt.model_copy(update={"ended_ms": event.time_ms, "outcome": what})
                return
        if what == "done":  # its start was told on a bus that is lost
            told = {"number": event.attempt, "worker": event.worker, "ended_ms": event.time_ms}
            self.attempts.append(Attempt(started_ms=None, outcome=what, **told))

    def _fenced(self, number: int) -> None:
        for index, attempt in enumerate(self.attempts):
            if attempt.number == number:
                self.attempts[index] = attempt.model_copy(update={"fenced": True})

    def job(self, run: str) -> ChainJob:
        """The job, as one run sees it."""
        first = next(iter(self.names))
        return ChainJob(
            job_id=self.job_id,
            stage=self.stage,
            name=self.names[run] or self.names[first] or self.stage,
            asked_by=tuple(self.names),
            reused=run in self.reusing,
            state=self.state,
            submitted_ms=self.submitted_ms,
            inputs=self.inputs,
            attempts=tuple(self.attempts),
            artifacts=tuple(self.artifacts.values()),
            verdicts=tuple(self.verdicts),
            summary=self.summary,
            error=self.error,
        )


def rebuild(events: Iterable[Event], run: str) -> Chain:
    """Rebuilds a run from what happened.

    Args:
        events: All of the bus, oldest first; other runs' are needed for what was reused.
        run: The run's name.

    Raises:
        ConfigError: No event tells of that run.
    """
    stories: dict[str, _Story] = {}
    for place, event in enumerate(events):
        if event.job_id:
            stories.setdefault(event.job_id, _Story(event.job_id)).tell(event, place)
    mine = sorted((s for s in stories.values() if run in s.names), key=lambda story: story.place[run])
    if not mine:
        runs = {name for story in stories.values() for name in story.names if name}
        raise ConfigError(f"chain {run}: no event tells of this run; {choices(run, runs)}")
    traces = dict.fromkeys(trace for story in mine for trace in story.traces.get(run, ()))
    return Chain(run=run, traces=tuple(traces), jobs=tuple(story.job(run) for story in mine))


def walk(chain: Chain, digest: str, seen: set[str] | None = None) -> Iterator[Link]:
    """Walks from an artifact to everything it was made from, depth first, each subtree once."""
    makers = chain.makers()
    met: set[str] = set() if seen is None else seen

    def step(role: str, name: str, depth: int) -> Iterator[Link]:
        repeated = name in met
        met.add(name)
        yield Link(depth, role, name, repeated)
        if repeated or name not in makers:
            return
        for parent_role, digests in sorted(makers[name][1].parents.items()):
            for parent in digests:
                yield from step(parent_role, parent, depth + 1)

    yield from step("", digest, 0)


def lines(chain: Chain) -> Iterator[str]:
    """The chain for people: what was made in the end, and below it what it was made from."""
    reused = sum(job.reused for job in chain.jobs)
    yield f"run {chain.run}: {len(chain.jobs)} jobs, {reused} reused, trace {', '.join(chain.traces) or '–'}"
    makers, seen = chain.makers(), set[str]()
    for end in chain.ends():
        for link in walk(chain, end, seen):
            role = f"{link.role}: " if link.role else ""
            if link.digest not in makers:
                text = f"{link.digest[:DIGEST_CHARACTERS]}  made where these events do not reach"
            else:
                job, made = makers[link.digest]
                told = " (see above)" if link.repeated else f"  {describe(job)}"
                text = f"{made.kind} {made.digest[:DIGEST_CHARACTERS]}{told}"
            yield f"{'  ' * link.depth}{role}{text}"
    for job in chain.jobs:
        if not job.artifacts:
            yield f"no artifact  {describe(job)}"


def describe(job: ChainJob) -> str:
    """A job in one line: name, state, time, who ran it, what it found."""
    parts = [f"{job.name} ({job.job_id})", job.state + (", reused" if job.reused else "")]
    if job.wall_s is not None:
        parts.append(f"{job.wall_s:.1f} s")
    parts += [_attempts(job)] if job.attempts else []
    parts += [f"verdict {_figures(verdict.get('summary', {}))}" for verdict in job.verdicts]
    parts += [job.error.splitlines()[0]] if job.error else []
    return " · ".join(parts)


def _attempts(job: ChainJob) -> str:
    told = [
        f"{attempt.outcome or 'running'}{' and fenced' if attempt.fenced else ''} on {attempt.worker}"
        for attempt in job.attempts
    ]
    return told[0].partition(" on ")[2] if len(told) == 1 else f"{len(told)} attempts: {', '.join(told)}"


def _figures(summary: dict[str, Any]) -> str:
    figures = [f"{name} {value:g}" for name, value in summary.items() if isinstance(value, int | float)]
    return ", ".join(figures[:4])


def all_events(redis: Redis) -> Iterator[Event]:
    """Every event of a bus, oldest first, page by page."""
    source, last = Events(redis), START
    while batch := source.read(last):
        last = batch[-1].id
        yield from batch


def print_chain(redis: Redis, run: str, *, as_json: bool, console: Console) -> None:
    """What ``sim2or chain`` does."""
    chain = rebuild(all_events(redis), run)
    if as_json:
        console.print_json(chain.model_dump_json())
        return
    for line in lines(chain):
        console.print(line, markup=False, soft_wrap=True)
