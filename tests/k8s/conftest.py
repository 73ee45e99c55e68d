"""What the tests of the Kubernetes manifests share: rendered trees, kept for the session."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "shared/tests/toy")]


@pytest.fixture(scope="session")
def kubectl() -> str:
    """The kubectl on PATH; without one, tests skip on a laptop and fail in CI."""
    program = shutil.which("kubectl")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no kubectl on PATH: it renders k8s/")
    return program
