"""The doctor looks for what the services really use, and knows its own checks."""

from __future__ import annotations

import pytest
from sim2or.cli.doctor import CHECKS, GL_LIBRARIES, checks
from sim2or.errors import ConfigError


def test_an_unknown_check_is_refused() -> None:
    """A misspelt name cannot pass for a healthy machine."""
    with pytest.raises(ConfigError, match=r"'graphic'.*valid: disk, graphics, python, redis.*'graphics'"):
        checks(["disk", "graphic"])


def test_only_the_named_checks_run() -> None:
    """Names choose checks; without any, all of them run, each under its own name."""
    assert [check.name for check in checks(["python"])] == ["python"]
    assert [check.name for check in checks()] == list(CHECKS)


def test_graphics_means_what_the_simulator_loads() -> None:
    """The doctor tries the very libraries that the simulator tries, in its order."""
    gl = pytest.importorskip("sim2or_sim.backends.mujoco.gl")
    assert tuple(gl._LIBRARIES.values()) == GL_LIBRARIES
    loads = any(gl.loads(name) for name in gl._LIBRARIES)
    assert next(checks(["graphics"])).ok == loads
