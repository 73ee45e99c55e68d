"""The scaling page says what was measured, and what the design answers."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import page
from model import walls


@pytest.fixture
def figures() -> page.Content:
    """What was measured; where nothing was, tests skip on a laptop and fail in CI."""
    if not page.FIGURES.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no bench/scale.json: run `make bench-scale`")
    return page.read(page.FIGURES)


def test_the_page_says_what_was_measured(figures: page.Content) -> None:
    """Every generated part is the one that bench/scale.json gives."""
    text = page.PAGE.read_text()
    assert page.filled(text, page.parts(figures)) == text, "run: python tests/perf/scale/page.py"


def test_the_page_has_every_generated_part(figures: page.Content) -> None:
    """No part is computed and then shown nowhere."""
    shown = re.findall(r"<!-- generated: (\w+) -->", page.PAGE.read_text())
    assert sorted(shown) == sorted(page.parts(figures))


def test_every_wall_has_an_answer(figures: page.Content) -> None:
    """The page's last part names each wall of the model."""
    answers = page.PAGE.read_text().partition("## The answer at each wall")[2]
    missing = [wall.name for wall in walls(page.units(figures)) if f"**{wall.name}" not in answers]
    assert not missing


def test_what_people_write_between_the_parts_stays() -> None:
    """Only what stands between two markers is replaced, as often as it stands there."""
    text = "a\n<!-- generated: goals -->\nold\n<!-- end -->\nb\n<!-- generated: goals -->\n<!-- end -->\n"
    new = "a\n<!-- generated: goals -->\nnew\n<!-- end -->\nb\n<!-- generated: goals -->\nnew\n<!-- end -->\n"
    assert page.filled(text, {"goals": "new\n"}) == new


@pytest.mark.parametrize(
    ("needed", "shown"), [(0.00123, "0.12 %"), (0.42, "42 %"), (1.0, "**1.0**"), (12.34, "**12.3**")]
)
def test_shares_below_one_are_per_cent(needed: float, shown: str) -> None:
    """From one on, the number says how many of it are needed."""
    assert page.share(needed) == shown
