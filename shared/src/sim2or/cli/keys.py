"""``sim2or keys``: CURVE keys and Redis users, made, listed, rotated and revoked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from sim2or.errors import ConfigError, choices

if TYPE_CHECKING:
    from sim2or.stages import Table

keys_app = typer.Typer(no_args_is_help=True, help="Keys and passwords for what leaves this host.")

out = Console(highlight=False)

Directory = Annotated[Path, typer.Option("--out", "--keys", help="Directory of the keys; never commit it.")]

_KEYS = Path("keys")


@keys_app.command()
def make(
    directory: Directory = _KEYS,
    service: Annotated[
        list[str] | None, typer.Option(help="Only this service, or SERVICE@PLACE for one of several.")
    ] = None,
    rotate: Annotated[
        list[str] | None, typer.Option(help="Make a further key for this name; the old one stays accepted.")
    ] = None,
) -> None:
    """Make the keys and passwords that are missing; what exists is never overwritten."""
    from sim2or.bus import acl, keys

    table = _table()
    for name in rotate or []:
        _check_name(name, [*keys.names_in(directory), *(user.name for user in acl.users(table))])
        if name in keys.names_in(directory):
            out.print(f"{name}: new key {keys.rotate(directory, name)}", markup=False)
        if name in [user.name for user in acl.users(table)]:
            acl.rotate(directory, name, table)
            out.print(f"{name}: new Redis password", markup=False)
    if rotate:
        return
    made = keys.make(directory, service or ())
    users = acl.write(directory, table)
    out.print(f"keys made: {', '.join(made) or 'none, all are there'}", markup=False, soft_wrap=True)
    out.print(f"passwords made: {', '.join(users) or 'none, all are there'}", markup=False, soft_wrap=True)
    out.print(f"set SIM2OR_KEYS={directory}; see docs/security.md", markup=False, soft_wrap=True)


@keys_app.command("ls")
def list_keys(directory: Directory = _KEYS) -> None:
    """List the keys, and whom each server lets in."""
    from sim2or.bus import keys

    grid = Grid("name", "keys", "secret here", "lets in (rpc)", "lets in (pubsub)", box=None)
    for name, numbers in keys.names_in(directory).items():
        secret = "yes" if keys.has_secret(directory, name) else "no"
        lets_in = [" ".join(admitted) or "–" for admitted in keys.admitted(directory, name).values()]
        grid.add_row(name, " ".join(map(str, numbers)), secret, *lets_in)
    out.print(grid)
    passwords = sorted(path.name.partition(".")[0] for path in (directory / "redis").glob("*.password"))
    out.print(f"Redis passwords: {' '.join(passwords) or '–'}", markup=False, soft_wrap=True)


@keys_app.command()
def deal(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]…",
            help="To whom: services, SERVICE@PLACE, redis, runner, metrics, admin; all but admin by default.",
        ),
    ] = None,
    directory: Directory = _KEYS,
    to: Annotated[Path, typer.Option(help="Where each gets its own directory: TO/NAME.")] = _KEYS / "dealt",
) -> None:
    """Make what is missing, and give each service a directory with what it needs and no other's secrets."""
    from sim2or.bus import acl, keys
    from sim2or.bus import deal as dealing

    table = _table()
    keys.make(directory)
    acl.write(directory, table)
    changed = dealing.deal(directory, to, names or (), table)
    out.print(f"dealt in {to}: {', '.join(changed) or 'nothing new'}", markup=False, soft_wrap=True)


@keys_app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Whose keys and passwords.")],
    directory: Directory = _KEYS,
    old: Annotated[bool, typer.Option("--old", help="Only what a rotation replaced.")] = False,
) -> None:
    """Remove the keys of a name: servers refuse them at the next handshake."""
    from sim2or.bus import acl, keys

    table = _table()
    known, users = keys.names_in(directory), [user.name for user in acl.users(table)]
    _check_name(name, [*known, *users])
    gone = keys.revoke(directory, name, old_only=old) if name in known else []
    gone += acl.revoke(directory, name, table, old_only=old) if name in users else []
    for path in gone:
        out.print(f"removed {path}", markup=False, soft_wrap=True)
    out.print(f"{name}: {len(gone)} files removed", markup=False)


def _table() -> Table:
    from sim2or.settings import load_settings
    from sim2or.stages import load_table

    return load_table(load_settings().plugins)


def _check_name(name: str, known: list[str]) -> None:
    if name not in known:
        raise ConfigError(f"no keys of {name!r}; {choices(name, set(known))}")
