"""``sim2or store``: what is in the store, what people put there, and its way to and from the mirror."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from sim2or.cli.runs import store_roots
from sim2or.cli.terminal import out
from sim2or.errors import ConfigError, choices

if TYPE_CHECKING:
    from sim2or.artifacts.mirror import Mirror
    from sim2or.artifacts.store import Store
    from sim2or.artifacts.transfer import Progress

DIGEST_CHARACTERS = 19
WIDTH = 200

store_app = typer.Typer(no_args_is_help=True, help="List, add, send and fetch artifacts.")

RunOption = Annotated[
    str, typer.Option("--run", help="Name of the run, all if empty; SIM2OR_STORE is the store of all.")
]
Digests = Annotated[list[str], typer.Argument(help="Digests, or their first digits.")]


@store_app.command("ls")
def list_artifacts(name: RunOption = "") -> None:
    """List artifacts and say where their files are: here, or in the mirror."""

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
def add(
    path: Annotated[Path, typer.Argument(help="A file or a directory.")],
    kind: Annotated[str, typer.Option(help="What it is, for example recording.")],
    name: RunOption = "",
) -> None:
    """Put a file into the store and print its digest, which a pipeline can name as an input."""
    from sim2or.artifacts.store import Store
    from sim2or.settings import load_settings
    from sim2or.stages import ANY, load_table

    table = load_table(load_settings().plugins)
    roles = [role for info in table.stages.values() for role in info.inputs.values()]
    kinds = {taken for role in roles for taken in role.kinds if taken != ANY}
    if kind not in kinds:
        raise ConfigError(f"--kind {kind!r}: {choices(kind, kinds)}")
    if not path.exists():
        raise ConfigError(f"{path}: no such file or directory")
    path = path.resolve()  # the name of "." and of ".."
    store = Store(_one_root(name))
    if store.root.resolve().parent.is_relative_to(path):
        raise ConfigError(f"{path}: the store {store.root} is in it; give a directory without it")
    with TemporaryDirectory(prefix="add-", dir=store.root.parent) as directory:
        # A copy: the store takes files over by hard link, and nobody may write to them again.
        copied = Path(directory) / path.name
        shutil.copytree(path, copied) if path.is_dir() else shutil.copy2(path, copied)
        manifest = store.put(copied, kind=kind, producer={"file": path.name})
    out.print(manifest.digest, markup=False, soft_wrap=True)


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
    root = _one_root(name)
    for text in digests:
        store = MirroredStore(root, mirror)
        digest = store.find(text)
        with _bar(f"pull {digest[:DIGEST_CHARACTERS]}") as progress:
            mirror.fetch(store, digest, progress=progress)


def _one_root(name: str) -> Path:
    """The store that something is put into.

    Raises:
        ConfigError: There is none, or there are several.
    """
    roots = store_roots(name)
    if len(roots) != 1:
        given = ", ".join(str(root.parent.name) for root in roots) or "none"
        raise ConfigError(f"into which store? give --run NAME (runs: {given}) or set SIM2OR_STORE")
    return roots[0]


def _stores(name: str) -> list[Store]:
    from sim2or.artifacts.store import Store

    return [Store(root) for root in store_roots(name)]


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
