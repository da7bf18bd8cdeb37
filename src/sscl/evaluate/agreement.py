"""How far two readers of the same tiles agree: the share of equal answers, and Cohen's kappa. N tiles, K classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sscl.evaluate.intervals import FEWEST, Estimate, Groups, Interval, Sample, share_intervals, spread, student
from sscl.evaluate.metrics import FloatArray, IntArray
from sscl.words import count

FEWEST_TILES = 20  # that both have answered, for a kappa; with K answers 2 K^2
_PSEUDO_TILES = 2  # spread over all pairs of answers: where all answers are equal, the variance would be zero


@dataclass(frozen=True)
class Agreement:
    """How far two readers agree.

    Attributes:
        tiles: that both have answered. same: of these, with the same answer.
        share: same / tiles, None of no tile. share_interval, kappa_interval: 95%, None = too few tiles or slides.
        kappa: None where `why_no_kappa` says why there is none.
    """

    tiles: int
    same: int
    share: float | None = None
    share_interval: Interval | None = None
    kappa: float | None = None
    kappa_interval: Interval | None = None
    why_no_kappa: str = ""


def agreement(first: IntArray, second: IntArray, *, groups: Groups | None = None) -> Agreement:
    """Return how far the answers to the same tiles agree.

    Args:
        first, second: class indices, (N,). groups: slide or patient of each tile, (N,); None = independent tiles.
    """
    tiles, same = len(first), int((first == second).sum())
    if not tiles:
        return Agreement(0, 0, why_no_kappa="no tile has both answers")
    answers, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
    a, b = numbers.reshape(2, tiles).astype(np.int64)
    sample = Sample.of(np.zeros(tiles, dtype=np.int64), classes=1, groups=groups)
    low, high = share_intervals(a == b, sample.labels, sample.groups, shares=1)
    share_interval = None if np.isnan(low[0]) else (float(low[0]), float(high[0]))
    needed = max(FEWEST_TILES, 2 * len(answers) ** 2)
    found = None
    why = f"too few tiles: {count(tiles, 'tile')}, {needed} are needed"
    if tiles >= needed:
        found, why = kappa(a, b, sample), "all answers of both are the same class"
    if found is None:
        return Agreement(tiles, same, same / tiles, share_interval, why_no_kappa=why)
    value, interval = found
    return Agreement(tiles, same, same / tiles, share_interval, value, interval)


def kappa(first: IntArray, second: IntArray, sample: Sample) -> tuple[float, Interval | None] | None:
    """Return Cohen's kappa and its 95% interval; None where both give one and the same answer only.

    The interval is that of large samples with _PSEUDO_TILES more, a design effect where slides are known, and
    Student's t: 92% or more of 20 tiles or more, where that without these covers 15% to 96% (docs/intervals.md).

    Args:
        first, second: class indices, (N,). sample: the tiles, as of one class.

    Source: Cohen 1960, Educational and Psychological Measurement 20:37; variance: Fleiss, Cohen & Everitt 1969,
    Psychological Bulletin 72:323; number of tiles, 2 K^2: Cicchetti 1981, Educational and Psychological Measurement
    41:101.
    """
    total, classes = len(first), int(max(first.max(), second.max())) + 1
    table = np.bincount(first * classes + second, minlength=classes**2).reshape(classes, classes).astype(np.float64)
    seen = _of_table(table)
    if seen is None:
        return None
    value, moved = seen
    smooth = _of_table(table + _PSEUDO_TILES / classes**2)
    assert smooth is not None  # each pair of answers occurs
    centre, moved_smoothly = smooth
    more = ((table + _PSEUDO_TILES / classes**2) * moved_smoothly**2).sum() / (total + _PSEUDO_TILES) ** 2
    floor = max(0.0, float(more - (table * moved**2).sum() / total**2))
    none = np.zeros(1)
    estimate = Estimate(value, moved[first, second] / total, centre, none, none, sample)
    variance, freedom = spread(estimate, floor=np.array([floor]))
    if freedom < FEWEST - 1:
        return value, None
    half = float(student(freedom)) * variance**0.5
    return value, (max(min(centre - half, value), -1.0), min(max(centre + half, value), 1.0))


def _of_table(table: FloatArray) -> tuple[float, FloatArray] | None:
    """Return kappa of counts of pairs of answers, (K, K), and how much a tile of each pair moves it, N times.

    Kappa is 1 - (1 - p) / (1 - e): p is the share of equal answers, e what it would be if both were independent.
    """
    shares = table / table.sum()
    rows, columns = shares.sum(1), shares.sum(0)
    same, by_chance = float(np.trace(shares)), float(rows @ columns)
    if by_chance >= 1 - 1e-12:
        return None
    value = 1 - (1 - same) / (1 - by_chance)
    expected = columns[:, None] + rows[None, :] - 2 * by_chance
    return value, ((np.eye(len(table)) - same) - (1 - value) * expected) / (1 - by_chance)
