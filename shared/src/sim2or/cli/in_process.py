"""What ``sim2or run --in-process`` does."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sim2or.artifacts.mirrored import ASK_PATIENCE_S, open_store
from sim2or.bus.journal import NAME, Journal
from sim2or.bus.memory import MemoryBus, MemoryEvents, MemoryJobs
from sim2or.cli.display import PlainDisplay
from sim2or.cli.runs import run_directory
from sim2or.pipeline import load_pipeline
from sim2or.runner import Runner
from sim2or.settings import load_settings
from sim2or.stages import load_table
from sim2or.supervisor import locked
from sim2or.workbench import LEASE_S, Workbench


def run_in_process(path: Path, *, name: str, until: str, force: bool, console: Console) -> None:
    """Runs a pipeline's stages in this process, in the main thread.

    Args:
        path: The pipeline.
        name: Of the run; the pipeline's with ``-in-process`` by default, apart from what services did.
        until: Stop after this step; all when empty.
        force: Asks every question anew.
        console: Where progress is told, in plain lines: a debugger shares the terminal.

    Raises:
        ConfigError: A step needs a server.
    """
    settings = load_settings()
    table = load_table(settings.plugins)
    pipeline = load_pipeline(path, table)
    if until:
        pipeline = pipeline.until(until)
    run_dir = run_directory(name or f"{pipeline.name}-in-process")
    settings = settings.model_copy(update={"run_dir": run_dir})
    bus = MemoryBus()
    jobs = MemoryJobs(bus, lease_s=LEASE_S, run_id=run_dir.name)
    bench = Workbench(pipeline, jobs, settings)
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir / "run.lock", "another `sim2or run` is at work"), PlainDisplay(console) as display:
        Journal(run_dir / NAME).drop_unfinished()  # what was being debugged may be another question by now
        finished = Runner(
            pipeline,
            jobs=jobs,
            events=MemoryEvents(bus),
            store=open_store(settings.store_root, settings.mirror, patience_s=ASK_PATIENCE_S),
            run_dir=run_dir,
            table=table,
            display=display,
            force=force,
            check=bench.work,
        ).run()
    console.print(f"done in {finished.wall_s:.1f} s; evidence in {run_dir}/run.json", markup=False)
    if finished.report:
        console.print(f"report: {finished.report}", markup=False, soft_wrap=True)
