"""Proportions of tiles with their 95% intervals. N tiles, K classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sscl.data.mhist import ANNOTATORS
from sscl.evaluate.decisions import BoolArray
from sscl.evaluate.intervals import Interval, Sample, fraction_interval, share_intervals
from sscl.evaluate.metric_intervals import Intervals
from sscl.evaluate.metrics import class_indices
from sscl.records import Record


class Proportion(Record):
    """`count` of `of` tiles, as a fraction, with its 95% interval; None where it rests on too few groups."""

    count: int
    of: int
    value: float
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
    """Accuracy on the tiles on which as many annotators agree, such as "6/7"; None of no tile."""

    agreement: str
    accuracy: Proportion | None


def proportion_interval(successes: int, total: int) -> Interval:
    """Return the 95% interval of a proportion of independent tiles, see `intervals.fraction_interval`.

    Raises:
        ValueError: not 0 <= successes <= total with total >= 1.
    """
    if not 0 <= successes <= total or total < 1:
        raise ValueError(f"successes of total: {successes} of {total}, must be 0 <= successes <= total and total >= 1")
    low, high = fraction_interval(successes / total, total)
    return float(low), float(high)


def proportions_among(masks: Mapping[str, tuple[BoolArray, BoolArray]], sample: Sample) -> dict[str, Proportion | None]:
    """Return each proportion (tiles that count, tiles counted among), bool (N,) each; None of no tile."""
    among = [np.flatnonzero(counted) for _, counted in masks.values()]
    hits = [hit[tiles] for (hit, _), tiles in zip(masks.values(), among, strict=True)]
    tiles, of = np.concatenate(among), np.repeat(np.arange(len(masks)), [len(rows) for rows in among])
    groups = None if sample.groups is None else sample.groups[tiles]
    low, high = share_intervals(np.concatenate(hits), of, groups, shares=len(masks))
    found: dict[str, Proportion | None] = {}
    for name, hit, ends in zip(masks, hits, zip(low.tolist(), high.tolist(), strict=True), strict=True):
        found[name] = _proportion(int(hit.sum()), len(hit), None if np.isnan(ends[0]) else ends)
    return found


def _proportion(hits: int, of: int, interval: Interval | None) -> Proportion | None:
    return Proportion(count=hits, of=of, value=hits / of, interval=interval) if of else None


def metric_proportions(matrix: npt.ArrayLike, intervals: Intervals, *, positive: int | None) -> Proportions:
    """Return every metric that is a fraction of tiles: accuracy, sensitivity, specificity, precision and recall.

    Args:
        matrix: counts (K, K), rows = truth, see `metrics.confusion_matrix`. intervals: of the same metrics.
        positive: index of the positive class, or None.
    """
    counts = np.asarray(matrix)
    right, actual, called = (of.tolist() for of in (np.diag(counts), counts.sum(1), counts.sum(0)))
    total, sensitivity, specificity = int(counts.sum()), None, None
    if positive is not None:
        negatives = total - actual[positive]
        false_alarms = called[positive] - right[positive]
        sensitivity = _proportion(right[positive], actual[positive], intervals.sensitivity)
        specificity = _proportion(negatives - false_alarms, negatives, intervals.specificity)
    return Proportions(
        accuracy=_proportion(sum(right), total, intervals.accuracy),
        sensitivity=sensitivity,
        specificity=specificity,
        per_class=tuple(
            ClassProportions(precision=_proportion(r, c, of.precision), recall=_proportion(r, a, of.recall))
            for r, c, a, of in zip(right, called, actual, intervals.per_class, strict=True)
        ),
    )


def accuracy_by_agreement(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, votes: npt.ArrayLike, *, sample: Sample | None = None
) -> tuple[Agreement, ...]:
    """Return accuracy by how many of the seven annotators agreed, from "7/7" down to "4/7".

    Args:
        labels, predictions: class indices, (N,).
        votes: annotators for the second class (SSA), 0..7, (N,).
        sample: the same tiles with their groups; None = independent tiles.

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
    names = {f"{of}/{ANNOTATORS}": agreeing == of for of in range(ANNOTATORS, ANNOTATORS // 2, -1)}
    sample = Sample.of(truth, classes=int(truth.max(initial=0)) + 1, groups=None) if sample is None else sample
    found = proportions_among({name: (right, among) for name, among in names.items()}, sample)
    return tuple(Agreement(agreement=name, accuracy=one) for name, one in found.items())
