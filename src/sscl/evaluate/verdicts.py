"""What can be said of a question from so many tiles: passed, failed, or inconclusive. The rule, in one place.

N tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from sscl.evaluate.influence import mean_of_tiles
from sscl.evaluate.intervals import Groups, Interval, Sample, ends_text, group_count, spread, student
from sscl.words import count

# Of fewer tiles nothing is said: even if all of them agree, a sign test of five has p = 2 x 0.5^5 = 0.06.
FEWEST = 6
POWER = 0.8  # in which fraction of samples a difference that matters must show, for its absence to say something
DIFFERENCE = 0.05  # of two classifiers, in any metric: less does not matter
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
        interval: of the quantity. tiles: or groups of them, that it rests on; of fewer than FEWEST nothing is said.
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


@dataclass(frozen=True)
class Mean:
    """A mean over tiles, as a check judges it.

    Attributes:
        value, interval: the mean and its 95% interval; infinite where there is but one tile, or one group.
        tiles: N. groups: of which they are, where they depend on each other.
        half: half the width of the interval before it is cut at the bounds.
    """

    value: float
    interval: Interval
    tiles: int
    groups: int | None
    half: float

    @classmethod
    def of(
        cls, values: npt.ArrayLike, *, groups: Groups | None = None, span: float = 1.0, bounds: Interval = (0, 1)
    ) -> Mean:
        """Return the mean of values, (N,), with its interval by Student's t.

        Few values may be all alike by chance, and seem sure. So the variance is added that one tile (or group) more
        would show that is away from the others by `span`: without it a mean at the bound passes in up to 56% of samples
        of 6 tiles (docs/intervals.md).

        Args:
            groups: of each tile, (N,). bounds: that the mean has.
        """
        x = np.asarray(values, dtype=np.float64)
        number, mean = group_count(groups), float(x.mean())
        units = len(x) if number is None else number
        if units < 2:
            return cls(mean, (-np.inf, np.inf), len(x), number, np.inf)
        sample = Sample.of(np.zeros(len(x), dtype=np.int64), classes=1, groups=groups)
        variance, freedom = spread(mean_of_tiles(x, sample), floor=np.zeros(1))
        half = float(student(min(freedom, units - 1))) * (variance + (span / units) ** 2) ** 0.5
        return cls(mean, (max(mean - half, bounds[0]), min(mean + half, bounds[1])), len(x), number, half)

    @property
    def ends(self) -> Interval | None:
        """The interval; None where there is none."""
        return self.interval if np.isfinite(self.interval).all() else None

    @property
    def units(self) -> int:
        """What it rests on: groups, or tiles where these are independent."""
        return self.tiles if self.groups is None else self.groups

    def above(self, bound: float) -> Outcome:
        """Return whether it is above a bound, see `outcome_above`."""
        return outcome_above(self.interval, bound, tiles=self.units)

    def below(self, bound: float) -> Outcome:
        """Return whether it is below a bound, see `outcome_above`."""
        return outcome_below(self.interval, bound, tiles=self.units)

    @property
    def measured(self) -> str:
        """Mean, interval and what it rests on, as in "0.71, 0.66 to 0.76 over 32 tiles of 8 slides or patients"."""
        of = "" if self.groups is None else f" of {count(self.groups, 'slide or patient', 'slides or patients')}"
        return f"{self.value:.2f}, {interval_text(self.interval)} over {count(self.tiles, 'tile')}{of}"

    @property
    def detects(self) -> str:
        """A clause on how far from the bound a mean would show, or that there are too few tiles or slides."""
        if self.units < FEWEST:
            return too_few(self.units, grouped=self.groups is not None)
        return f"; one {detectable((-self.half, self.half)):.2f} away shows in {100 * POWER:.0f}% of such samples"


def interval_text(interval: Interval) -> str:
    """Return a 95% interval as a verdict shows it."""
    return ends_text(interval, ".2f") if np.isfinite(interval).all() else "no interval"


def better_than_chance(interval: Interval, chance: float, *, tiles: int) -> Outcome:
    """Return whether a balanced accuracy is above chance; no only where a gain of GAIN would have been seen.

    Args:
        interval: of the balanced accuracy. chance: 1 / classes. tiles: that it rests on.
    """
    if outcome_above(interval, chance, tiles=tiles) is Outcome.PASSED:
        return Outcome.PASSED
    return Outcome.FAILED if interval[1] < chance + GAIN and tiles >= FEWEST else Outcome.INCONCLUSIVE


def calibrated(error: float, *, bound: float, power: float) -> Outcome:
    """Return whether a calibration error is one of true probabilities.

    Args:
        error: found. bound: that true probabilities stay below in 95% of such samples. power: fraction of such samples
            in which an error that matters exceeds the bound.
    """
    return Outcome.FAILED if error > bound else Outcome.PASSED if power >= POWER else Outcome.INCONCLUSIVE


def detectable(interval: Interval) -> float:
    """Return the difference that an interval of this width would exclude in POWER of samples: 2.8 standard errors."""
    return float((interval[1] - interval[0]) / 2 * (1.959964 + 0.841621) / 1.959964)


def gain_shown(interval: Interval) -> str:
    """Return a clause on the gain over chance that an interval of this width would show."""
    return f"in {100 * POWER:.0f}% of such samples a gain of {detectable(interval):.2f} would show"


def too_few(units: int, *, grouped: bool = False) -> str:
    """Return a clause on too few tiles, or groups, "" where there are enough."""
    if units >= FEWEST:
        return ""
    of = count(units, "slide or patient", "slides or patients") if grouped else count(units, "tile")
    return f"; {of} {'is' if units == 1 else 'are'} too few, {FEWEST} or more are needed"


def verdict_of(outcome: Outcome, reason: str) -> str:
    """Return the outcome and its reason, as in "passed: the maps depend on the trained weights"."""
    return f"{outcome.value}: {reason}"
