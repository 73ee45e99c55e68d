"""The container engine that these tests need."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import DockerClient
from sim2or.containers import connect
from sim2or.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerClient]:
    """A client of the engine; where none answers, tests skip on a laptop and fail in CI."""
    try:
        client = connect()
    except ConfigError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    yield client
    client.close()
