"""The simulation page says what was measured."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import load
import numpy as np
import simulation_page as page


@pytest.fixture
def figures() -> page.Content:
    """What was measured; where nothing was, tests skip on a laptop and fail in CI."""
    if not page.FIGURES.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no bench/sim.json: run `make bench-sim`")
    return page.read(page.FIGURES)


def test_the_page_says_what_was_measured(figures: page.Content) -> None:
    """Every generated part is the one that bench/sim.json gives."""
    text = page.PAGE.read_text()
    assert page.filled(text, page.parts(figures)) == text, "run: python tests/perf/sim/simulation_page.py"


def test_the_page_has_every_generated_part(figures: page.Content) -> None:
    """No part is computed and then shown nowhere."""
    shown = re.findall(r"<!-- generated: (\w+) -->", page.PAGE.read_text())
    assert sorted(shown) == sorted(page.parts(figures))


def test_a_share_below_the_goal_is_told() -> None:
    """A contender at 0.85 of the bare engine stands as missed, with its range."""
    goal = {"name": "MuJoCo steps: 1 worker, × bare", "met": False}
    median = {"1 worker": {"steps_per_s": 1700.0, "bare_steps_per_s": 2000.0, "share": 0.85}}
    spread = {"1 worker": {"share": [0.84, 0.86]}}
    found = {"goals": [goal], "sections": {"MuJoCo: environment steps": {"median": median, "range": spread}}}
    row = page.rates(found, "environment steps", "steps").splitlines()[2]
    assert row == "| MuJoCo, 1 worker | 1,700 | 2,000 | 0.85 (0.84–0.86) | **missed** |"


def test_a_bare_engine_that_did_other_work_is_an_error() -> None:
    """Another state, and another picture, end the measurement."""
    with pytest.raises(RuntimeError, match=r"another state, 0\.5 away"):
        load.same([np.array([1.0])], [np.array([1.5])])
    with pytest.raises(RuntimeError, match="camera room"):
        load.same_pictures([{"room": np.zeros(3, np.uint8)}], [{"room": np.ones(3, np.uint8)}])


def test_commands_end_before_the_surgeon_takes() -> None:
    """Six scenarios without lag, repeated over the environments, for at least a hundred control steps."""
    told = load.commands(8)
    assert [one.lag_s for one in told.scenarios] == [0.0] * 8
    assert told.scenarios[7] == told.scenarios[1]
    assert told.rad.shape[1:] == (8, 6)
    assert len(told.rad) >= 100
