"""``sim2or``: run pipelines, watch them, and look at what they made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table as Grid

from sim2or.cli import containers
from sim2or.cli.bus import bus_app
from sim2or.cli.containers import DockerOption, ProjectOption, need_docker
from sim2or.cli.jobs import jobs_app
from sim2or.cli.k8s import k8s_app
from sim2or.cli.keys import keys_app
from sim2or.cli.room import room_app
from sim2or.cli.runs import bus, redis_of, run_directory, running, store_roots
from sim2or.cli.store import store_app
from sim2or.cli.terminal import EXIT_ERROR, CleanGroup, out
from sim2or.errors import ConfigError

app = typer.Typer(cls=CleanGroup, no_args_is_help=True, add_completion=False, help=__doc__)
app.add_typer(jobs_app, name="jobs")
app.add_typer(bus_app, name="bus")
app.add_typer(keys_app, name="keys")
app.add_typer(store_app, name="store")
app.add_typer(k8s_app, name="k8s")
app.add_typer(room_app, name="room")

RunOption = Annotated[str, typer.Option("--run", help="Name of the run: its directory under runs/.")]
ScaleOption = Annotated[list[str] | None, typer.Option("--scale", help="service=count, may be repeated.")]


@app.command()
def run(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline file, for example pipelines/handover.yaml.")],
    name: RunOption = "",
    until: Annotated[str, typer.Option(help="Stop after this step.")] = "",
    scale: ScaleOption = None,
    force: Annotated[bool, typer.Option("--force", help="Ask every question anew.")] = False,
    services: Annotated[
        bool,
        typer.Option(
            "--services/--no-services",
            help="Start the services, or use those on SIM2OR_REDIS_URL (containers).",
        ),
    ] = True,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="One after another in this process, for a debugger.")
    ] = False,
) -> None:
    """Run a pipeline; go on where it was stopped, reuse what is finished."""
    from sim2or.cli.run import run_pipeline

    if in_process:
        from sim2or.cli.in_process import run_in_process

        run_in_process(pipeline, name=name, until=until, force=force, console=out)
        return
    run_pipeline(
        pipeline, name=name, until=until, scale=scale or [], force=force, console=out, services=services
    )


@app.command()
def up(
    name: RunOption = "default",
    scale: ScaleOption = None,
    services: Annotated[str, typer.Option(help="Comma-separated; all by default.")] = "",
    docker: DockerOption = False,
    project: ProjectOption = "sim2or",
) -> None:
    """Start all services of a run directory and keep them running until Ctrl-C; or the containers."""
    if docker:
        containers.bring_up(
            project=project, scale=scale or [], services=comma_separated(services), console=out
        )
        return
    from sim2or import log
    from sim2or.settings import load_settings
    from sim2or.stages import load_table
    from sim2or.supervisor import Supervisor, default_counts, scaled, supervise

    log.configure("supervisor")
    settings = load_settings()
    table = load_table(settings.plugins)
    only = comma_separated(services) or None
    for service in only or []:
        table_service(table.services, service)
    run_dir = run_directory(name)
    counts = scaled(default_counts(table, only), scale or [])
    supervise(Supervisor(run_dir, table, counts, settings.model_copy(update={"run_dir": run_dir})))


@app.command()
def validate(pipeline: Annotated[Path, typer.Argument(help="A pipeline file.")]) -> None:
    """Check a pipeline without running anything; show its steps."""
    from sim2or.pipeline import load_pipeline
    from sim2or.settings import load_settings
    from sim2or.stages import load_table

    found = load_pipeline(pipeline, load_table(load_settings().plugins))
    grid = Grid("step", "stage", "service", "jobs", "needs", box=None)
    for step in found.steps:
        needs = ", ".join(sorted(step.before)) or "–"
        grid.add_row(step.id, step.info.name, step.info.service, str(step.jobs), needs)
    out.print(grid)
    out.print(f"{pipeline}: valid, {len(found.steps)} steps", markup=False)


@app.command()
def stages() -> None:
    """List the stages: who runs them, what they take and make."""
    from sim2or.settings import load_settings
    from sim2or.stages import load_table

    grid = Grid("stage", "service", "takes", "makes", box=None)
    for info in load_table(load_settings().plugins).stages.values():
        takes = ", ".join(
            f"{role}: {'|'.join(r.kinds)}{'…' if r.many else ''}{'' if r.required else ' (optional)'}"
            for role, r in info.inputs.items()
        )
        makes = ", ".join(f"{role}: {kind}" for role, kind in info.outputs.items())
        name = f"{info.name} ({info.when[0]}: {info.when[1]})" if info.when else info.name
        grid.add_row(name, info.service, takes or "–", makes)
    out.print(grid)


@app.command()
def ps(name: RunOption = "default", docker: DockerOption = False, project: ProjectOption = "sim2or") -> None:
    """Show the processes of a running supervisor, or the stack's containers."""
    if docker:
        containers.show_states(project=project, console=out)
        return
    from sim2or.process import is_running

    state = running(name)
    grid = Grid("process", "pid", "status", "restarts", "last exit", "log", box=None)
    for process_name, process in state.processes.items():
        alive = process.identity is not None and is_running(process.identity)
        status = "running" if alive else process.status if process.status != "running" else "ended"
        pid = str(process.identity.pid) if process.identity else "–"
        grid.add_row(process_name, pid, status, str(process.restarts), process.last_exit or "–", process.log)
    out.print(f"supervisor {state.identity.pid}, redis {state.redis_url}", markup=False)
    out.print(grid)


@app.command()
def logs(
    service: Annotated[str, typer.Argument(help="Only this service.")] = "",
    docker: DockerOption = False,
    project: ProjectOption = "sim2or",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    tail: Annotated[int, typer.Option(min=0, help="How many earlier lines of each container.")] = 100,
) -> None:
    """Show what the stack's containers wrote, in the order of time."""
    need_docker(docker, "logs", "the files in runs/NAME/logs")
    containers.print_logs(project=project, service=service, tail=tail, follow=follow, console=out)


@app.command()
def stats(docker: DockerOption = False, project: ProjectOption = "sim2or") -> None:
    """Show what the stack's containers use: processor, memory, network."""
    need_docker(docker, "stats", "sim2or ps --run NAME")
    containers.show_usage(project=project, console=out)


@app.command()
def stop(name: RunOption = "default") -> None:
    """Stop the robot of a run: cancel its deployment; the arm holds where it is. No emergency stop."""
    from sim2or.cli.stop import EMERGENCY, stop_deployments

    with bus(name) as queue:
        stopped = stop_deployments(queue, run_directory(name).name)
    for text in stopped or [f"run {name!r} deploys nothing: there is nothing to stop"]:
        out.print(text, markup=False, soft_wrap=True)
    out.print(EMERGENCY, markup=False, soft_wrap=True)


@app.command()
def events(
    name: RunOption = "default",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    job: Annotated[str, typer.Option(help="Only about this job.")] = "",
) -> None:
    """Print what happened, oldest first."""
    from sim2or.cli.run import print_events

    with redis_of(name) as redis:
        print_events(redis, follow=follow, job=job, console=out)


@app.command()
def lineage(
    digest: Annotated[str, typer.Argument(help="A digest, or its first digits.")], name: RunOption = ""
) -> None:
    """Print the chain of artifacts behind an artifact."""
    from sim2or.artifacts.lineage import chain
    from sim2or.artifacts.mirrored import ASK_PATIENCE_S, open_store
    from sim2or.settings import load_settings

    roots = store_roots(name)
    stores = [open_store(root) for root in roots]
    if roots and (mirror := load_settings().mirror):
        stores.append(open_store(roots[0], mirror, patience_s=ASK_PATIENCE_S))
    for store in stores:
        try:
            full = store.find(digest)
        except ConfigError as error:
            problem = error
            continue
        for ancestor in chain(store, full):
            manifest = ancestor.manifest
            role = f"{ancestor.role}: " if ancestor.role else ""
            size_mb = manifest.size_bytes / 1e6
            text = (
                f"{role}{manifest.kind} {ancestor.digest[:19]}  {len(manifest.files)} files, {size_mb:.1f} MB"
            )
            job = manifest.producer.get("job", "")
            note = " (see above)" if ancestor.repeated else f"  {job}"
            out.print(f"{'  ' * ancestor.depth}{text}{note}", markup=False, soft_wrap=True)
        return
    raise problem if roots else ConfigError("no store under runs/; run a pipeline first")


@app.command()
def chain(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Tell a run's whole chain from the events alone: jobs, attempts, artifacts, verdicts, deployment."""
    from sim2or.cli.chain import print_chain

    with redis_of(name) as redis:
        print_chain(redis, name, as_json=as_json, console=out)


@app.command()
def doctor(
    names: Annotated[
        list[str] | None, typer.Argument(help="Only these checks, for example graphics.")
    ] = None,
    purpose: Annotated[
        str, typer.Option("--for", help="Only what this needs: demo, isaaclab, compose, gpu, robot or k8s.")
    ] = "",
) -> None:
    """Check what this machine needs: one line each, with the remedy; the demo's needs alone by default."""
    from sim2or.cli.doctor import checks, needed_for, purposes_of

    if names and purpose:
        raise ConfigError("doctor: give names of checks or --for, not both")
    needed = names or needed_for(purpose or "demo")
    worst = 0
    for check in checks(needed if names or purpose else ()):
        missing = not check.ok and check.name in needed
        mark = "[green]ok     [/]" if check.ok else "[red]missing[/]" if missing else "–      "
        only = "" if check.ok or missing else f"only for {', '.join(purposes_of(check.name))}: "
        out.print(f"{mark}  {check.name}: {only}{escape(check.text)}", soft_wrap=True)
        worst |= missing
    raise SystemExit(EXIT_ERROR if worst else 0)


def comma_separated(text: str) -> list[str]:
    """The parts of ``a,b``; none of an empty text."""
    return [part for part in text.split(",") if part]


def table_service(services: Any, name: str) -> None:
    """Checks that a service exists.

    Raises:
        ConfigError: It does not.
    """
    from sim2or.errors import choices

    if name not in services:
        raise ConfigError(f"--services: unknown service {name!r}; {choices(name, services)}")
