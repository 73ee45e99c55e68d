"""Redis users: one for each service, with the rights its work needs and no others.

``keys/redis/`` holds a random password for each user (``NAME.password``, 0600, only where the user is needed)
and ``users.acl``, Redis's ``aclfile``, which holds digests of them. Redis asks the same rights inside the
queue's script. It needs 6.2, which knows rights to commands and to keys, but not to commands on keys: a
service may touch its own stages' jobs and the common record (``events``, ``jobs:all``, ``jobs:dead``), and
nobody but ``admin`` may read the configuration, list all keys or empty the store.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from sim2or.artifacts.record import write_whole
from sim2or.bus.secret import check_private
from sim2or.errors import ConfigError, choices
from sim2or.stages import Table

FILE = "users.acl"
PASSWORD = ".password"
OLD = ".old.password"
"""What a rotation replaced; accepted until it is revoked."""

JOB_ID = "[0-9a-f]" * 16
"""How a job's id ends, after its stage; as Redis matches keys."""

_CONNECT = ("ping", "info")
_SCRIPT = ("evalsha", "script|load", "time")
_READ = (
    "exists",
    "hget",
    "hgetall",
    "hmget",
    "scard",
    "xinfo|groups",
    "xpending",
    "xrange",
    "zcard",
    "zrange",
)
_WORK = (
    "blpop",
    "hdel",
    "hincrby",
    "hset",
    "lpush",
    "ltrim",
    "sadd",
    "srem",
    "xack",
    "xadd",
    "xautoclaim",
    "xclaim",
    "xdel",
    "xgroup|create",
    "xgroup|delconsumer",
    "xreadgroup",
    "zadd",
    "zrangebyscore",
    "zrem",
)
_FOLLOW = ("xlen", "xread", "xrevrange")
_RUN = ("del", "get", "set", "xtrim")

READS = (*_CONNECT, *_SCRIPT, *_READ, *_FOLLOW)
WORKS = (*_CONNECT, *_SCRIPT, *_READ, *_WORK)
RUNS = (*READS, *_WORK, *_RUN)
BUS_KEYS = ("bus:*", "events", "job:*", "jobs:*")
COMMON_KEYS = ("events", "jobs:all", "jobs:dead")


@dataclass(frozen=True)
class User:
    """A Redis user.

    Attributes:
        name: Its login, for example ``"trainer"``.
        commands: What it may call; ``command|first-argument`` allows only that form.
        keys: Patterns of the keys it may touch.
    """

    name: str
    commands: tuple[str, ...]
    keys: tuple[str, ...]

    def line(self, digests: Iterable[str]) -> str:
        """Its line in an ``aclfile``; every password with one of the SHA-256 digests is accepted."""
        passwords = " ".join(f"#{digest}" for digest in digests)
        keys = " ".join(f"~{key}" for key in self.keys)
        commands = " ".join(f"+{command}" for command in self.commands)
        return f"user {self.name} on {passwords} resetchannels resetkeys {keys} -@all {commands}"


def users(table: Table) -> tuple[User, ...]:
    """The users that an installation needs: its services that have stages, and four for people and tools."""
    services = sorted({info.service for info in table.stages.values()})
    return (
        *(User(name, WORKS, _keys_of(name, table)) for name in services),
        User("runner", RUNS, BUS_KEYS),
        User("metrics", READS, BUS_KEYS),
        User("admin", ("@all",), ("*",)),
    )


def write(directory: Path, table: Table) -> list[str]:
    """Makes the passwords that are missing, and writes ``users.acl`` for all.

    Args:
        directory: Of the keys; passwords go to ``redis/`` in it.
        table: Stages and services.

    Returns:
        The users whose passwords were made.
    """
    place = directory / "redis"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = users(table)
    made = [user.name for user in known if not (place / f"{user.name}{PASSWORD}").exists()]
    for name in made:
        _write_password(place / f"{name}{PASSWORD}")
    write_whole(
        place / FILE, acl_text(known, {user.name: _digests(place, user.name) for user in known}).encode()
    )
    return made


def rotate(directory: Path, name: str, table: Table) -> None:
    """Makes a new password for a user; the one before stays accepted until ``revoke``."""
    place = directory / "redis"
    current = place / f"{_known(name, table)}{PASSWORD}"
    if current.exists():
        current.replace(place / f"{name}{OLD}")
    write(directory, table)


def revoke(directory: Path, name: str, table: Table, *, old_only: bool = False) -> list[Path]:
    """Removes a user's passwords and makes a new one, or removes only what a rotation replaced.

    Returns:
        The files that were removed.
    """
    place = directory / "redis"
    names = [f"{_known(name, table)}{OLD}"] + ([] if old_only else [f"{name}{PASSWORD}"])
    gone = [path for path in (place / file for file in names) if path.exists()]
    for path in gone:
        path.unlink()
    write(directory, table)
    return gone


def acl_text(known: Iterable[User], digests: Mapping[str, Iterable[str]]) -> str:
    """Writes an ``aclfile``: these users, and nobody without a name.

    The default user is off, so that nobody can be it, but keeps its rights: as it, Redis reads its own
    append-only file back at a start, and without rights it would silently leave out what a script wrote.

    *Source*: https://github.com/redis/redis/issues/14541, https://github.com/valkey-io/valkey/issues/3983.
    """
    lines = ["user default off resetpass allchannels allkeys +@all"]
    return "\n".join(lines + [user.line(digests[user.name]) for user in known]) + "\n"


def password(directory: Path | None, user: str) -> str:
    """Reads a user's password.

    Args:
        directory: Of the keys; None: ``SIM2OR_KEYS`` is not set.
        user: As in ``redis://USER@host``.

    Raises:
        ConfigError: There is none, or others may read it.
    """
    if directory is None:
        raise ConfigError(
            f"SIM2OR_REDIS_URL names the user {user!r} and no password: set SIM2OR_KEYS to the directory of "
            f"keys that has redis/{user}{PASSWORD} (`make keys`)"
        )
    path = directory / "redis" / f"{user}{PASSWORD}"
    if "/" in user or not path.is_file():
        found = [file.name.removesuffix(PASSWORD) for file in path.parent.glob(f"*{PASSWORD}")]
        raise ConfigError(
            f"SIM2OR_KEYS={directory}: no redis/{user}{PASSWORD}; {choices(user, found)}; `make keys`"
        )
    check_private(path, "password")
    return path.read_text().strip()


def _keys_of(service: str, table: Table) -> tuple[str, ...]:
    """Its stages' queues and jobs, the common record, and whether the stages before its own have work."""
    stages = table.of_service(service)
    own = [pattern for stage in sorted(stages) for pattern in (f"jobs:{stage}:*", f"job:{stage}-{JOB_ID}")]
    before = sorted({info.warm_after for info in stages.values() if info.warm_after} - set(stages))
    return (*own, *COMMON_KEYS, *(f"jobs:{stage}:outstanding" for stage in before))


def _known(name: str, table: Table) -> str:
    names = [user.name for user in users(table)]
    if name not in names:
        raise ConfigError(f"no Redis user {name!r}; {choices(name, names)}")
    return name


def _write_password(path: Path) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")


def _digests(place: Path, name: str) -> list[str]:
    files = [path for path in (place / f"{name}{PASSWORD}", place / f"{name}{OLD}") if path.exists()]
    return [sha256(path.read_text().strip().encode()).hexdigest() for path in files]
