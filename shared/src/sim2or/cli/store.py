"""``sim2or store``: what is in the store, and its way to and from the mirror."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from sim2or.errors import ConfigError

if TYPE_CHECKING:
    from sim2or.artifacts.mirror import Mirror
    from sim2or.artifacts.store import Store
    from sim2or.artifacts.transfer import Progress

DIGEST_CHARACTERS = 19
WIDTH = 200

store_app = typer.Typer(no_args_is_help=True, help="List artifacts, send them to the mirror, fetch them.")

RunOption = Annotated[
    str, typer.Option("--run", help="Name of the run; SIM2OR_STORE, or all runs, if empty.")
]
Digests = Annotated[list[str], typer.Argument(help="Digests, or their first digits.")]


@store_app.command("ls")
def list_artifacts(name: RunOption = "") -> None:
    """List artifacts and say where their files are: here, or in the mirror."""
    from sim2or.cli.main import out

    mirror = _mirror()
    far = set(mirror.digests()) if mirror else set()
    grid = Grid("artifact", "kind", "files", "MB", "where", "made by", box=None)
    for store in _stores(name):
        for digest in store.digests():
            manifest = store.manifest(digest)
            places = [*(["here"] if store.holds(digest) else []), *(["mirror"] if digest in far else [])]
            grid.add_row(
                digest[:DIGEST_CHARACTERS],
                manifest.kind,
                str(len(manifest.files)),
                f"{manifest.size_bytes / 1e6:.1f}",
                ", ".join(places) or "elsewhere",
                str(manifest.producer.get("job", "")),
            )
            far.discard(digest)
    for digest in sorted(far):
        grid.add_row(digest[:DIGEST_CHARACTERS], "–", "–", "–", "mirror", "")
    wide = out if out.is_terminal else Console(highlight=False, width=WIDTH)
    wide.print(grid)


@store_app.command()
def push(
    digests: Digests,
    name: RunOption = "",
    anew: Annotated[
        bool, typer.Option("--anew", help="Send again what is there, in place of altered files.")
    ] = False,
) -> None:
    """Send artifacts to the mirror."""
    mirror = _needed_mirror()
    for text in digests:
        store, digest = _found(_stores(name), text)
        with _bar(f"push {digest[:DIGEST_CHARACTERS]}") as progress:
            mirror.push(store, digest, progress=progress, anew=anew)


@store_app.command()
def pull(digests: Digests, name: RunOption = "") -> None:
    """Fetch artifacts from the mirror."""
    from sim2or.artifacts.mirrored import MirroredStore

    mirror = _needed_mirror()
    roots = _roots(name)
    if len(roots) != 1:
        given = ", ".join(str(root.parent.name) for root in roots) or "none"
        raise ConfigError(f"into which store? give --run NAME (runs: {given}) or set SIM2OR_STORE")
    for text in digests:
        store = MirroredStore(roots[0], mirror)
        digest = store.find(text)
        with _bar(f"pull {digest[:DIGEST_CHARACTERS]}") as progress:
            mirror.fetch(store, digest, progress=progress)


def _roots(name: str) -> list[Path]:
    from sim2or.cli.main import run_directory, store_roots

    return [run_directory(name) / "store"] if name else store_roots()


def _stores(name: str) -> list[Store]:
    from sim2or.artifacts.store import Store

    return [Store(root) for root in _roots(name)]


def _mirror() -> Mirror | None:
    from sim2or.artifacts.mirrored import ASK_PATIENCE_S
    from sim2or.settings import load_settings

    url = load_settings().mirror
    if not url:
        return None
    from sim2or.artifacts.mirror import Mirror

    mirror = Mirror(url, patience_s=ASK_PATIENCE_S)
    mirror.check()
    return mirror


def _needed_mirror() -> Mirror:
    mirror = _mirror()
    if mirror is None:
        raise ConfigError("there is no mirror: set SIM2OR_MIRROR=s3://BUCKET/PREFIX, see docs/store.md")
    return mirror


def _found(stores: list[Store], text: str) -> tuple[Store, str]:
    """The store that has an artifact, and its whole digest.

    Raises:
        ConfigError: None has it, or the digits fit several.
    """
    problem = ConfigError("no store under runs/; run a pipeline first, or set SIM2OR_STORE")
    for store in stores:
        try:
            return store, store.find(text)
        except ConfigError as error:
            problem = error
    raise problem


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A progress bar in bytes."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    from sim2or.cli.main import out

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=out) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
