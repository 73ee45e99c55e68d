"""``sim2or jobs``: look at jobs, cancel and retry them, forget old ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.table import Table as Grid

from sim2or.cli.runs import bus, run_directory
from sim2or.cli.terminal import out
from sim2or.errors import ConfigError

if TYPE_CHECKING:
    from sim2or.bus.jobs import QueueFigures
    from sim2or.messages.job import JobRecord

WIDTH = 200
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400

jobs_app = typer.Typer(no_args_is_help=True, help="Look at jobs, cancel and retry them, forget old ones.")

RunOption = Annotated[str, typer.Option("--run", help="Name of the run: its directory under runs/.")]


@jobs_app.command("ls")
def list_jobs(
    name: RunOption = "default",
    state: Annotated[str, typer.Option(help="Only jobs in this state.")] = "",
    stage: Annotated[str, typer.Option(help="Only jobs of this stage.")] = "",
) -> None:
    """List jobs, oldest first, and how each stage's queue stands."""
    from sim2or.errors import choices
    from sim2or.messages.job import JobState

    if state and state not in get_args(JobState):
        raise ConfigError(f"--state: unknown state {state!r}; {choices(state, get_args(JobState))}")
    with bus(name) as queue:
        records = queue.list(cast("JobState", state) if state else None, stage or None)
        stages = [] if state else sorted({record.job.stage for record in records})
        figures = {one: queue.figures(one) for one in stages}
    grid = Grid("job", "name", "state", "tries", "age", "took", "progress", "left", "worker", box=None)
    for record in records:
        grid.add_row(*_row(record, _now_ms()))
    wide = out if out.is_terminal else Console(highlight=False, width=WIDTH)
    wide.print(grid)
    for one, standing in figures.items():
        out.print(f"{one}: {_standing(standing)}", markup=False, soft_wrap=True)


@jobs_app.command("show")
def show_job(
    job_id: str,
    name: RunOption = "default",
    as_json: Annotated[bool, typer.Option("--json", help="The record as JSON.")] = False,
) -> None:
    """Show everything known about a job."""

    with bus(name) as queue:
        record = queue.get(job_id)
    if as_json:
        out.print_json(record.model_dump_json())
        return
    for line in _description(record, _now_ms()):
        out.print(line, markup=False, soft_wrap=True)
    out.print(f"its history: sim2or events --job {job_id} --run {name}", markup=False, soft_wrap=True)


@jobs_app.command("cancel")
def cancel_job(job_id: str, name: RunOption = "default") -> None:
    """Cancel a job; its worker stops at the next renewal."""
    from sim2or.bus.journal import NAME, Journal

    with bus(name) as queue:
        done = queue.cancel(job_id)
    if done:
        Journal(run_directory(name) / NAME).note_dropped(job_id)
    out.print(f"{job_id}: {'cancelled' if done else 'had already ended'}", markup=False)


@jobs_app.command("retry")
def retry_job(job_id: str, name: RunOption = "default") -> None:
    """Queue a failed, dead or cancelled job anew, with no failures counted."""
    from sim2or.bus.journal import NAME, Journal

    with bus(name) as queue:
        done = queue.retry(job_id)
        if done:
            record = queue.get(job_id)
            Journal(run_directory(name) / NAME).note_submitted(record.job, record.priority)
    out.print(f"{job_id}: {'queued' if done else 'is neither failed, dead nor cancelled'}", markup=False)


@jobs_app.command("dead")
def list_dead(name: RunOption = "default") -> None:
    """List jobs that failed for good, oldest first: who had them last, and why they failed."""

    with bus(name) as queue:
        records = queue.dead()
    for record in records:
        reason = record.error.message if record.error else "no reason recorded"
        ago = f", {_ago(record.finished_ms, _now_ms())}" if record.finished_ms else ""
        out.print(
            f"{record.job_id} {record.job.name} {record.state} after {_tries(record)} by "
            f"{record.owner or 'nobody'}{ago}: {reason}",
            markup=False,
            soft_wrap=True,
        )
    if records:
        out.print(f"see one: sim2or jobs show JOB --run {name}; again: sim2or jobs retry JOB --run {name}")


@jobs_app.command("prune")
def prune_jobs(
    name: RunOption = "default",
    older_days: Annotated[
        float, typer.Option(min=0.0, help="Forget what ended longer ago than this [days].")
    ] = 30.0,
) -> None:
    """Forget old jobs and events, which the bus otherwise keeps for ever; artifacts stay in the store.

    A forgotten answer is asked anew when a run needs it.
    """

    with bus(name) as queue:
        pruned = queue.prune(older_days * DAY_S)
    out.print(f"forgot {pruned.jobs} jobs and {pruned.events} events older than {older_days:g} days")


def duration(seconds: float) -> str:
    """A time for people: ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 4 min``, ``3 d 1 h``."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min {whole % MINUTE_S} s"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"
    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _ago(then_ms: int, now_ms: int) -> str:
    return f"{duration((now_ms - then_ms) / 1000)} ago"


def _row(record: JobRecord, now_ms: int) -> tuple[str, ...]:
    age = duration((now_ms - record.submitted_ms) / 1000) if record.submitted_ms else "–"
    return (
        record.job_id,
        record.job.name or "–",
        _state(record, now_ms),
        str(record.attempts),
        age,
        _took(record, now_ms) or "–",
        _progress(record) or "–",
        _left(record, now_ms) or "–",
        record.owner or "–",
    )


def _state(record: JobRecord, now_ms: int) -> str:
    if record.cancelling:
        return "running, being cancelled"
    if record.state == "queued" and record.due_ms:
        return f"queued, retry in {duration((record.due_ms - now_ms) / 1000)}"
    return record.state


def _tries(record: JobRecord) -> str:
    tries = f"{record.attempts} {'try' if record.attempts == 1 else 'tries'}"
    return f"{tries}, {record.strikes} failed" if record.strikes else tries


def _took(record: JobRecord, now_ms: int) -> str:
    """How long its last attempt took, or has been taking."""
    end_ms = record.finished_ms or (now_ms if record.state == "running" else None)
    if not record.started_ms or not end_ms or end_ms < record.started_ms:
        return ""
    return duration((end_ms - record.started_ms) / 1000)


def _progress(record: JobRecord) -> str:
    progress = record.progress
    if progress is None:
        return ""
    share = f" ({100 * progress.done / progress.total:.0f} %)" if progress.total else ""
    return f"{progress.done:g}/{progress.total:g} {progress.unit}{share}".replace("  ", " ")


def _left(record: JobRecord, now_ms: int) -> str:
    """Expected time to its end."""
    progress = record.progress
    if record.state != "running" or progress is None or progress.eta_s is None:
        return ""
    since_s = (now_ms - record.progress_ms) / 1000 if record.progress_ms else 0.0
    return duration(progress.eta_s - since_s)


def _standing(figures: QueueFigures) -> str:
    parts = [f"{figures.running} running", f"{figures.queued} queued"]
    if figures.queued:
        parts[-1] += f" (the first waits {duration(figures.oldest_age_s)})"
    if figures.delayed:
        parts.append(f"{figures.delayed} to be retried")
    parts += [f"{figures.done} done", f"{figures.dead_letters} failed for good"]
    return ", ".join(parts)


def _description(record: JobRecord, now_ms: int) -> Iterator[str]:
    yield f"{record.job_id}  {record.job.name}".rstrip()
    yield f"  state      {_state(record, now_ms)}, {_tries(record)}, priority {record.priority}"
    if record.owner:
        yield f"  worker     {record.owner}"
    for what, then_ms in (
        ("submitted", record.submitted_ms),
        ("started", record.started_ms),
        ("finished", record.finished_ms),
    ):
        if then_ms:
            yield f"  {what:10} {_utc(then_ms)} UTC, {_ago(then_ms, now_ms)}"
    if took := _took(record, now_ms):
        yield f"  took       {took}"
    if shown := _progress(record):
        heard = f", told {_ago(record.progress_ms, now_ms)}" if record.progress_ms else ""
        left = _left(record, now_ms)
        yield f"  progress   {shown}{f', {left} left' if left else ''}{heard}"
        yield from _figures("metrics", record.progress.metrics if record.progress else {})
    if record.job.run_id:
        yield f"  run        {record.job.run_id}"
    if record.job.shards > 1:
        yield f"  shard      {record.job.shard} of {record.job.shards}, from 0"
    for role, digests in record.job.inputs.items():
        yield f"  input      {role}: {', '.join(digests)}"
    yield from _figures("spec", record.job.spec)
    if record.result:
        for role, digest in record.result.outputs.items():
            yield f"  output     {role}: {digest}"
        yield from _figures("summary", record.result.summary)
    if record.error:
        yield f"  error      {record.error.kind}: {record.error.message}"
        if record.error.traceback:
            yield record.error.traceback.rstrip()


def _figures(title: str, values: dict[str, Any]) -> Iterator[str]:
    for number, (key, value) in enumerate(values.items()):
        yield f"  {title if number == 0 else '':10} {key}: {value}"


def _utc(then_ms: int) -> str:
    return datetime.fromtimestamp(then_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
