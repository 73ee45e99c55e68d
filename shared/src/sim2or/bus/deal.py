"""Dealing keys: for each service a directory of its own, with what it needs and nothing of the others.

The master directory (``keys``, ``acl``) holds everybody's secrets and stays where it was made. What is dealt
serves as a service's ``SIM2OR_KEYS``::

    dealt/NAME/secret/NAME.N.key_secret     its newest secret, 0600 as all files here
    dealt/NAME/public/SERVER.N.key          of the servers that it asks or listens to
    dealt/NAME/allowed/NAME/ROAD/*.key      whom it lets in
    dealt/NAME/redis/USER.password          its Redis password
    dealt/redis/redis/users.acl             for the Redis server, with the password of its health check

NAME is a service or one of several (``robot@or1``), a Redis user without a service (``runner``, ``metrics``,
``admin``), or ``redis``. ``bridge@or1`` gets the key of ``robot@or1`` where there is one, else of ``robot``.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from sim2or.artifacts.store import put_in_place
from sim2or.bus import acl, keys
from sim2or.errors import ConfigError, choices
from sim2or.stages import Table

REDIS = "redis"
"""The Redis server, which is no service of the table."""

HEALTH_USER = "metrics"
"""As whom the Redis server asks itself whether it is well."""

ADMIN = "admin"
"""May do everything: dealt only by name."""

_LAYOUT = (
    "secret/*.key_secret",
    "public/*.key",
    "allowed/*/*/*.key",
    f"redis/*{acl.PASSWORD}",
    f"redis/{acl.FILE}",
)


def parties(directory: Path, table: Table) -> tuple[str, ...]:
    """Everybody to whom a master directory can be dealt."""
    return tuple(sorted({*keys.names_in(directory), *(user.name for user in acl.users(table)), REDIS}))


def deal(directory: Path, to: Path, names: Iterable[str], table: Table) -> list[str]:
    """Gives each party a directory of its own; what it should no longer have is removed there.

    Args:
        directory: The master directory.
        to: Where the directories are, ``to/NAME``.
        names: To whom; everybody but ``admin`` when empty.
        table: Stages and services.

    Returns:
        The names whose directory changed.

    Raises:
        ConfigError: An unknown name, a secret that is not in the master directory, or a place that cannot
            be written.
    """
    known = parties(directory, table)
    wanted = tuple(names) or tuple(name for name in known if name != ADMIN)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"no keys for {name!r}; {choices(name, known)}")
    hands = {name: frozenset(holdings(directory, name, table)) for name in wanted}
    return [name for name, hand in hands.items() if _give(directory, to / name, hand)]


def holdings(directory: Path, name: str, table: Table) -> Iterator[Path]:
    """The files of a master directory that a party needs.

    Raises:
        ConfigError: Its secret is not there.
    """
    if name == REDIS:
        yield directory / "redis" / acl.FILE
        yield directory / "redis" / f"{HEALTH_USER}{acl.PASSWORD}"
        return
    service = name.partition("@")[0]
    if name in keys.names_in(directory):
        yield from _curve(directory, name)
    if service in (user.name for user in acl.users(table)):
        yield directory / "redis" / f"{service}{acl.PASSWORD}"


def servers_of(directory: Path, name: str) -> list[str]:
    """The names whose public keys a client needs: those of its own place, else the plain ones."""
    service, _, place = name.partition("@")
    asked = {
        server for road in keys.ROADS for server, clients in keys.callers(road).items() if service in clients
    }
    return [found for server in sorted(asked) for found in _meant(keys.names_in(directory), server, place)]


def _meant(known: Iterable[str], server: str, place: str) -> list[str]:
    """Who is meant by a server's name at a place; where only others are known, its reader must choose."""
    names = [name for name in known if name.partition("@")[0] == server]
    return next(([name] for name in (f"{server}@{place}", server) if name in names), names)


def _curve(directory: Path, name: str) -> Iterator[Path]:
    if not keys.has_secret(directory, name):
        raise ConfigError(
            f"{directory}: no secret of the newest key of {name!r}: deal from the directory where "
            f"`sim2or keys make` made it, or make a further key with `sim2or keys make --rotate {name}`"
        )
    yield keys.newest(directory / "secret", name)
    for server in servers_of(directory, name):
        yield keys.newest(directory / "public", server)
    yield from (directory / "allowed" / name).glob("*/*.key")


def _give(directory: Path, to: Path, hand: frozenset[Path]) -> bool:
    """Makes a directory hold these files; says whether it had to change anything."""
    wanted = {to / path.relative_to(directory): path.read_bytes() for path in hand}
    try:
        to.mkdir(mode=0o700, parents=True, exist_ok=True)
        changed = [_write(path, data) for path, data in sorted(wanted.items())]
        stale = [path for pattern in _LAYOUT for path in to.glob(pattern) if path not in wanted]
        for path in stale:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"{to}: keys cannot be written there: {error}") from error
    return any(changed) or bool(stale)


def _write(path: Path, data: bytes) -> bool:
    """Writes a file that nobody else can read, whole or not at all; says whether it had to."""
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    temporary.touch(mode=0o600)
    put_in_place(temporary, path, data)
    return True
