"""The 95% intervals of `metrics.Metrics`, by the same names. N tiles, K classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sscl.evaluate import influence
from sscl.evaluate.decisions import BoolArray
from sscl.evaluate.intervals import (
    GROUPS,
    Estimate,
    Groups,
    Interval,
    Sample,
    group_count,
    metric_interval,
    share_intervals,
)
from sscl.evaluate.metrics import IntArray, checked
from sscl.records import Record
from sscl.words import count


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


def metric_intervals(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, positive: int | None, groups: Groups | None = None
) -> Intervals:
    """Return the 95% intervals of `metrics.classification_metrics`.

    None where a metric is undefined, or rests on fewer than FEWEST groups or tiles of the class that decides. F1 is
    2J / (1 + J) of the share J of right ones among all tiles that are or are called of the class.

    Args:
        labels, probabilities, positive: as in `metrics.classification_metrics`.
        groups: slide, patient or cluster of near-duplicates of each tile, (N,); None = independent tiles.

    Raises:
        ValueError: as `metrics.classification_metrics`.
    """
    truth, scores = checked(labels, probabilities, positive=positive)
    classes = scores.shape[1]
    sample, predictions = Sample.of(truth, classes=classes, groups=groups), scores.argmax(1).astype(np.int64)
    tiles, hits, of = _shares(truth, predictions, classes=classes, positive=positive)
    in_groups = None if sample.groups is None else sample.groups[tiles]
    low, high = share_intervals(hits, of, in_groups, shares=3 * classes + 1)
    ends = [None if np.isnan(a) else (a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    precision, recall, shared = (ends[i * classes :][:classes] for i in range(3))
    ranks = influence.ranking(scores, sample, positive=positive if classes == 2 else None)
    auroc, average_precision = (None, None) if ranks is None else map(metric_interval, ranks)
    accuracy, balanced, macro_f1 = (metric_interval(one(predictions, sample)) for one in influence.LABEL_METRICS)
    return Intervals(
        accuracy=accuracy,
        balanced_accuracy=balanced,
        macro_f1=macro_f1,
        auroc=auroc,
        average_precision=average_precision,
        mcc=_mcc_interval(influence.mcc(predictions, sample)),
        sensitivity=None if positive is None else recall[positive],
        specificity=None if positive is None else ends[-1],
        per_class=tuple(
            ClassIntervals(precision=p, recall=r, f1=None if j is None else (_f1(j[0]), _f1(j[1])))
            for p, r, j in zip(precision, recall, shared, strict=True)
        ),
    )


def _shares(
    truth: IntArray, predictions: IntArray, *, classes: int, positive: int | None
) -> tuple[IntArray, BoolArray, IntArray]:
    """Return each tile that a share counts, whether it is a hit there, and the number of the share, (E,) each.

    Shares 0 to K - 1 are the precisions, then come the recalls, the J of `metric_intervals`, and the specificity.
    """
    right, everything = predictions == truth, np.arange(len(truth))
    wrong = np.flatnonzero(~right)
    counted = [
        (everything, right, predictions),
        (everything, right, classes + truth),
        (everything, right, 2 * classes + truth),
        (wrong, right[wrong], 2 * classes + predictions[wrong]),
    ]
    if positive is not None:
        negatives = np.flatnonzero(truth != positive)
        counted.append((negatives, predictions[negatives] != positive, np.full_like(negatives, 3 * classes)))
    tiles, hits, of = (np.concatenate(parts) for parts in zip(*counted, strict=True))
    return tiles, hits, of


def _f1(shared: float) -> float:
    return 2 * shared / (1 + shared)


def _mcc_interval(estimate: Estimate | None) -> Interval | None:
    found = None if estimate is None else metric_interval(estimate)
    return None if found is None else (2 * found[0] - 1, 2 * found[1] - 1)


def interval_method(groups: Groups | None) -> str:
    """Return in words how intervals are made."""
    if groups is None:
        return "95% intervals, tiles taken as independent"
    number = group_count(groups)
    if number is None:
        return f"95% intervals, each tile of a group of its own ({GROUPS})"
    return f"95% intervals over {count(number, 'group')} ({GROUPS})"
