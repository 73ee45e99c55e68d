"""``sim2or up|ps|logs|stats --docker``: the stack in containers, as its host sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from sim2or.containers import ContainerState, LogLine, Stack, Usage, connect, engine_errors
from sim2or.errors import ConfigError

WIDTH = 200
MIB = 1024 * 1024

DockerOption = Annotated[bool, typer.Option("--docker", help="The containers of the compose project.")]
ProjectOption = Annotated[
    str,
    typer.Option(envvar="COMPOSE_PROJECT_NAME", help="With --docker: the compose project, if not sim2or."),
]


def bring_up(*, project: str, scale: Sequence[str], services: Sequence[str], console: Console) -> None:
    """Brings the stack up, and shows how its containers are."""
    from sim2or.compose import read_composition, up

    engine = connect()
    composition = read_composition(project)
    up(engine, composition, scale=scale, only=services)
    show_states(project=composition.project, console=console)
    console.print(
        "the pipeline's progress: sim2or logs --docker --follow pipeline", markup=False, soft_wrap=True
    )


def show_states(*, project: str, console: Console) -> None:
    """Prints a line for each container."""
    with _stack(project) as stack:
        states = stack.states()
    grid = Grid("container", "status", "health", "exit", "restarts", "published", "image", box=None)
    for state in states:
        grid.add_row(*_state_row(state))
    _wide(console).print(grid)


def show_usage(*, project: str, console: Console) -> None:
    """Prints what each running container uses."""
    with _stack(project) as stack:
        usages = stack.usage()
    grid = Grid(
        "container", "cpu %", "memory MiB", "limit MiB", "in MB", "out MB", "processes", "restarts", box=None
    )
    for usage in usages:
        grid.add_row(*_usage_row(usage))
    _wide(console).print(grid)


def print_logs(*, project: str, service: str, tail: int, follow: bool, console: Console) -> None:
    """Prints log lines, with ``follow`` until Ctrl-C."""
    with _stack(project) as stack, contextlib.suppress(KeyboardInterrupt):
        for line in stack.follow(service, tail=tail) if follow else stack.logs(service, tail=tail):
            console.print(_log_line(line), markup=False, soft_wrap=True)


def need_docker(docker: bool, command: str, instead: str) -> None:
    """Refuses a command that only containers have.

    Raises:
        ConfigError: It was asked of processes.
    """
    if not docker:
        raise ConfigError(f"sim2or {command}: add --docker for the containers; of processes: {instead}")


@contextlib.contextmanager
def _stack(project: str) -> Iterator[Stack]:
    engine = connect()
    try:
        with engine_errors():
            yield Stack(engine, project)
    finally:
        engine.close()


def _state_row(state: ContainerState) -> tuple[str, ...]:
    ended = "–" if state.exit_code is None else str(state.exit_code)
    published = " ".join(state.published) or "–"
    return state.name, state.status, state.health or "–", ended, str(state.restarts), published, state.image


def _usage_row(usage: Usage) -> tuple[str, ...]:
    return (
        usage.state.name,
        f"{usage.cpu_percent:.0f}",
        f"{usage.memory_bytes / MIB:.0f}",
        f"{usage.memory_limit_bytes / MIB:.0f}",
        f"{usage.received_bytes / 1e6:.1f}",
        f"{usage.sent_bytes / 1e6:.1f}",
        str(usage.processes),
        str(usage.state.restarts),
    )


def _log_line(line: LogLine) -> str:
    return f"{line.time[11:23]} {line.container:12} {line.text}"


def _wide(console: Console) -> Console:
    """A table that is read by a program is not cut at 80 columns."""
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)
