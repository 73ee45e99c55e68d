"""Intervals and tests agree with numbers worked out by hand or printed in their papers."""

from __future__ import annotations

import pytest
from sim2or.errors import ConfigError
from sim2or_evaluator.statistics import mcnemar_exact, newcombe, tango, trials_to_prove, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "lower", "upper"),
    [
        (20, 20, 0.839, 1.0),  # n / (n + z²) = 20 / 23.8415
        (196, 200, 0.950, 0.992),
        (0, 20, 0.0, 0.161),  # mirror of 20/20
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998a, table I, method 3
        (15, 148, 0.0624, 0.1605),  # same table
        (1, 29, 0.0061, 0.1718),  # same table
    ],
)
def test_wilson_by_hand(successes: int, trials: int, lower: float, upper: float) -> None:
    """The Wilson interval gives the published and hand-checked bounds."""
    interval = wilson(successes, trials)
    assert interval.lower == pytest.approx(lower, abs=6e-4)
    assert interval.upper == pytest.approx(upper, abs=6e-4)


def test_twenty_of_twenty_do_not_prove_ninety_percent_but_thirty_five_do() -> None:
    """A perfect score proves 90 % from 35 trials on, not before."""
    assert wilson(20, 20).lower < 0.90
    assert wilson(34, 34).lower < 0.90
    assert wilson(35, 35).lower >= 0.90


def test_no_trials_say_nothing() -> None:
    """Without trials the interval is everything."""
    assert (wilson(0, 0).lower, wilson(0, 0).upper) == (0.0, 1.0)


def test_newcombe_against_the_paper() -> None:
    """Newcombe 1998b, table II, contrast (a): 56/70 − 48/80 gives 0.0524 to 0.3339."""
    interval = newcombe(56, 70, 48, 80)
    assert interval.lower == pytest.approx(0.0524, abs=1e-4)
    assert interval.upper == pytest.approx(0.3339, abs=1e-4)
    assert 0.2 in interval


def test_newcombe_is_antisymmetric() -> None:
    """Swapping the two arms mirrors the interval."""
    forward, backward = newcombe(19, 20, 15, 20), newcombe(15, 20, 19, 20)
    assert (forward.lower, forward.upper) == pytest.approx((-backward.upper, -backward.lower))


def test_tango_against_a_worked_example() -> None:
    """Fagerland, Lydersen and Laake 2014, airway data of 21 children: −0.517 to −0.026 for 1 and 7 of 21."""
    interval = tango(1, 7, 21)
    assert (interval.lower, interval.upper) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_tango_without_discordant_scenarios_by_hand() -> None:
    """Forty scenarios without a difference leave ± z² / (n + z²) = 3.8415 / 43.8415 open."""
    interval = tango(0, 0, 40)
    assert (interval.lower, interval.upper) == pytest.approx((-0.08762, 0.08762), abs=1e-5)


def test_tango_where_only_one_ever_succeeds_by_hand() -> None:
    """Forty of forty against none: from (n − z²) / (n + z²) = 36.1585 / 43.8415 to 1."""
    interval = tango(40, 0, 40)
    assert (interval.lower, interval.upper) == pytest.approx((0.82476, 1.0), abs=1e-5)


def test_tango_is_antisymmetric_and_narrower_with_more_agreement() -> None:
    """Swapping the arms mirrors it; more scenarios in which both agree make it narrower."""
    forward, backward = tango(9, 2, 40), tango(2, 9, 40)
    assert (forward.lower, forward.upper) == pytest.approx((-backward.upper, -backward.lower))
    more = tango(9, 2, 80)
    assert more.upper - more.lower < forward.upper - forward.lower
    assert 7 / 40 in forward


def test_tango_without_scenarios_says_nothing() -> None:
    """Nothing seen leaves every difference possible, and impossible counts are refused."""
    assert (tango(0, 0, 0).lower, tango(0, 0, 0).upper) == (-1.0, 1.0)
    with pytest.raises(ConfigError, match="successes=7"):
        tango(3, 4, 6)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (0, 6, 0.03125), (3, 1, 0.625)],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    """The exact paired test is a fair coin on the discordant scenarios: 5 of 5 has p = 2 · 0.5⁵."""
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p)


def test_planner_agrees_with_the_interval() -> None:
    """35 perfect trials prove 90 %, and one fewer is not enough for any plan it gives."""
    assert trials_to_prove(0.90) == 35
    for required, expected in [(0.90, 0.97), (0.93, 0.98)]:
        trials = trials_to_prove(required, expected)
        assert wilson(int(expected * trials + 1e-9), trials).lower >= required
        assert wilson(int(expected * (trials - 1) + 1e-9), trials - 1).lower < required


@pytest.mark.parametrize("arguments", [(5, 4), (-1, 4)])
def test_impossible_counts_are_refused(arguments: tuple[int, int]) -> None:
    """More successes than trials, or negative ones, are named and refused."""
    with pytest.raises(ConfigError, match="successes="):
        wilson(*arguments)


def test_planner_refuses_what_no_number_can_prove() -> None:
    """A required rate above the expected one is refused with both values."""
    with pytest.raises(ConfigError, match=r"expected=0\.9 must exceed required=0\.95"):
        trials_to_prove(0.95, 0.9)
