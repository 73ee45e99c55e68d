"""Statistics of success: intervals, differences, paired tests and how many trials a claim needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from sim2or.errors import ConfigError

MOST_TRIALS = 1_000_000
_EDGE = 1e-9


@dataclass(frozen=True)
class Interval:
    """A closed interval of probabilities or of their differences."""

    lower: float
    upper: float

    def __contains__(self, value: float) -> bool:
        return self.lower <= value <= self.upper


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Gives the Wilson score interval of a success probability.

    Args:
        successes: How many trials succeeded, 0 ≤ successes ≤ trials.
        trials: How many trials there were; 0 gives [0, 1]: nothing is known.
        confidence: Two-sided, 0 < confidence < 1.

    Source: Wilson, *Probable inference, the law of succession, and statistical inference*, Journal of the
    American Statistical Association 22 (1927) 209–212.
    """
    _check(successes, trials, confidence)
    if trials == 0:
        return Interval(0.0, 1.0)
    z = _quantile(confidence)
    rate = successes / trials
    scale = 1 + z**2 / trials
    centre = (rate + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    lower = 0.0 if successes == 0 else centre - half
    upper = 1.0 if successes == trials else centre + half
    return Interval(max(0.0, lower), min(1.0, upper))


def newcombe(
    successes_a: int, trials_a: int, successes_b: int, trials_b: int, confidence: float = 0.95
) -> Interval:
    """Gives the interval of the difference a − b of two independent success probabilities.

    Source: Newcombe, *Interval estimation for the difference between independent proportions*, Statistics in
    Medicine 17 (1998) 873–890, method 10 (hybrid score).
    """
    a, b = wilson(successes_a, trials_a, confidence), wilson(successes_b, trials_b, confidence)
    if trials_a == 0 or trials_b == 0:
        return Interval(-1.0, 1.0)
    rate_a, rate_b = successes_a / trials_a, successes_b / trials_b
    difference = rate_a - rate_b
    return Interval(
        difference - math.hypot(rate_a - a.lower, b.upper - rate_b),
        difference + math.hypot(a.upper - rate_a, rate_b - b.lower),
    )


def tango(only_a: int, only_b: int, scenarios: int, confidence: float = 0.95) -> Interval:
    """Gives the score interval of the difference a − b of two success probabilities on the same scenarios.

    It holds every difference that the score test of paired proportions does not reject; without any scenario
    it is everything.

    Args:
        only_a: Scenarios in which only a succeeded.
        only_b: Scenarios in which only b succeeded.
        scenarios: All of them, those included in which both or neither succeeded.
        confidence: Two-sided, 0 < confidence < 1.

    Source: Tango, *Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design*, Statistics in Medicine 17 (1998) 891–908, equations 8 and 9.
    """
    _check(only_a + only_b, scenarios, confidence)
    _check(only_a, only_a + only_b, confidence)
    if scenarios == 0:
        return Interval(-1.0, 1.0)
    z, seen = _quantile(confidence), (only_a - only_b) / scenarios

    def bound(end: float, score: float) -> float:
        """Where the score, which falls from the observed difference on outward, has this value."""
        if abs(seen - end) < _EDGE:
            return end
        outside = end - math.copysign(_EDGE, end)
        return float(
            brentq(lambda delta: _paired_score(only_a, only_b, scenarios, delta) - score, outside, seen)
        )

    return Interval(bound(-1.0, z), bound(1.0, -z))


def _paired_score(only_a: int, only_b: int, scenarios: int, delta: float) -> float:
    """Tango's score of a difference ``delta``: observed minus supposed, over its standard error there."""
    distance = only_a - only_b - scenarios * delta
    a = 2 * scenarios
    b = -only_a - only_b + (2 * scenarios - only_a + only_b) * delta
    c = -only_b * delta * (1 - delta)
    rarer = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # probability that only b succeeds
    variance = scenarios * (2 * rarer + delta * (1 - delta))
    return distance / math.sqrt(variance) if variance > 0 else 0.0


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Gives the two-sided exact p-value that two policies succeed equally often on the same scenarios.

    Only the scenarios in which exactly one of them succeeded carry information; under the hypothesis each is
    a fair coin. Without any, the p-value is 1.

    Source: McNemar, Psychometrika 12 (1947) 153–157, in its exact binomial form.
    """
    _check(only_a, only_a + only_b, 0.95)
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def trials_to_prove(required: float, expected: float = 1.0, confidence: float = 0.95) -> int:
    """Plans the fewest trials whose Wilson lower bound reaches ``required`` at the expected success rate.

    Args:
        required: The success probability to prove, 0 ≤ required < 1.
        expected: The success rate that the trials are expected to show; successes are rounded down.
        confidence: Two-sided.

    Raises:
        ConfigError: The expected rate does not exceed the required one, or no affordable number is enough.
    """
    if not 0 <= required < expected <= 1:
        raise ConfigError(f"expected={expected} must exceed required={required}, and both lie in [0, 1]")
    z = _quantile(confidence)
    trials = max(1, int(z**2 * required))  # at 100 % success the lower bound is n / (n + z²)
    while trials <= MOST_TRIALS:
        if wilson(_floor(expected * trials), trials, confidence).lower >= required:
            return trials
        trials += 1
    raise ConfigError(f"more than {MOST_TRIALS} trials to prove {required} at {expected}; widen the gap")


def _quantile(confidence: float) -> float:
    return float(norm.ppf(0.5 + confidence / 2))


def _floor(value: float) -> int:
    return math.floor(value + 1e-9)


def _check(successes: int, trials: int, confidence: float) -> None:
    if not 0 <= successes <= trials:
        raise ConfigError(f"successes={successes} must lie in 0…trials={trials}")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence} must lie in (0, 1), for example 0.95")
