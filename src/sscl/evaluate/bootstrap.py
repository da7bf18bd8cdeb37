"""Bootstrap intervals: tiles, or whole groups of tiles, drawn anew. Shape letters: N tiles, K classes, S resamples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sscl.evaluate.metrics import OF_A_CLASS, FloatArray, IntArray, checked, weighted_metrics
from sscl.records import Record

Interval = tuple[float, float]  # low and high end
Groups = Sequence[str] | npt.NDArray[np.str_]

GROUPS = "slides, patients or clusters of near-duplicates"  # what whole groups of tiles may be
_ENOUGH_GROUPS = 10  # cluster bootstraps are known to cover too little with less than a few tens
_CHUNK_ELEMENTS = 4_000_000  # resamples are worked through in chunks of about this many weights (32 MB)


class ClassIntervals(Record):
    """Intervals of the metrics of one class; None = no interval. `support` has none."""

    precision: Interval | None
    recall: Interval | None
    f1: Interval | None
    support: None = None


class Intervals(Record):
    """The 95% intervals of `metrics.Metrics`, by the same names; None = no interval."""

    accuracy: Interval | None
    balanced_accuracy: Interval | None
    macro_f1: Interval | None
    auroc: Interval | None
    average_precision: Interval | None
    mcc: Interval | None
    sensitivity: Interval | None = None
    specificity: Interval | None = None
    per_class: tuple[ClassIntervals, ...]


def bootstrap_intervals(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    positive: int | None,
    groups: Groups | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Intervals:
    """Return percentile bootstrap intervals of `metrics.classification_metrics`.

    Tiles are resampled with replacement within each true class, so the class counts stay as they are; with groups
    whole groups are, see `resamples`. A metric has no interval
    where it is undefined on the tiles themselves, or on more than 1 - level of the resamples. Without groups,
    tiles of one slide are treated as independent, so with several tiles a slide the intervals are too narrow; of
    one group alone there is nothing to draw, and no interval; and a class with no error (or with one tile) gets an
    interval of zero width: see `proportions.wilson_proportions`.

    Args:
        labels, probabilities, positive: as in `metrics.classification_metrics`.
        groups: slide, patient or cluster of near-duplicates of each tile, (N,), or None.
        samples: number of resamples, >= 1.
        seed: of the resampling; the same seed gives the same intervals.
        level: coverage, within 0..1 exclusive.

    Raises:
        ValueError: as `metrics.classification_metrics`; or samples or level out of range.

    Source: Efron & Tibshirani 1993, ch. 13 (percentile interval).
    """
    truth, scores = checked(labels, probabilities, positive=positive)
    if samples < 1:
        raise ValueError(f"samples: {samples}, must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level: {level}, must lie between 0 and 1 (0.95 is usual)")
    chunks = [
        weighted_metrics(truth, scores, weights, positive=positive)
        for weights in resamples(truth, groups=groups, samples=samples, seed=seed)
    ]
    point = weighted_metrics(truth, scores, np.ones((1, len(truth))), positive=positive)
    alone = groups is not None and len(set(groups)) == 1
    flat: dict[str, Interval | None] = {}
    for key in point:
        values = np.concatenate([chunk[key] for chunk in chunks])  # (S,)
        undefined = np.isnan(values)
        if alone or np.isnan(point[key][0]) or undefined.mean() > 1 - level:
            flat[key] = None
        else:
            low, high = np.quantile(values[~undefined], [(1 - level) / 2, (1 + level) / 2])
            flat[key] = (float(low), float(high))
    rows = [
        ClassIntervals.model_validate({key: flat.pop(f"{key} {label}") for key in OF_A_CLASS})
        for label in range(scores.shape[1])
    ]
    return Intervals.model_validate({**flat, "per_class": rows})


def resamples(labels: IntArray, *, groups: Groups | None = None, samples: int, seed: int) -> Iterator[FloatArray]:
    """Yield chunks (s, N) of how often each tile is in each of S bootstrap resamples.

    Tiles are drawn with replacement within each true class. Where they have groups (slides, patients) whole groups are
    drawn instead, because tiles of one are not independent; nothing is kept fixed by class then. The draws depend on
    labels, groups and seed alone: classifiers of the same tiles meet the same resamples, so their differences pair.

    Args:
        labels: true classes, (N,). groups: of each tile, (N,), or None.
        samples, seed: number of resamples, seed of the draws.

    Source: Efron & Tibshirani 1993, ch. 13; clusters: Davison & Hinkley 1997, sec. 3.8.
    """
    tiles = len(labels)
    chunk = max(1, _CHUNK_ELEMENTS // tiles)
    sizes = [min(chunk, samples - start) for start in range(0, samples, chunk)]
    if groups is not None:
        names, member = np.unique(groups, return_inverse=True)
        rng = np.random.default_rng(seed)
        for size in sizes:
            drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
            yield drawn[:, member].astype(np.float64)
        return
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    # A generator per class makes the draws independent of the chunk size.
    generators = [np.random.default_rng([seed, index]) for index in range(len(members))]
    for size in sizes:
        picked = [
            member[generator.integers(len(member), size=(size, len(member)))]
            for member, generator in zip(members, generators, strict=True)
        ]
        cells = np.concatenate(picked, axis=1) + tiles * np.arange(size)[:, None]
        yield np.bincount(cells.ravel(), minlength=size * tiles).reshape(size, tiles).astype(np.float64)


def few_groups(groups: Groups | None) -> str | None:
    """Return a sentence where intervals from resampled groups rest on too few of them; else None."""
    count = len(set(groups)) if groups is not None else _ENOUGH_GROUPS
    if count >= _ENOUGH_GROUPS:
        return None
    if count == 1:
        return f"there is only 1 group ({GROUPS}), so intervals over groups have no width or are missing"
    return f"there are only {count} groups ({GROUPS}), so intervals over groups are too narrow"
