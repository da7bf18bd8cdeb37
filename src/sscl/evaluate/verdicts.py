"""What can be said of a question from so many tiles: passed, failed, or inconclusive. The rule, in one place.

N tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np
import numpy.typing as npt

from sscl.evaluate.intervals import Interval, fraction_interval, student

# Of fewer tiles nothing is said: even if all of them agree, a sign test of five has p = 2 x 0.5^5 = 0.06.
FEWEST = 6
POWER = 0.8  # in which fraction of samples a difference that matters must show, for its absence to say something
GAIN = 0.1  # of balanced accuracy over chance: where even this is excluded, nothing useful was learned


class Outcome(Enum):
    """What came of a check, in the word that its verdict starts with."""

    PASSED = "passed"
    FAILED = "FAILED"
    INCONCLUSIVE = "inconclusive"
    NOT_ASSESSED = "not assessed"

    @classmethod
    def of(cls, passed: bool | None) -> Outcome:
        """Return the outcome of a question whose answer is yes, no, or (None) that it cannot be assessed."""
        return cls.NOT_ASSESSED if passed is None else cls.PASSED if passed else cls.FAILED


def outcome_above(interval: Interval, bound: float, *, tiles: int) -> Outcome:
    """Return whether a quantity is above a bound: yes or no where its whole 95% interval is on one side.

    Args:
        interval: of the quantity. tiles: that it rests on; of fewer than FEWEST nothing is said.
    """
    low, high = interval
    if tiles >= FEWEST and low > bound:
        return Outcome.PASSED
    if tiles >= FEWEST and high < bound:
        return Outcome.FAILED
    return Outcome.INCONCLUSIVE


def outcome_below(interval: Interval, bound: float, *, tiles: int) -> Outcome:
    """Return whether a quantity is below a bound, as `outcome_above`."""
    return outcome_above((-interval[1], -interval[0]), -bound, tiles=tiles)


def mean_interval(values: npt.ArrayLike) -> Interval:
    """Return the 95% interval of the mean of independent values, (N,), by Student's t; of one value, all numbers.

    Where all values are equal it has no width, so FEWEST guards it.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return -np.inf, np.inf
    half = float(student(len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return float(x.mean()) - half, float(x.mean()) + half


def interval_text(interval: Interval) -> str:
    """Return a 95% interval as a verdict shows it."""
    return f"{interval[0]:.2f} to {interval[1]:.2f}" if np.isfinite(interval).all() else "no interval"


def balanced_interval(balanced_accuracy: float, counts: Sequence[int]) -> Interval:
    """Return the 95% interval of a balanced accuracy of which the recalls are not known, on the tiles it is worth.

    The mean of K recalls of n_k tiles each varies as a fraction of K^2 / sum(1 / n_k) tiles: of all where classes are
    equally many, of fewer the rarer one is.

    Args:
        counts: tiles of each class that is present, K.
    """
    worth = len(counts) ** 2 / sum(1 / number for number in counts)
    low, high = fraction_interval(balanced_accuracy, worth)
    return float(low), float(high)


def better_than_chance(interval: Interval, chance: float, *, tiles: int) -> Outcome:
    """Return whether a balanced accuracy is above chance; no only where a gain of GAIN would have been seen.

    Args:
        interval: of the balanced accuracy. chance: 1 / classes. tiles: that it rests on.
    """
    if outcome_above(interval, chance, tiles=tiles) is Outcome.PASSED:
        return Outcome.PASSED
    return Outcome.FAILED if interval[1] < chance + GAIN and tiles >= FEWEST else Outcome.INCONCLUSIVE


def detectable(interval: Interval) -> float:
    """Return the difference that an interval of this width would exclude in POWER of samples: 2.8 standard errors."""
    return float((interval[1] - interval[0]) / 2 * (1.959964 + 0.841621) / 1.959964)


def too_few(tiles: int) -> str:
    """Return a clause on too few tiles, "" where there are enough."""
    return f"; {tiles} tiles are too few, {FEWEST} or more are needed" if tiles < FEWEST else ""


def verdict_of(outcome: Outcome, reason: str) -> str:
    """Return the outcome and its reason, as in "passed: the maps depend on the trained weights"."""
    return f"{outcome.value}: {reason}"
