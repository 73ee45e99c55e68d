"""Goals say what was asked for beside what was reached."""

from __future__ import annotations

from sim2or.goals import at_least, at_most, with_total


def test_a_limit_is_part_of_its_goal() -> None:
    """Reaching a goal exactly meets it; what was not measured is neither met nor missed."""
    assert at_least("success_rate", 0.97, 0.97).met is True
    assert at_least("success_rate", 0.96, 0.97).met is False
    assert at_most("violations", 0, 0).met is True
    assert at_most("violations", 1, 0).met is False
    assert at_most("violations", None, 0).met is None


def test_values_are_shown_in_their_unit() -> None:
    """Shares are per cent, times seconds, counts counts."""
    assert at_least("success_rate", 0.945, 0.97).text == "success rate 94.5 % (goal: at least 97 %)"
    assert at_most("total_s", 692.8, 600).text == "total 693 s (goal: at most 600 s)"
    assert at_most("stale_executed", 2, 0).text == "stale executed 2 (goal: at most 0)"
    assert at_most("violations", None, 0).text == "violations not measured (goal: at most 0)"


def test_the_total_is_judged_last() -> None:
    """Only the goal on the total changes when the whole time is known."""
    goals = [at_least("success_rate", 1.0, 0.97), at_most("total_s", 590.0, 600)]
    assert [goal.met for goal in with_total(goals, 610.0)] == [True, False]
    assert with_total(goals, 610.0)[0] == goals[0]
