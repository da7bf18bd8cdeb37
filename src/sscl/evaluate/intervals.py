"""Where a 95% interval comes from: one method for all metrics, for single tiles and for whole slides.

A metric is worth as many independent tiles as would give a fraction of its size the same variance; its interval is that
of such a fraction. Slides enter as a design effect on the variance, few slides as Student's t. Shape letters: N tiles,
K classes, G groups, M metrics or shares, E entries, C cells.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sscl.evaluate.decisions import BoolArray
from sscl.evaluate.metrics import FloatArray, IntArray

Interval = tuple[float, float]  # low and high end
Groups = Sequence[str] | npt.NDArray[np.str_]

GROUPS = "slides, patients or clusters of near-duplicates"  # what whole groups of tiles may be
FEWEST = 5  # groups, or tiles of the class that decides; of fewer there is no interval
ENOUGH_GROUPS = 30  # of fewer intervals hold too, but are wide
_END = 0.975
_SHIFT = 0.2  # 0: Clopper and Pearson's interval; 1/2: Jeffreys's
_PRIOR_CORRELATION = 0.5  # of two tiles of a group, where too few groups hold errors to tell
_FEW_SHARING = 3.0  # groups that make up the variance, at which prior and estimate weigh the same


def group_count(groups: Groups | None) -> int | None:
    """Return how many groups tiles are of; None where none are known, or each tile has one of its own."""
    found = 0 if groups is None else len(set(groups))
    return None if groups is None or found == len(groups) else found


@dataclass(frozen=True, eq=False)
class Sample:
    """Tiles that were evaluated.

    Attributes:
        labels: true classes, (N,). classes: K. groups: number of each tile's group, (N,); None = independent tiles.
    """

    labels: IntArray
    classes: int
    groups: IntArray | None

    @classmethod
    def of(cls, labels: IntArray, *, classes: int, groups: Groups | None) -> Sample:
        """Return the sample of tiles whose groups have names."""
        if group_count(groups) is None:
            return cls(labels, classes, None)
        return cls(labels, classes, np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64))

    @cached_property
    def pooled(self) -> Sample:
        """The same tiles without their classes."""
        return Sample(np.zeros_like(self.labels), 1, self.groups)

    @cached_property
    def counts(self) -> FloatArray:
        """Tiles of each class, (K,)."""
        return np.bincount(self.labels, minlength=self.classes).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A metric as the sum of what each tile adds to it, from which its variance follows.

    Attributes:
        value: of the metric. influence: how much one more tile like each would move it, (N,), sums to 0.
        centre: the value with a hit and a miss more in each class. extra: what these add to the variance, (K,): a class
            without any error shows none. step: how much one tile of each class moves the metric at most, (K,).
        sample: the tiles; its classes are those of `extra` and `step`.
        right: where the metric is the share of tiles that are right: which are, (N,). Its interval is that of a share.
        called: tiles called of each class, (K,), where a class without tiles counts as well.
    """

    value: float
    influence: FloatArray
    centre: float
    extra: FloatArray
    step: FloatArray
    sample: Sample
    right: BoolArray | None = None
    called: FloatArray | None = None


def fraction_interval(value: npt.ArrayLike, worth: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the 95% intervals of fractions of so many independent tiles, which need not be whole numbers.

    Quantiles of beta distributions between those of Clopper and Pearson (never below 95%, wider than needed) and those
    of Jeffreys (95% on average, 88% for some fractions near 0 and 1): for 5 tiles or more at least 92.8% whatever the
    truth, and as wide as Wilson's (83% for some).

    Source: Brown, Cai & DasGupta 2001, Statistical Science 16:101; effective tiles: Korn & Graubard 1998, Survey
    Methodology 24:193.
    """
    from scipy.special import betaincinv  # takes half a second to import; training starts without it

    p, n = np.broadcast_arrays(np.asarray(value, dtype=np.float64), np.asarray(worth, dtype=np.float64))
    hits, misses = np.maximum(p * n, 0), np.maximum((1 - p) * n, 0)
    low = np.where(hits > 1e-9, betaincinv(hits + _SHIFT, misses + 1 - _SHIFT, 1 - _END), 0.0)
    high = np.where(misses > 1e-9, betaincinv(hits + 1 - _SHIFT, misses + _SHIFT, _END), 1.0)
    return np.minimum(low, p), np.maximum(high, p)


def student(freedom: npt.ArrayLike) -> FloatArray:
    """Return the 97.5% quantile of Student's t."""
    from scipy.special import stdtrit

    found: FloatArray = np.asarray(stdtrit(np.maximum(freedom, 1e-3), _END))
    return found


def share_intervals(
    hits: BoolArray, of: IntArray, groups: IntArray | None, *, shares: int
) -> tuple[FloatArray, FloatArray]:
    """Return the 95% intervals of shares, (M,) each; NaN where nothing is counted, or in fewer than FEWEST groups.

    Args:
        hits: of each tile that is counted, (E,); one that is counted in several shares is listed as often.
        of: the share that each is counted in, (E,). groups: of each, (E,); None = independent tiles. shares: M.
    """
    total, right = np.bincount(of, minlength=shares), _totals(of, hits, shares)
    enough, worth = total > 0, np.maximum(total, 1.0)
    value = right / worth
    if groups is not None:
        share, cell = _cells(of, groups)
        counted, hit = np.bincount(cell), _totals(cell, hits)
        p = value[share]
        squares = hit * (1 - p) ** 2 + (counted - hit) * p**2
        effect, freedom = _design(hit - p * counted, squares, counted, share, shares)
        enough = np.bincount(share, minlength=shares) >= FEWEST
        worth = worth / effect / (student(freedom) / student(np.inf)) ** 2
    low, high = fraction_interval(value, worth)
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def _cells(of: IntArray, groups: IntArray) -> tuple[IntArray, IntArray]:
    """Return the cells of a table of columns by groups that hold something: column of each, and cell of each entry.

    Args:
        of, groups: column and group of each entry, (E,).
    """
    rows = int(groups.max(initial=0)) + 1
    found, cell = np.unique(of * rows + groups, return_inverse=True)
    return found // rows, cell


def _design(
    sums: FloatArray, squares: FloatArray, sizes: IntArray, of: IntArray, columns: int
) -> tuple[FloatArray, FloatArray]:
    """Return how many times the variance of independent tiles groups have, >= 1, and degrees of freedom, (M,) each.

    The variance of groups is that of the jackknife: groups of equal size count by G / (G - 1), a large one by more.

    Where the squares come from one or two groups, or from none as where no tile is wrong, they cannot tell whether
    tiles of a group are alike: there _PRIOR_CORRELATION is taken, if that gives more.

    Args:
        sums, squares: of the tiles' deviations, by cell, (C,). sizes: tiles of each cell, (C,), >= 1.
        of: column of each cell, (C,). columns: M.

    Source: jackknife over groups of unequal size: Bell & McCaffrey 2002, Survey Methodology 28:169.
    """

    def total(values: npt.ArrayLike) -> FloatArray:
        return _totals(of, values, columns)

    tiles = np.maximum(total(sizes), 1)
    independent, per_group = total(squares), total(sizes.astype(np.float64) ** 2) / tiles
    groups = np.maximum(total(np.ones(len(of))), 1)
    without = sums / np.maximum(1 - sizes / tiles[of], 1e-9)  # how far the mean moves where a group is left out
    found = np.maximum((groups - 1) / groups * _over(total(without**2), independent), 1.0)
    sharing = _over(independent**2, total(squares**2))  # groups that make up the variance
    prior = np.maximum(found, 1 + (per_group - 1) * _PRIOR_CORRELATION)
    weight = 1 / (1 + (sharing / _FEW_SHARING) ** 4)
    return (1 - weight) * found + weight * prior, tiles / np.maximum(per_group, 1e-12) - 1


def _totals(of: IntArray, values: npt.ArrayLike, columns: int = 0) -> FloatArray:
    """Return the sum of the values of each column, (columns,) or as many as there are. of: column of each, (E,)."""
    return np.bincount(of, values, minlength=columns).astype(np.float64)


def _over(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator > 0)


def spread(estimate: Estimate, *, floor: FloatArray) -> tuple[float, float]:
    """Return the variance of an estimate and its degrees of freedom.

    Classes are added as independent samples, each with its own design effect; then what groups that hold several
    classes have in common.

    Args:
        floor: is added to the variance of each class, (K,).

    Source: clusters: Obuchowski 1997, Biometrics 53:567; degrees of freedom: Satterthwaite 1946, Biometrics Bulletin
    2:110.
    """
    sample, influence = estimate.sample, estimate.influence
    present = sample.counts
    squares = _totals(sample.labels, influence**2, sample.classes)
    variance, freedom = squares * present / np.maximum(present - 1, 1) + floor, present - 1
    shared, limit = 0.0, np.inf
    if sample.groups is not None:
        label, cell = _cells(sample.labels, sample.groups)
        sums, sizes = _totals(cell, influence), np.bincount(sample.groups).astype(np.float64)
        effect, freedom = _design(sums, _totals(cell, influence**2), np.bincount(cell), label, sample.classes)
        variance = variance * np.where(present > 0, effect, effect.max())
        shared = float((_totals(sample.groups, influence) ** 2).sum() - (sums**2).sum())
        limit = float(sizes.sum() ** 2 / (sizes**2).sum() - 1)  # classes share their slides
    if estimate.called is not None:
        freedom = np.where(present > 0, freedom, estimate.called - 1)
    total, known = float(variance.sum()), variance > 0
    if not total:
        return 0.0, limit
    degrees = total**2 / float((variance[known] ** 2 / np.maximum(freedom[known], 0.5)).sum())
    return max(total + shared, total / 4), min(degrees, limit)


def metric_interval(estimate: Estimate, *, draws: tuple[float, float] | None = None) -> Interval | None:
    """Return the 95% interval of a metric within 0..1; None: too few groups, or tiles of a class.

    Args:
        draws: variance from other sources than the tiles, such as the labels that were drawn, and its degrees of
            freedom.
    """
    if estimate.right is not None and draws is None:
        pooled = estimate.sample.pooled
        low, high = share_intervals(estimate.right, pooled.labels, pooled.groups, shares=1)
        return None if np.isnan(low[0]) else (float(low[0]), float(high[0]))
    variance, freedom = spread(estimate, floor=estimate.extra)
    if freedom < FEWEST - 1:
        return None
    variance, freedom = _with(variance, freedom, draws)
    if not variance:  # all scores are equal: their AUROC is 1/2 on any tiles
        return estimate.value, estimate.value
    centre = min(max(estimate.centre, 1e-6), 1 - 1e-6)
    worth = centre * (1 - centre) / variance / float(student(freedom) / student(np.inf)) ** 2
    low_end, high_end = fraction_interval(estimate.value, worth)
    return float(low_end), float(high_end)


def wald_interval(
    estimate: Estimate, *, draws: tuple[float, float] | None = None, bounds: Interval = (-np.inf, np.inf)
) -> Interval | None:
    """Return the 95% interval of a mean or a difference, by Student's t; None: as `metric_interval`.

    One tile more on either side is added to what is seen in each class, as by Agresti & Min.

    Source: Agresti & Min 2005, Statistics in Medicine 24:729.
    """
    variance, freedom = spread(estimate, floor=estimate.step**2)
    if freedom < FEWEST - 1:
        return None
    variance, freedom = _with(variance, freedom, draws)
    half = float(student(freedom)) * variance**0.5
    return max(estimate.value - half, bounds[0]), min(estimate.value + half, bounds[1])


def _with(variance: float, freedom: float, draws: tuple[float, float] | None) -> tuple[float, float]:
    """Return variance and degrees of freedom with those of the draws.

    The squares of both half widths are added: pooled degrees of freedom (Satterthwaite's) hold in 89% with two draws.
    """
    if draws is None or not draws[0]:
        return variance, freedom
    own, others = (float(student(of) / student(np.inf)) ** 2 for of in (freedom, draws[1]))
    return variance * own + draws[0] * others, np.inf


def draw_variance(values: Sequence[float], seeds: Sequence[tuple[Hashable, ...]]) -> tuple[float, float] | None:
    """Return the variance of the mean over runs that comes from their seeds, and its degrees of freedom.

    Seeds and label seeds each add the variance of the means over their levels; None of a single run.

    Args:
        values: of each run. seeds: its seed and label seed, or whatever else it depends on.
    """
    parts = []
    for levels in zip(*seeds, strict=True):
        means = [np.mean([v for v, own in zip(values, levels, strict=True) if own == level]) for level in set(levels)]
        if len(means) > 1:
            parts.append((float(np.var(means, ddof=1)) / len(means), len(means) - 1))
    total = sum(variance for variance, _ in parts)
    if not total:
        return None
    return total, total**2 / sum(variance**2 / freedom for variance, freedom in parts)


def ends_text(interval: Interval, form: str = ".3f") -> str:
    """Return an interval as text, as in "0.702 to 0.760"; form: of its numbers."""
    return f"{interval[0]:{form}} to {interval[1]:{form}}"


def with_interval(value: float, interval: Interval | None, form: str = ".3f") -> str:
    """Return a value and its interval as text, as in "0.731 (0.702 to 0.760)"."""
    text = f"{value:{form}}"
    return text if interval is None else f"{text} ({ends_text(interval, form)})"


def few_groups(count: int | None) -> str | None:
    """Return a sentence where intervals rest on few groups, of which there are `count`; else None."""
    if count is None or count >= ENOUGH_GROUPS:
        return None
    if count < FEWEST:
        return f"too few slides for intervals: {count} (or patients, clusters), {FEWEST} are needed"
    return f"intervals over {count} slides (or patients, clusters): fewer than {ENOUGH_GROUPS} make them wide"
