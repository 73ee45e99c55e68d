"""The command line that every service shares: ``python -m sim2or_<service> run|serve|…``."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from sim2or.cli.terminal import CleanGroup, err, out
from sim2or.consistency import spec_findings
from sim2or.errors import ConfigError, Sim2OrError, choices
from sim2or.explanation import explain
from sim2or.process import die_with_parent, end_with_parent
from sim2or.stages import StageInfo, load, load_table


def service_app(
    service: str, *, servers: Mapping[str, str] | None = None, also: Mapping[str, str] | None = None
) -> typer.Typer:
    """Builds a service's command line.

    Args:
        service: Its name in the table of stages.
        servers: Command to the ``module:function`` that serves until SIGTERM; it is given the settings.
        also: Command to the service whose jobs it takes: the same code in another environment.
    """
    app = typer.Typer(
        cls=CleanGroup, no_args_is_help=True, add_completion=False, help=f"The {service} service."
    )

    @app.callback()
    def _group() -> None:
        """Keeps the commands' names even where there is only one."""

    table = load_table(os.environ.get("SIM2OR_PLUGINS", ""))
    if table.of_service(service):
        offered = (service, *(also or {}).values())
        app.command("serve", help="Take jobs from the bus until SIGTERM.")(_serve_stages(service))
        app.command("run", help="Run one stage alone, without the bus.")(_run_alone(offered))
        app.command("shard", help="Run one shard of a planned step, without the bus (Kubernetes).")(
            _run_shard(offered)
        )
    for name, other in (also or {}).items():
        app.command(name, help=f"Take the jobs of {other} from the bus until SIGTERM.")(_serve_stages(other))
    for name, reference in (servers or {}).items():
        app.command(name, help=f"Serve {reference.partition(':')[0]} until SIGTERM.")(
            _serve_server(service if name == "serve" else name, reference)
        )
    return app


def _serve_stages(service: str) -> Any:
    def serve(
        idle_s: Annotated[
            float, typer.Option(min=0, help="End after so many seconds without a job; 0: never.")
        ] = 0.0,
    ) -> None:
        from sim2or.service import serve as serve_stages

        _by_itself("serve")
        serve_stages(service, idle_s=idle_s)

    return serve


def _serve_server(name: str, reference: str) -> Any:
    def serve() -> None:
        from sim2or import log, tracing
        from sim2or.metrics import expose
        from sim2or.settings import load_settings

        die_with_parent(signal.SIGTERM)
        settings = load_settings()
        end_with_parent(settings.grace_s)
        log.configure(name)
        tracing.configure(name)
        expose(settings, name)
        try:
            load(reference)(settings)
        finally:
            tracing.flush()

    return serve


def _run_alone(services: Sequence[str]) -> Any:
    def run(
        output: Annotated[
            Path, typer.Option("--out", help="Work directory; the outputs are named at the end.")
        ],
        stage: Annotated[str, typer.Option(help="Which stage, where the service has several.")] = "",
        spec: Annotated[Path | None, typer.Option(help="JSON or YAML file with its configuration.")] = None,
        inputs: Annotated[
            list[str] | None, typer.Option("--input", help="role=DIR, may be repeated.")
        ] = None,
        shard: Annotated[int, typer.Option(min=0, help="Number of this part.")] = 0,
        shards: Annotated[int, typer.Option(min=1, help="How many parts there are.")] = 1,
    ) -> None:
        from sim2or.settings import load_settings

        _by_itself("run")
        table = load_table(load_settings().plugins)
        rows = [info for service in services for info in table.of_service(service).values()]
        stages = {info.name: info for info in rows if info.when is None}
        name = stage or (next(iter(stages)) if len(stages) == 1 else "")
        if name not in stages:
            raise ConfigError(f"--stage {name!r}: {choices(name, stages)}")
        if shard >= shards:
            raise ConfigError(f"--shard {shard}: there are {shards}, from 0")
        config = checked_spec(stages[name], spec, shards)
        run_alone(stages[name], config, read_inputs(stages[name], inputs or []), output, shard, shards)

    return run


def _run_shard(services: Sequence[str]) -> Any:
    def shard(
        plan: Annotated[Path, typer.Option(help="The plan, as `sim2or k8s render` writes it.")],
        step: Annotated[str, typer.Option(help="Which of its steps.")],
        index: Annotated[
            int, typer.Option(min=0, envvar="JOB_COMPLETION_INDEX", help="Which of the step's jobs.")
        ] = 0,
    ) -> None:
        from sim2or.cluster.peer import is_peer, run_peer
        from sim2or.cluster.plan import load_plan
        from sim2or.cluster.shard import run_shard
        from sim2or.exit_status import status_of
        from sim2or.settings import load_settings

        settings = load_settings()
        table = load_table(settings.plugins)
        try:
            run = run_peer if is_peer(os.environ) else run_shard
            loaded = load_plan(plan)
            owner = table.stage(loaded.step(step).stage).service
            service = owner if owner in services else services[0]
            status = run(loaded, step, index, service=service, settings=settings, table=table)
        except Sim2OrError as error:
            err.print(f"sim2or: {error}", markup=False, soft_wrap=True)
            status = status_of(error)
        raise SystemExit(int(status))

    return shard


def _by_itself(command: str) -> None:
    """Refuses to be one of several processes, each of which would take a job of its own.

    Raises:
        ConfigError: torchrun started several.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise ConfigError(
            f"WORLD_SIZE={size}: {command} is one process; valid: 1. Several processes train one job with "
            "`torchrun … -m sim2or_trainer shard --plan FILE --step train`"
        )


def read_spec(path: Path | None) -> dict[str, Any]:
    """Reads a configuration file.

    Raises:
        ConfigError: It is missing or holds no mapping.
    """
    if path is None:
        return {}
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*") if p.suffix in (".json", ".yaml", ".yml")]
        hint = choices(path.name, near) if near else f"{str(path.parent)!r} holds no .json or .yaml"
        raise ConfigError(f"--spec {path}: no such file; {hint}")
    try:
        content = yaml.safe_load(path.read_text())  # JSON is YAML
    except yaml.YAMLError as error:
        raise ConfigError(f"--spec {path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--spec {path}: expected a mapping, found {type(content).__name__}")
    return content


def checked_spec(info: StageInfo, path: Path | None, shards: int) -> dict[str, Any]:
    """Reads a configuration file and refuses what its stage cannot do, before any work starts.

    Raises:
        ConfigError: One line for each wrong key or value, naming the file and what is valid.
    """
    content = read_spec(path)
    where = f"--spec {path}" if path else "--spec"
    cls = info.spec_class()
    try:
        spec = cls.model_validate_json(json.dumps(content, default=str)).model_dump(mode="json")
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in explain(error, cls))) from error
    if found := list(spec_findings(info.name, spec, shards)):
        raise ConfigError("\n".join(f"{where}: {key}: {text}" for key, text in found))
    return content


def read_inputs(info: StageInfo, given: list[str]) -> dict[str, list[Path]]:
    """Reads ``role=DIR`` texts.

    Raises:
        ConfigError: An unknown or missing role, or a directory that does not exist.
    """
    found: dict[str, list[Path]] = {}
    for text in given:
        role, _, name = text.partition("=")
        if role not in info.inputs and "*" not in info.inputs:
            raise ConfigError(f"--input {text}: unknown role {role!r}; {choices(role, info.inputs)}")
        if not Path(name).is_dir():
            raise ConfigError(f"--input {text}: no directory {name!r}")
        found.setdefault(role, []).append(Path(name).absolute())
    for role, rule in info.inputs.items():
        if rule.required and role not in found:
            raise ConfigError(f"--input: {info.name} needs {role}=DIR ({' or '.join(rule.kinds)})")
    return found


def run_alone(
    info: StageInfo,
    spec: Mapping[str, Any],
    inputs: Mapping[str, list[Path]],
    output: Path,
    shard: int,
    shards: int,
) -> None:
    """Runs a stage in this process, with a progress bar, and says what it made."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from sim2or.artifacts.manifest import digest_of
    from sim2or.messages.job import Progress as Done
    from sim2or.worker import StageContext, checked_outputs, parse_spec

    config = parse_spec(info, spec)
    output.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out) as bar:
        task = bar.add_task(info.name, total=None, text="")

        def report(done: Done) -> None:
            metrics = " ".join(f"{name} {value:.4g}" for name, value in done.metrics.items())
            text = f"{done.done:.0f}/{done.total:.0f} {done.unit} {metrics}"
            bar.update(task, completed=done.done, total=done.total or None, text=text)

        context = StageContext(
            work=output.absolute(),
            inputs=inputs,
            digests={r: [digest_of(str(p).encode()) for p in paths] for r, paths in inputs.items()},
            report=report,
            shard=shard,
            shards=shards,
        )
        result = info.load_stage().run(config, context)
    for role, path in checked_outputs(info, result).items():
        out.print(f"{role}: {path}", markup=False, soft_wrap=True)
    out.print_json(json.dumps(dict(result.summary), default=str))
