"""What ``sim2or run`` does."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redis import Redis
from rich.console import Console

from sim2or import tracing
from sim2or.artifacts.mirrored import ASK_PATIENCE_S, check_mirror, open_store
from sim2or.bus.events import START, Events
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import connect
from sim2or.cli.closing import closing_lines, place_lines
from sim2or.cli.display import make_display
from sim2or.cli.runs import run_directory
from sim2or.cli.terminal import EXIT_INTERRUPTED
from sim2or.clock import now_ns
from sim2or.errors import ConfigError, Sim2OrError
from sim2or.pipeline import Pipeline, load_pipeline
from sim2or.runner import Finished, Runner
from sim2or.settings import Settings, load_settings, result_variables
from sim2or.stages import Table, load_table
from sim2or.supervisor import (
    EmbeddedSupervisor,
    SupervisorState,
    check_environments,
    check_services,
    locked,
    running_state,
    scaled,
)


def run_pipeline(
    path: Path,
    *,
    name: str,
    until: str,
    scale: Sequence[str],
    force: bool,
    console: Console,
    services: bool = True,
) -> None:
    """Validates and runs a pipeline, on a running supervisor or on one of its own.

    With ``services=False`` they run elsewhere (compose, Kubernetes): only their bus and store are used.
    """
    started_s = time.monotonic()
    settings = load_settings()
    table = load_table(settings.plugins)
    pipeline = load_pipeline(path, table)
    scaled({service: 1 for service in table.services}, scale)
    check_mirror(settings.mirror)
    if until:
        pipeline = pipeline.until(until)
    run_dir = run_directory(name or pipeline.name)
    settings = settings.model_copy(update={"run_dir": run_dir})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    resume = f"go on with: sim2or {' '.join(sys.argv[1:])}"
    running = running_state(run_dir)
    try:
        if not services:
            there = _elsewhere(settings, pipeline)
            finished = _run_on(there, pipeline, settings, table, force, console, started_s)
        elif running:
            _check_started(running, pipeline, table)
            there = Services(running.redis_url, running.variables, lambda: check_services(run_dir))
            finished = _run_on(there, pipeline, settings, table, force, console, started_s)
        else:
            check_environments(table.services[service] for service in pipeline.services)
            embedded = EmbeddedSupervisor(run_dir, sorted(pipeline.services), scale)
            with embedded as state:
                there = Services(state.redis_url, state.variables, embedded.check, ours=True)
                finished = _run_on(there, pipeline, settings, table, force, console, started_s)
    except KeyboardInterrupt:
        console.print(f"interrupted; what is finished is kept. {resume}", markup=False, soft_wrap=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    console.print(f"done in {finished.wall_s:.1f} s; evidence in {run_dir}/run.json", markup=False)
    for line in closing_lines(finished) + place_lines(finished, settings.fetch):
        console.print(line, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Services:
    """The services that do a run's work.

    Attributes:
        redis_url: Their bus.
        variables: Settings of theirs that change results.
        check: Raises when they can no longer do the work.
        ours: Whether they end with this command.
    """

    redis_url: str
    variables: Mapping[str, str]
    check: Callable[[], None] = lambda: None
    ours: bool = False


def _elsewhere(settings: Settings, pipeline: Pipeline) -> Services:
    """The services of another place, which share bus and store with this command."""
    if not settings.redis_url or settings.store is None:
        raise ConfigError(
            "--no-services: set SIM2OR_REDIS_URL and SIM2OR_STORE to the bus and the store of the services"
        )
    return Services(settings.redis_url, result_variables(sorted(pipeline.services)))


def _check_started(running: SupervisorState, pipeline: Pipeline, table: Table) -> None:
    """Refuses a pipeline whose jobs nobody would take: some services start only where they are asked for."""
    there = {process.service for process in running.processes.values()}
    for name in sorted(pipeline.services - there):
        if table.services[name].environment:
            raise ConfigError(
                f"{pipeline.path} needs the service {name}, which starts only where it is asked for, and the "
                f"supervisor of this run has none: stop it and start it with `--scale {name}=1`"
            )


def _run_on(
    services: Services,
    pipeline: Pipeline,
    settings: Settings,
    table: Table,
    force: bool,
    console: Console,
    started_s: float,
) -> Finished:
    lock = locked(_lock(settings.run_dir), "another `sim2or run` is at work")
    with make_display(console) as display, lock:
        redis = connect(services.redis_url)
        runner = Runner(
            pipeline,
            jobs=Jobs(redis, run_id=settings.run_dir.name),
            events=Events(redis),
            store=open_store(settings.store_root, settings.mirror, patience_s=ASK_PATIENCE_S),
            run_dir=settings.run_dir,
            table=table,
            display=display,
            force=force,
            started_s=started_s,
            environment=services.variables,
            check=services.check,
        )
        with _traced(runner, settings.run_dir.name, pipeline.name):
            try:
                return runner.run()
            except KeyboardInterrupt:
                if not services.ours:  # somebody else's services would go on with our jobs
                    runner.cancel()
                raise


@contextlib.contextmanager
def _traced(runner: Runner, run: str, pipeline: str) -> Iterator[None]:
    """Tells the collector, where there is one, of the run: the root that all its jobs hang from."""
    tracing.configure("run")
    started_ns, error = now_ns(), ""
    try:
        yield
    except (Sim2OrError, KeyboardInterrupt) as problem:
        error = str(problem) or "interrupted"
        raise
    finally:
        tracing.record(
            "run",
            own=runner.traceparent,
            parent=tracing.environment_traceparent(),
            started_ns=started_ns,
            error=error,
            run=run,
            pipeline=pipeline,
        )
        tracing.flush()


def _lock(run_dir: Path) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir / "run.lock"


def print_events(redis: Redis, *, follow: bool, job: str, console: Console) -> None:
    """Prints events, oldest first; goes on until Ctrl-C with ``follow``."""
    source, last = Events(redis), START
    while batch := source.read(last):
        last = batch[-1].id
        for event in batch:
            _print_event(event, job, console)
    while follow:
        for event in source.follow(last, timeout_s=3600):
            last = event.id
            _print_event(event, job, console)


def _print_event(event: Any, job: str, console: Console) -> None:
    if job and event.job_id != job:
        return
    when = datetime.fromtimestamp(event.time_ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
    detail = f" {json.dumps(event.detail)}" if event.detail else ""
    console.print(
        f"{when} {event.kind:16} {event.job_id} {event.worker}{detail}", markup=False, soft_wrap=True
    )
