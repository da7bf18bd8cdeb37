"""Decisions from probabilities: a threshold, net benefit, abstention.

Thresholds are meant to be chosen on validation tiles and applied to others. N tiles, T thresholds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sscl.evaluate.metrics import FloatArray
from sscl.records import Record

BoolArray = npt.NDArray[np.bool_]


class RiskCoverage(Record):
    """Accuracy on the most confident tiles, and the area under the risk (error rate) over all coverages.

    Attributes:
        confidence: the distinct values, highest first. count, correct: tiles of at least that confidence.
        area: mean over n = 1 .. N of the error among the n most confident (0 at best; ties in their mean order).
        area_random: of a random order, the error rate. area_best: of an order with all errors last.
    """

    confidence: tuple[float, ...]
    count: tuple[int, ...]
    correct: tuple[int, ...]
    area: float
    area_random: float
    area_best: float


def choose_threshold(truth: npt.ArrayLike, scores: npt.ArrayLike, *, sensitivity: float | None = None) -> float:
    """Return the threshold at and above which a tile is called positive, chosen on these (validation) tiles.

    Youden's index: the largest sensitivity + specificity - 1, of equal ones the nearest to 0.5. With `sensitivity`: the
    highest threshold that reaches it. Thresholds lie half-way between neighbouring scores.

    Args:
        truth: bool, (N,), is the tile of the positive class. scores: its probability, (N,).
        sensitivity: above 0, to 1; None = Youden's index.

    Raises:
        ValueError: all tiles are of one class, sensitivity is out of range, or as `truth_and_scores`.

    Source: Youden 1950, Cancer 3:32.
    """
    is_positive, p = truth_and_scores(truth, scores)
    positives = int(is_positive.sum())
    if not 0 < positives < len(p):
        raise ValueError(f"truth: {positives} of {len(p)} tiles are positive, a threshold needs some of both classes")
    if sensitivity is not None and not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity: got {sensitivity}, must be above 0 and at most 1")
    distinct, where = np.unique(p, return_inverse=True)
    hits = np.bincount(where, is_positive)[::-1].cumsum()  # true positives with a threshold just below each score
    called = np.bincount(where)[::-1].cumsum()
    descending = distinct[::-1]
    below = np.append(descending[1:], 0.0)
    halfway = (descending + below) / 2
    thresholds = np.where(halfway > below, halfway, descending)  # neighbouring floats have none between them
    if sensitivity is not None:
        return float(thresholds[np.argmax(hits >= sensitivity * positives - 1e-9)])
    index = hits / positives - (called - hits) / (len(p) - positives)
    best = np.flatnonzero(index >= index.max() - 1e-12)
    return float(thresholds[best[np.abs(thresholds[best] - 0.5).argmin()]])


def outcomes_at(truth: BoolArray, called: BoolArray) -> dict[str, tuple[BoolArray, BoolArray]]:
    """Return for each proportion of a decision (tiles that count, tiles counted among), bool (N,) each."""
    right = truth == called
    return {
        "sensitivity": (right & truth, truth),
        "specificity": (right & ~truth, ~truth),
        "PPV": (right & called, called),
        "NPV": (right & ~called, ~called),
        "accuracy": (right, np.ones_like(truth)),
    }


def tile_benefits(truth: npt.ArrayLike, scores: npt.ArrayLike, *, thresholds: npt.ArrayLike) -> FloatArray:
    """Return what each tile adds to the net benefit, (N, T): 1 for a true positive, -t / (1 - t) for a false one, or 0.

    Their mean over the tiles, TP / N - FP / N * t / (1 - t), is the net benefit of calling positive what scores t or
    more. Calling all positive is `tile_benefits(truth, ones, ...)`; calling none has a net benefit of 0.

    Args:
        truth: bool, (N,). scores: (N,).
        thresholds: t, the probability at which acting and not acting are equally good, (T,), below 1.

    Source: Vickers & Elkin 2006, Medical Decision Making 26:565.
    """
    is_positive, p = truth_and_scores(truth, scores)
    t = np.asarray(thresholds, dtype=np.float64)
    if not ((t >= 0) & (t < 1)).all():
        raise ValueError(f"thresholds: from {t.min():g} to {t.max():g}, must be at least 0 and below 1")
    return np.asarray((p[:, None] >= t) * np.where(is_positive[:, None], 1.0, -t / (1 - t)))


def risk_coverage(right: npt.ArrayLike, confidence: npt.ArrayLike) -> RiskCoverage:
    """Return accuracy on the most confident tiles against how many they are, and the area under the risk.

    Args:
        right: bool, (N,), N >= 1. confidence: (N,), within 0 to 1.

    Source: Geifman & El-Yaniv, arXiv:1705.08500; area: Geifman, Uziel & El-Yaniv, arXiv:1805.08206.
    """
    hit, c = truth_and_scores(right, confidence)
    distinct, where = np.unique(c, return_inverse=True)
    count = np.bincount(where)[::-1].cumsum()
    correct = np.bincount(where, hit)[::-1].cumsum()
    n = np.arange(1, len(c) + 1)
    errors = np.interp(n, np.append(0, count), np.append(0, count - correct))  # within ties errors are spread evenly
    best = np.maximum(0, n - hit.sum())
    return RiskCoverage(
        confidence=tuple(distinct[::-1].tolist()),
        count=tuple(count.tolist()),
        correct=tuple(correct.astype(np.int64).tolist()),
        area=float((errors / n).mean()),
        area_random=float(1 - hit.mean()),
        area_best=float((best / n).mean()),
    )


def choose_abstention(confidence: npt.ArrayLike, *, limit: float) -> float:
    """Return the confidence below which at most `limit` of these (validation) tiles lie.

    Args:
        confidence: (N,), N >= 1. limit: fraction of the tiles to leave undecided, >= 0 and < 1.

    Raises:
        ValueError: limit is out of range, or no tile.
    """
    ordered = np.sort(np.asarray(confidence, dtype=np.float64))
    if not 0 <= limit < 1 or not len(ordered):
        raise ValueError(f"limit: got {limit} of {len(ordered)} tiles, must be >= 0 and < 1, of at least one tile")
    return float(ordered[int(limit * len(ordered) + 1e-9)])


def truth_and_scores(truth: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[BoolArray, FloatArray]:
    """Return outcomes and their probabilities as arrays, (N,) each.

    Raises:
        ValueError: not bool (N,) and (N,) with N >= 1, or scores outside 0 to 1.
    """
    is_true, p = np.asarray(truth), np.asarray(scores, dtype=np.float64)
    if is_true.dtype != np.bool_ or p.ndim != 1 or is_true.shape != p.shape or not len(p):
        raise ValueError(
            f"truth and scores: {is_true.dtype} {is_true.shape} and {p.shape}, must be bool (N,) and (N,), N >= 1"
        )
    if not (p.min() >= 0 and p.max() <= 1 + 1e-9):  # written so that NaN fails too
        raise ValueError(f"scores: values from {p.min():g} to {p.max():g}, must lie within 0 to 1")
    return is_true, p
