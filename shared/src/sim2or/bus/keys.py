"""CURVE keys: who a service is, and whom a server lets in.

A directory of keys (``make keys``)::

    keys/                                    0700
      public/NAME.N.key                      for those who connect to NAME
      secret/NAME.N.key_secret               0600; only where NAME runs
      allowed/SERVER/ROAD/NAME.N.key         copies of the public keys that SERVER lets in on a road
      redis/                                 passwords, see ``acl``

NAME is a service of the topic table, or one of several: ``robot@or1``. N counts rotations from 1: a process
takes its newest key, servers let the older ones in until they are revoked. A server reads its allow-list at
every handshake, so that a key that is added or removed counts at once. The files have zmq.auth's format.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import zmq.auth

from sim2or.bus.secret import check_private
from sim2or.errors import ConfigError, choices
from sim2or.messages.topics import TOPICS

Road = Literal["rpc", "pubsub"]
ROADS: tuple[Road, ...] = ("rpc", "pubsub")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}(@[a-z0-9][a-z0-9_-]{0,62})?")
_PLACES = {".key": "public", ".key_secret": "secret"}


@dataclass(frozen=True)
class Keyring:
    """What a process proves who it is with, and whom it trusts.

    Attributes:
        name: Whose key it is, for example ``"policy"`` or ``"bridge@or1"``.
        public: Its public key, Z85.
        secret: Its secret key, Z85; never shown.
        directory: Where the keys of the others are.
    """

    name: str
    public: bytes
    secret: bytes = field(repr=False)
    directory: Path

    @classmethod
    def load(cls, directory: Path, service: str) -> Keyring:
        """Reads the newest key of a service: of its plain name, or of its only ``service@…``.

        Raises:
            ConfigError: There is none or more than one, or others may read it; says what to do.
        """
        directory = directory.absolute()
        name = _only(directory, "secret", service)
        path = newest(directory / "secret", name)
        check_private(path, "secret key")
        public, secret = _certificate(path)
        if secret is None:
            raise ConfigError(
                f"{path} holds no secret key: remove it and make one with `sim2or keys make --service {name}`"
            )
        return cls(name=name, public=public, secret=secret, directory=directory)

    def key_of(self, server: str) -> bytes:
        """The public key that a server must have.

        Raises:
            ConfigError: It is not in the directory.
        """
        name = _only(self.directory, "public", server)
        return _certificate(newest(self.directory / "public", name))[0]

    def allowed(self, road: Road) -> Path:
        """Directory of the public keys that this service lets in on a road."""
        return self.directory / "allowed" / self.name / road


def load_keyring(directory: Path | None, service: str) -> Keyring | None:
    """Reads a service's keys where ``SIM2OR_KEYS`` names a directory; None where it does not."""
    return None if directory is None else Keyring.load(directory, service)


def may_enter(directory: Path, key: bytes) -> bool:
    """Whether a client's public key is on an allow-list now; an unreadable list lets nobody in."""
    try:
        return any(_public_key(path) == key for path in directory.glob("*.key"))
    except OSError:
        return False


def callers(road: Road) -> dict[str, frozenset[str]]:
    """Who may connect to whom on a road, from the topic table.

    Returns:
        Server to the services that ask it questions (rpc) or listen to it (pubsub).
    """
    found: dict[str, set[str]] = {}
    for topic in TOPICS.values():
        listens = topic.road == "pubsub"
        if listens != (road == "pubsub") or not (listens or topic.answers):
            continue
        servers, others = topic.publishers, topic.consumers
        for server in servers if listens else others:
            found.setdefault(server, set()).update(others if listens else servers)
    return {name: frozenset(others) for name, others in found.items()}


def services() -> tuple[str, ...]:
    """Every service that has a key: those that the topic table lets talk over sockets."""
    tables = [callers(road) for road in ROADS]
    members = (name for table in tables for others in table.values() for name in others)
    return tuple(sorted({name for table in tables for name in table} | set(members)))


def make(directory: Path, names: Iterable[str] = ()) -> list[str]:
    """Makes the keys that are missing, and lets them in where the topic table says so.

    A key is never overwritten, and what was taken off an allow-list stays off.

    Args:
        directory: Of the keys.
        names: Services, or ``service@place``; every service when empty.

    Returns:
        The names whose keys were made.

    Raises:
        ConfigError: A name that no topic mentions.
    """
    wanted = tuple(names) or services()
    for name in wanted:
        _check(name)
    _private(directory)
    made = [name for name in wanted if not _generations(directory / "public", name)]
    for name in made:
        _add(directory, name, 1)
    for name in made:
        _introduce(directory, name)
    return made


def rotate(directory: Path, name: str) -> int:
    """Makes a further key for a name; the older ones stay accepted until ``revoke``.

    Returns:
        Its number.

    Raises:
        ConfigError: The name has no key yet.
    """
    numbers = _generations(directory / "public", _known(directory, name))
    _add(directory, name, numbers[-1] + 1)
    _admit(directory, name, [server for server in names_in(directory) if server != name])
    return numbers[-1] + 1


def revoke(directory: Path, name: str, *, old_only: bool = False) -> list[Path]:
    """Removes the keys of a name, or only those that a rotation replaced; servers refuse them from now on.

    Returns:
        The files that were removed.

    Raises:
        ConfigError: The name has no key.
    """
    numbers = _generations(directory / "public", _known(directory, name))
    gone = numbers[:-1] if old_only else numbers
    files = [path for number in gone for path in sorted(directory.glob(f"**/{name}.{number}.key*"))]
    for path in files:
        path.unlink()
    return files


def names_in(directory: Path) -> dict[str, list[int]]:
    """The names that have keys in a directory, with the numbers of their keys."""
    found = sorted({path.name.rsplit(".", 2)[0] for path in (directory / "public").glob("*.*.key")})
    return {name: _generations(directory / "public", name) for name in found}


def has_secret(directory: Path, name: str) -> bool:
    """Whether a directory holds the secret of a name's newest key."""
    numbers = _generations(directory / "public", name)
    return bool(numbers) and numbers[-1] in _generations(directory / "secret", name)


def admitted(directory: Path, server: str) -> Mapping[Road, list[str]]:
    """The keys that a server lets in now, by road, as ``name.number``."""
    return {
        road: sorted(path.stem for path in (directory / "allowed" / server / road).glob("*.key"))
        for road in ROADS
    }


def newest(place: Path, name: str) -> Path:
    """The file of a name's newest key; the name must have one."""
    suffix = ".key_secret" if place.name == "secret" else ".key"
    return place / f"{name}.{_generations(place, name)[-1]}{suffix}"


def _service(name: str) -> str:
    return name.partition("@")[0]


def _check(name: str) -> None:
    if not _NAME.fullmatch(name) or _service(name) not in services():
        raise ConfigError(
            f"--service {name!r}; {choices(_service(name), services())}; one of several is SERVICE@PLACE"
        )


def _known(directory: Path, name: str) -> str:
    if not _NAME.fullmatch(name) or name not in (known := names_in(directory)):
        raise ConfigError(f"{directory}: no key of {name!r}; {choices(name, known)}")
    return name


def _only(directory: Path, place: str, service: str) -> str:
    """The name under which a directory holds keys of a service."""
    names = {path.name.rsplit(".", 2)[0] for path in (directory / place).glob(f"{service}*.*.key*")}
    several = [service] if service in names else sorted(name for name in names if _service(name) == service)
    if len(several) == 1:
        return several[0]
    if several:
        raise ConfigError(
            f"SIM2OR_KEYS={directory}: {place} keys of {', '.join(several)}; leave the one that is meant here"
        )
    raise ConfigError(
        f"SIM2OR_KEYS={directory}: no {place} key of {service!r}; make it with `sim2or keys make --out "
        f"{directory} --service {service}`, or copy it to {directory / place}"
    )


def _generations(place: Path, name: str) -> list[int]:
    suffix = ".key_secret" if place.name == "secret" else ".key"
    numbers = (path.name[len(name) + 1 : -len(suffix)] for path in place.glob(f"{name}.*{suffix}"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def _private(directory: Path) -> None:
    """Makes the directory for its owner only, and keeps it out of version control."""
    for place in (directory, *(directory / name for name in ("public", "secret", "allowed"))):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)


def _add(directory: Path, name: str, number: int) -> None:
    """Writes a new pair: made in a private place, then moved, so that no one reads half a key."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        for file in map(Path, zmq.auth.create_certificates(place, f"{name}.{number}")):
            file.chmod(0o600 if file.suffix == ".key_secret" else 0o644)
            os.link(file, directory / _PLACES[file.suffix] / file.name)


def _introduce(directory: Path, name: str) -> None:
    """Lets a new name in where it belongs, and those in that belong to it."""
    known = names_in(directory)
    _admit(directory, name, [server for server in known if server != name])
    for other in known:
        if other != name:
            _admit(directory, other, [name])


def _admit(directory: Path, client: str, servers: Iterable[str]) -> None:
    """Copies a client's newest public key to the allow-lists where the topic table has it."""
    for road in ROADS:
        table = callers(road)
        for server in servers:
            if _service(client) in table.get(_service(server), ()):
                place = directory / "allowed" / server / road
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                shutil.copy(newest(directory / "public", client), place)


def _certificate(path: Path) -> tuple[bytes, bytes | None]:
    try:
        return zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"key {path} cannot be read: {error}") from error


def _public_key(path: Path) -> bytes | None:
    try:
        return zmq.auth.load_certificate(path)[0]
    except ValueError:
        return None
