"""``sim2or bus``: the contract of the bus, printed, generated and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from sim2or.errors import ConfigError

bus_app = typer.Typer(no_args_is_help=True, help="The messages: the table, the catalogue, the check.")

out = Console(highlight=False)

Documents = Annotated[Path, typer.Argument(help="Directory of the catalogue.")]
Samples = Annotated[Path, typer.Option("--golden", help="Directory of the golden samples.")]

_DOCUMENTS = Path("docs/messages")
_GOLDEN = Path("tests/contract/golden")
_DASHBOARDS = Path("compose/observability/grafana/dashboards")
_METRICS = Path("docs/metrics.md")


@bus_app.command()
def topics() -> None:
    """Print the topic table: who says what to whom, how often, and what is promised."""
    from sim2or.messages.topics import TOPICS

    grid = Grid("message", "road", "from", "to", "Hz", "max age s", "queue", "promise", box=None)
    for row in TOPICS.values():
        numbers = ["–" if value is None else f"{value:g}" for value in (row.rate_hz, row.max_age_s)]
        queue = str(row.hwm) if row.hwm else "–"
        sides = [" ".join(names) for names in (row.publishers, row.consumers)]
        grid.add_row(
            f"{row.name} {row.message.schema_version}", row.road, *sides, *numbers, queue, row.policy
        )
    out.print(grid)


@bus_app.command()
def docs(
    directory: Documents = _DOCUMENTS,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail when a file differs.")] = False,
) -> None:
    """Generate the catalogue: JSON Schemas, AsyncAPI, and a page for people."""
    from sim2or.messages.catalogue.documents import incompatible, outdated, write

    if check:
        _say([*incompatible(directory), *outdated(directory)], f"{directory}: up to date")
        return
    written = write(directory)
    for path in written:
        out.print(str(path), markup=False, soft_wrap=True)
    out.print(f"{directory}: {len(written)} files written", markup=False, soft_wrap=True)


@bus_app.command()
def dashboards(
    directory: Annotated[Path, typer.Argument(help="Directory of the dashboards.")] = _DASHBOARDS,
    metrics: Annotated[Path, typer.Option(help="The page with the table of metrics.")] = _METRICS,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail when a file differs.")] = False,
) -> None:
    """Generate Grafana's dashboards from the table of metrics and the table of topics."""
    from sim2or.dashboards import documents, outdated, read_catalogue, write
    from sim2or.messages.topics import TOPICS

    made = documents(read_catalogue(metrics), TOPICS)
    if check:
        _say(list(outdated(directory, made)), f"{directory}: up to date")
        return
    for path in write(directory, made):
        out.print(str(path), markup=False, soft_wrap=True)


@bus_app.command()
def golden(
    add: Annotated[
        bool, typer.Option("--add", help="Write those that are missing; none is overwritten.")
    ] = False,
    directory: Samples = _GOLDEN,
) -> None:
    """List the golden samples; --add makes those of new versions."""
    from sim2or.messages.catalogue.golden import add_missing, missing, read_all
    from sim2or.messages.catalogue.inventory import messages

    if add:
        for path in add_missing(directory):
            out.print(f"{path}: added", markup=False, soft_wrap=True)
    found = read_all(directory)
    _say(list(missing(directory, messages())), f"{directory}: {len(found)} samples, none missing")


@bus_app.command()
def check(documents: Documents = _DOCUMENTS, golden: Samples = _GOLDEN) -> None:
    """Check that every consumer has a producer, and that catalogue and samples are up to date."""
    from sim2or.messages.catalogue.check import all_findings
    from sim2or.messages.topics import TOPICS
    from sim2or.settings import load_settings
    from sim2or.stages import load_table

    services = load_table(load_settings().plugins).services
    found = all_findings(TOPICS, services=services, documents=documents, golden=golden)
    _say(found, f"{len(TOPICS)} topics: every consumer has a producer; catalogue and samples are up to date")


def _say(problems: list[str], well: str) -> None:
    """Prints that all is well, or raises ``ConfigError`` with a line for each problem."""
    if problems:
        raise ConfigError("\n".join([f"{len(problems)} problems:", *problems]))
    out.print(well, markup=False, soft_wrap=True)
