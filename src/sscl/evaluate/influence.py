"""How much each tile moves each metric: the estimates that `intervals` takes. N tiles, K classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sscl.evaluate.decisions import BoolArray
from sscl.evaluate.intervals import Estimate, Sample
from sscl.evaluate.metrics import FloatArray, IntArray


def mean_of_tiles(values: FloatArray, sample: Sample, *, step: float = 0.0) -> Estimate:
    """Return the estimate of a mean over all tiles. values: (N,). step: how much one tile moves the mean at most."""
    value = float(values.mean())
    pooled = sample.pooled
    nothing, steps = np.zeros(1), np.array([step])
    return Estimate(value, (values - value) / len(values), value, nothing, steps, pooled)


def accuracy(predictions: IntArray, sample: Sample) -> Estimate:
    """Return the estimate of the accuracy. predictions: class indices, (N,)."""
    count = len(predictions)
    right = predictions == sample.labels
    found = mean_of_tiles(right.astype(np.float64), sample, step=1 / count)
    centre, extra = _smoothed(np.array([found.value]), np.array([count]))
    return dataclasses.replace(found, centre=centre, extra=extra, right=right)


def balanced_accuracy(predictions: IntArray, sample: Sample) -> Estimate:
    """Return the estimate of the mean recall over the classes that are present."""
    labels, actual = sample.labels, sample.counts
    right = (predictions == labels).astype(np.float64)
    recall = np.bincount(labels, right, minlength=sample.classes) / np.maximum(actual, 1)
    present = actual > 0
    weight = 1 / (present.sum() * np.maximum(actual, 1)) * present
    centre, extra = _smoothed(recall, actual, present)
    influence = (right - recall[labels]) * weight[labels]
    return Estimate(float(recall[present].mean()), influence, centre, extra, weight, sample)


def macro_f1(predictions: IntArray, sample: Sample) -> Estimate:
    """Return the estimate of the mean F1 over the classes that are present in truth or prediction."""
    labels, actual = sample.labels, sample.counts
    right = predictions == labels
    called = np.bincount(predictions, minlength=sample.classes)
    both, hits = actual + called, np.bincount(labels, right, minlength=sample.classes)
    defined = both > 0
    inverse = 1 / np.maximum(both, 1) / defined.sum()
    f1 = 2 * hits / np.maximum(both, 1)
    loss = f1 * inverse
    influence = 2 * right * inverse[labels] - loss[labels] - loss[predictions]
    centre, extra = _smoothed(f1, both - hits, defined)
    step = 2 * inverse * defined
    return Estimate(float(f1[defined].mean()), influence, centre, extra, step, sample, called=called.astype(np.float64))


LABEL_METRICS = (accuracy, balanced_accuracy, macro_f1)  # in the order of `metrics.OF_LABELS`


def mcc(predictions: IntArray, sample: Sample) -> Estimate | None:
    """Return the estimate of (1 + MCC) / 2, which is within 0..1; None where it is undefined."""
    labels, actual, total = sample.labels, sample.counts, len(predictions)
    right = predictions == labels
    called = np.bincount(predictions, minlength=sample.classes).astype(np.float64)
    covariance = right.sum() * total - (actual * called).sum()
    of_calls, of_truth = total**2 - (called**2).sum(), total**2 - (actual**2).sum()
    if not of_calls * of_truth:
        return None
    root = np.sqrt(of_calls * of_truth)
    value = covariance / root
    moved = right.sum() + total * right - called[labels] - actual[predictions]
    scale = (total - called[predictions]) / of_calls + (total - actual[labels]) / of_truth
    present = actual > 0
    worth = present.sum() ** 2 / (1 / actual[present]).sum()
    centre, extra = _smoothed(np.array([(1 + value) / 2]), np.array([worth]))
    weight = present / np.maximum(actual, 1)
    share = weight / weight.sum()
    return Estimate((1 + value) / 2, (moved / root - value * scale) / 2, centre, extra * share, share, sample)


def ranking(probabilities: FloatArray, sample: Sample, *, positive: int | None) -> tuple[Estimate, Estimate] | None:
    """Return the estimates of AUROC and average precision as `metrics` defines them; None where they are undefined.

    Args:
        probabilities: (N, K). positive: index of the positive class of two, or None = mean over the classes.
    """
    labels, actual = sample.labels, sample.counts
    total = len(labels)
    chosen = np.arange(sample.classes) if positive is None else np.array([positive])
    if (actual[chosen] == 0).any() or (actual[chosen] == total).any():
        return None
    influence = np.zeros((2, total))
    values = np.zeros((2, len(chosen)))
    for i, label in enumerate(chosen):
        values[:, i], moved = _of_ranks(labels == label, probabilities[:, label])
        influence += moved / len(chosen)
    own, others = actual[chosen], total - actual[chosen]
    worth = np.stack([2 * np.minimum(own, others), own])  # the rarer side may make up all of the variance
    # A class adds its variance by its own tiles and by the others, in the ratio of what one of each weighs.
    shares = np.stack([others / total, np.ones(len(chosen))])
    found = []
    for value, moved, tiles, share in zip(values, influence, worth, shares, strict=True):
        centre, each = _smoothed(value, tiles)
        extra = np.zeros(sample.classes)
        extra[chosen] += each * share
        rest = each * (1 - share) / others
        extra += np.where(actual > 0, actual * rest.sum(), 0)
        extra[chosen] -= own * rest
        found.append(Estimate(float(value.mean()), moved, centre, extra, np.zeros(sample.classes), sample))
    return found[0], found[1]


def _of_ranks(is_class: BoolArray, scores: FloatArray) -> tuple[tuple[float, float], FloatArray]:
    """Return AUROC and average precision of one class against the rest, and the influence of each tile, (2, N).

    Source: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hit = scores[order], is_class[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # tied scores are one threshold
    at = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(scores)]))
    positives = np.add.reduceat(hit, starts, dtype=np.float64)
    negatives = np.add.reduceat(~hit, starts, dtype=np.float64)
    above, above_negative = positives.cumsum(), negatives.cumsum()
    own, others = above[-1], above_negative[-1]
    below = (others - above_negative + negatives / 2) / others  # negatives below each positive
    won = (above - positives / 2) / own  # positives above each negative
    auroc = float((positives * below).sum() / own)
    moved = np.where(hit, (below[at] - auroc) / own, (won[at] - auroc) / others)
    precision = above / (above + above_negative)
    average = float((positives * precision).sum() / own)
    lower = (positives / (above + above_negative))[::-1].cumsum()[::-1]  # over this threshold and those below
    lost = (positives * precision / (above + above_negative))[::-1].cumsum()[::-1]
    ranked = (hit * (precision[at] - average + lower[at]) - lost[at]) / own
    found = np.empty((2, len(scores)))
    found[:, order] = moved, ranked
    return (auroc, average), found


def _smoothed(values: FloatArray, sizes: FloatArray, counted: BoolArray | None = None) -> tuple[float, FloatArray]:
    """Return the mean of fractions with a hit and a miss more in each, and what these add to each one's variance.

    Args:
        values: fractions of as many tiles as `sizes`, (P,). counted: which of them, (P,); None = all.
    """
    counted = np.ones(len(values), dtype=bool) if counted is None else counted
    sizes = np.maximum(sizes, 1)
    shrunk = (values * sizes + 1) / (sizes + 2)
    extra = (shrunk * (1 - shrunk) - values * (1 - values)) / sizes / counted.sum() ** 2
    return float(shrunk[counted].mean()), np.where(counted, np.maximum(extra, 0), 0.0)


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Return the estimate of the mean of one metric over several classifiers of the same tiles."""
    return _combined(estimates, [1 / len(estimates)] * len(estimates))


def difference(ours: Estimate, theirs: Estimate) -> Estimate:
    """Return the estimate of ours - theirs, on the same tiles."""
    return _combined([ours, theirs], [1, -1])


def _combined(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    first = estimates[0]
    if len(estimates) == 1:
        return first
    called = [one.called for one in estimates if one.called is not None]
    pairs = list(zip(weights, estimates, strict=True))
    return Estimate(
        value=sum(weight * one.value for weight, one in pairs),
        influence=np.sum([weight * one.influence for weight, one in pairs], axis=0),
        centre=sum(weight * one.centre for weight, one in pairs),
        extra=np.sum([abs(weight) * one.extra for weight, one in pairs], axis=0),
        step=np.max([one.step for one in estimates], axis=0),
        sample=first.sample,
        called=np.max(called, axis=0) if called else None,
    )
