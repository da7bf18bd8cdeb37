"""Proportions of tiles with Wilson's intervals."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sscl.data.mhist import ANNOTATORS
from sscl.evaluate.bootstrap import Interval
from sscl.evaluate.metrics import class_indices
from sscl.records import Record


class Proportion(Record):
    """`count` of `of` tiles, as a fraction, with Wilson's 95% interval."""

    count: int
    of: int
    value: float
    wilson: Interval


class DrawnProportion(Proportion):
    """A proportion with the bootstrap's 95% interval too; None where it is undefined on too many resamples."""

    interval: Interval | None


class ClassProportions(Record):
    """Precision and recall of one class; None of no tile."""

    precision: Proportion | None
    recall: Proportion | None


class Proportions(Record):
    """The metrics of `metrics.Metrics` that are fractions of tiles, by the same names; None of no tile."""

    accuracy: Proportion | None
    sensitivity: Proportion | None = None
    specificity: Proportion | None = None
    per_class: tuple[ClassProportions, ...]


class Agreement(Record):
    """Accuracy on the tiles on which as many annotators agree, such as "6/7"; Wilson's interval; None of no tile."""

    agreement: str
    count: int
    correct: int
    accuracy: float | None
    interval: Interval | None


def wilson_interval(successes: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (low, high) of a proportion.

    Raises:
        ValueError: not 0 <= successes <= total with total >= 1, or level outside 0..1.

    Source: Wilson 1927, JASA 22:209.
    """
    if not 0 <= successes <= total or total < 1:
        raise ValueError(f"successes of total: {successes} of {total}, must be 0 <= successes <= total and total >= 1")
    if not 0 < level < 1:
        raise ValueError(f"level: {level}, must lie between 0 and 1 (0.95 is usual)")
    from scipy.stats import binomtest  # takes half a second to import; training starts without it

    found = binomtest(successes, total).proportion_ci(confidence_level=level, method="wilson")
    return float(found.low), float(found.high)


def proportion(successes: int, total: int) -> Proportion | None:
    """Return a proportion with Wilson's 95% interval; None of nothing."""
    if not total:
        return None
    interval = wilson_interval(successes, total)
    return Proportion(count=successes, of=total, value=successes / total, wilson=interval)


def wilson_proportions(matrix: npt.ArrayLike, *, positive: int | None) -> Proportions:
    """Return every metric that is a fraction of tiles: accuracy, sensitivity, specificity, precision and recall.

    Unlike a bootstrap's, these intervals have a width where no tile is wrong.

    Args:
        matrix: counts (K, K), rows = truth, see `metrics.confusion_matrix`. positive: its index, or None.
    """
    counts = np.asarray(matrix)
    right, actual, called = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    sensitivity = specificity = None
    if positive is not None:
        negatives = int(counts.sum() - actual[positive])
        false_alarms = int(called[positive] - right[positive])
        sensitivity = proportion(int(right[positive]), int(actual[positive]))
        specificity = proportion(negatives - false_alarms, negatives)
    return Proportions(
        accuracy=proportion(int(right.sum()), int(counts.sum())),
        sensitivity=sensitivity,
        specificity=specificity,
        per_class=tuple(
            ClassProportions(precision=proportion(int(r), int(c)), recall=proportion(int(r), int(a)))
            for r, c, a in zip(right, called, actual, strict=True)
        ),
    )


def accuracy_by_agreement(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, votes: npt.ArrayLike
) -> tuple[Agreement, ...]:
    """Return accuracy by how many of the seven annotators agreed, from "7/7" down to "4/7".

    Args:
        labels, predictions: class indices, (N,).
        votes: annotators for the second class (SSA), 0..7, (N,).

    Raises:
        ValueError: the shapes differ, or a vote is no integer within 0..7.
    """
    truth, predicted = np.asarray(labels), np.asarray(predictions)
    vote = class_indices(votes, name="votes", num_classes=ANNOTATORS + 1)
    if not truth.shape == predicted.shape == vote.shape:
        raise ValueError(
            f"labels, predictions and votes: shapes {truth.shape}, {predicted.shape} and {vote.shape}, must be equal"
        )
    agreeing = np.maximum(vote, ANNOTATORS - vote)
    right = truth == predicted
    rows = []
    for agreement in range(ANNOTATORS, ANNOTATORS // 2, -1):
        found = proportion(int(right[agreeing == agreement].sum()), int((agreeing == agreement).sum()))
        rows.append(
            Agreement(
                agreement=f"{agreement}/{ANNOTATORS}",
                count=0 if found is None else found.of,
                correct=0 if found is None else found.count,
                accuracy=None if found is None else found.value,
                interval=None if found is None else found.wilson,
            )
        )
    return tuple(rows)
