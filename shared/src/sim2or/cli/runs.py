"""The runs under this directory: where each lies, its supervisor, its store and its bus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim2or.errors import ConfigError

if TYPE_CHECKING:
    from redis import Redis

    from sim2or.bus.jobs import Jobs


def run_directory(name: str) -> Path:
    """The directory of a run.

    Raises:
        ConfigError: The name is no plain directory name.
    """
    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"--run {name!r}: give a plain name; the directory is runs/<name>")
    return Path("runs") / name


def running(name: str) -> Any:
    """The state of the supervisor of a run.

    Raises:
        ConfigError: None runs there.
    """
    from sim2or.supervisor import running_state

    state = running_state(run_directory(name))
    if state is None:
        raise ConfigError(f"no supervisor runs in runs/{name}; start one with `sim2or up --run {name}`")
    return state


def store_roots(name: str = "") -> list[Path]:
    """The store of a run, where ``sim2or run`` has it; without a name every store known from here."""
    from sim2or.settings import load_settings

    settings = load_settings()
    if name:
        return [settings.model_copy(update={"run_dir": run_directory(name)}).store_root]
    return [settings.store] if settings.store else sorted(Path("runs").glob("*/store"))


@contextmanager
def redis_of(name: str) -> Iterator[Redis]:
    """Connects to the bus of a run; a private Redis reads its files where no supervisor runs.

    Raises:
        ConfigError: There is no such run.
    """
    from sim2or.bus.server import connect, start
    from sim2or.settings import load_settings
    from sim2or.supervisor import locked, running_state

    run_dir = run_directory(name)
    state = running_state(run_dir)
    url = state.redis_url if state else load_settings().redis_url
    if url:
        yield connect(url)
        return
    if not (run_dir / "redis").is_dir():
        names = ", ".join(sorted(p.parent.name for p in Path("runs").glob("*/redis"))) or "none"
        raise ConfigError(f"--run {name}: no such run; runs: {names}")
    with locked(run_dir / "supervisor.lock"):
        server = start(run_dir / "redis")
        try:
            yield connect(server.url)
        finally:
            server.stop()


@contextmanager
def bus(name: str) -> Iterator[Jobs]:
    """The queue of a run.

    Raises:
        ConfigError: There is no such run.
    """
    from sim2or.bus.jobs import Jobs

    with redis_of(name) as redis:
        yield Jobs(redis)
