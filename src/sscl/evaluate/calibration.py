"""What probabilities are worth and how to act on them: calibration, a threshold, net benefit, abstention.

Pure functions. Whatever is fitted or chosen here (temperature, thresholds) is meant for validation tiles and applied to
others. Shape letters: N tiles, K classes, S resamples, T thresholds, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sscl.evaluate.metrics import ANNOTATORS, FloatArray, IntArray, wilson_interval
from sscl.models.calibration import KeptCalibration

BoolArray = npt.NDArray[np.bool_]

BINS = 15  # as in Guo et al.
FEW = 50  # validation tiles; below, what is fitted on them moves by much with other ones
TEMPERATURES = (0.05, 20.0)  # beyond these the tiles do not tell one from another
DEFINITION = (
    f"ECE: top-label confidence against accuracy in {BINS} bins of equal width (arXiv:1706.04599, Eq. 3); "
    "equal mass: in bins of equally many tiles; Brier: squared distance to the one-hot truth, over classes, 0 to 2"
)


# --- probabilities ---


def softmax(logits: npt.ArrayLike | torch.Tensor, *, temperature: float = 1.0) -> FloatArray:
    """Return the probabilities softmax(logits / temperature) in double precision, (N, K).

    Raises:
        ValueError: temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, must be positive")
    found: FloatArray = torch.as_tensor(logits).double().div(temperature).softmax(1).numpy()
    return found


def fit_temperature(logits: npt.ArrayLike | torch.Tensor, labels: npt.ArrayLike) -> float:
    """Return the temperature T that gives softmax(logits / T) the least cross-entropy on these tiles.

    The loss is convex in 1 / T, so the one root of its slope is the answer. T is held within TEMPERATURES: where every
    tile is right the likelihood knows no best T (the smaller, the better) and the lower end is returned; where the
    logits are far too sure, or say less than nothing of the labels, the upper one. A result at an end was bounded, not
    found.

    Args:
        logits: (N, K), N >= 1, of tiles that did not train. labels: class indices, (N,).

    Raises:
        ValueError: shapes, labels out of range, or logits that are not finite.

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599, section 4.2.
    """
    from scipy.optimize import brentq  # training starts without it

    z = torch.as_tensor(logits).double()
    y = torch.as_tensor(labels)
    if z.ndim != 2 or not len(z) or y.shape != (len(z),):
        raise ValueError(f"logits and labels: shapes {tuple(z.shape)} and {tuple(y.shape)}, must be (N, K) and (N,)")
    if int(y.min()) < 0 or int(y.max()) >= z.shape[1]:
        raise ValueError(f"labels: values from {y.min()} to {y.max()}, must lie within 0 to {z.shape[1] - 1}")
    if not z.isfinite().all():
        raise ValueError("logits: some are not finite numbers")
    z = z - z.gather(1, y[:, None])  # the slope needs differences to the true class only

    def slope(log_temperature: float) -> float:
        """Of the mean cross-entropy by 1 / T; rises with 1 / T, so falls with T."""
        return float(((z / np.exp(log_temperature)).softmax(1) * z).sum(1).mean())

    low, high = np.log(TEMPERATURES)
    if slope(high) >= 0:
        return TEMPERATURES[1]
    if slope(low) <= 0:
        return TEMPERATURES[0]
    return float(np.exp(brentq(slope, low, high, xtol=1e-10)))


def fit_calibration(
    logits: torch.Tensor, labels: npt.ArrayLike, *, classes: Sequence[str], positive: int | None
) -> KeptCalibration:
    """Return what a checkpoint keeps of its validation tiles.

    Where every validation tile is right, or errs by next to nothing (`fit_temperature` then ends at its lower bound),
    the temperature stays 1: no finite number of tiles bears out unlimited confidence.

    Args:
        logits, labels: of the validation tiles, (N, K) and (N,). classes: K names. positive: index or None.
    """
    truth = np.asarray(labels, dtype=np.int64)
    temperature = fit_temperature(logits, truth)
    method = f"fitted by the cross-entropy of {len(truth)} validation tiles"
    if temperature == TEMPERATURES[0]:
        temperature = 1.0
        method = (
            f"that of {len(truth)} validation tiles would be below {TEMPERATURES[0]:g}, as where hardly one errs, and "
            "is not believed: 1 is kept"
        )
    elif temperature == TEMPERATURES[1]:
        method += f", which would be above {temperature:g}: held there; the logits are far too sure, or say nothing"
    before, after = softmax(logits), softmax(logits, temperature=temperature)
    threshold = None
    if positive is not None and 0 < (truth == positive).sum() < len(truth):
        threshold = choose_threshold(truth == positive, after[:, positive])
    return KeptCalibration(
        temperature=temperature,
        threshold=threshold,
        positive=None if positive is None else classes[positive],
        tiles=len(truth),
        method=method,
        ece_before=expected_calibration_error(truth, before),
        ece_after=expected_calibration_error(truth, after),
        logits=logits.detach().float().cpu(),
        labels=torch.from_numpy(truth),
    )


# --- how far off they are ---


def brier_score(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Return the multi-class Brier score: the mean over tiles of sum_k (p_k - [k is the label])^2, 0 to 2.

    Args:
        labels: (N,). probabilities: (N, K).

    Source: Brier 1950, Monthly Weather Review 78:1. For two classes it is twice `binary_brier_score`.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    return float(((p - np.eye(p.shape[1])[np.asarray(labels)]) ** 2).sum(1).mean())


def binary_brier_score(targets: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the mean of (score - target)^2, 0 to 1, where targets are 0 and 1 or shares between.

    Args:
        targets, scores: (N,), in 0 to 1.
    """
    return float(((np.asarray(scores, dtype=np.float64) - np.asarray(targets, dtype=np.float64)) ** 2).mean())


def soft_vote_brier(votes: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the Brier score of the probability of class 1 against the share of annotators who chose it.

    Args:
        votes: annotators of seven who chose class 1 (SSA), (N,). scores: its probability, (N,).
    """
    return binary_brier_score(np.asarray(votes) / ANNOTATORS, scores)


def expected_calibration_error(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, bins: int = BINS, binning: str = "width"
) -> float:
    """Return the ECE of the top label: the mean over tiles of |accuracy - mean confidence| of the tile's bin.

    Args:
        labels: (N,). probabilities: (N, K). bins, binning: see `reliability_curve`.

    Source: Guo et al., arXiv:1706.04599, Eq. 3; bins (low, high], as there.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    return calibration_error(p.argmax(1) == np.asarray(labels), p.max(1), bins=bins, binning=binning)


def calibration_error(
    outcomes: npt.ArrayLike, scores: npt.ArrayLike, *, bins: int = BINS, binning: str = "width"
) -> float:
    """Return the mean over tiles of |share of outcomes - mean score| of the tile's bin.

    Args:
        outcomes: bool, (N,). scores: their probabilities, (N,). bins, binning: see `reliability_curve`.
    """
    hit, p, where = _binned(outcomes, scores, bins=bins, binning=binning)
    return float(np.abs(np.bincount(where, hit - p, minlength=bins)).sum() / len(p))


def calibration_error_by_chance(
    scores: npt.ArrayLike, *, bins: int = BINS, binning: str = "width", samples: int = 500, seed: int = 0
) -> tuple[float, float]:
    """Return mean and 95% quantile of the calibration error that true probabilities would have on as many tiles.

    The error is never 0 on finitely many tiles; one below this quantile is no evidence of miscalibration. Outcomes are
    drawn from the scores themselves.

    Args:
        scores: (N,). bins, binning: see `reliability_curve`. samples, seed: of the draws.

    Source: consistency resampling, Bröcker & Smith 2007, Weather and Forecasting 22:651.
    """
    rng = np.random.default_rng(seed)
    _, p, where = _binned(np.zeros(np.shape(scores), dtype=bool), scores, bins=bins, binning=binning)
    drawn = [
        np.abs(np.bincount(where, (rng.random(len(p)) < p) - p, minlength=bins)).sum() / len(p) for _ in range(samples)
    ]
    return float(np.mean(drawn)), float(np.quantile(drawn, 0.95))


def reliability_curve(
    outcomes: npt.ArrayLike, scores: npt.ArrayLike, *, bins: int = 10, binning: str = "width"
) -> list[dict[str, Any]]:
    """Return how often what was given a probability came true, for each bin that holds tiles.

    Each row is {`low`, `high`, `count`, `score` (mean), `share` (of outcomes), `interval` (Wilson's 95% of the share)}.

    Args:
        outcomes: bool, (N,). scores: probabilities, (N,), N >= 1.
        bins: how many. binning: "width", of equal width over 0 to 1, or "mass", of equally many tiles. A score on an
            edge belongs to the lower bin.

    Raises:
        ValueError: other shapes, bins or binning; scores outside 0 to 1.
    """
    hit, p, where = _binned(outcomes, scores, bins=bins, binning=binning)
    edges = _edges(p, bins=bins, binning=binning)
    rows = []
    for index in np.unique(where):
        inside = where == index
        count, came_true = int(inside.sum()), int(hit[inside].sum())
        rows.append(
            {
                "low": float(edges[index]),
                "high": float(edges[index + 1]),
                "count": count,
                "score": float(p[inside].mean()),
                "share": came_true / count,
                "interval": wilson_interval(came_true, count),
            }
        )
    return rows


def _edges(scores: FloatArray, *, bins: int, binning: str) -> FloatArray:
    even = np.linspace(0, 1, bins + 1)
    return even if binning == "width" else np.quantile(scores, even)


def _binned(
    outcomes: npt.ArrayLike, scores: npt.ArrayLike, *, bins: int, binning: str
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Return outcomes as 0 and 1, scores, and the bin of each, (N,) each."""
    hit, p = _truth_and_scores(outcomes, scores)
    if bins < 1:
        raise ValueError(f"bins: got {bins}, must be at least 1")
    if binning not in ("width", "mass"):
        raise ValueError(f"binning: got {binning!r}, allowed are 'width' and 'mass'")
    inner = _edges(p, bins=bins, binning=binning)[1:-1]
    return hit.astype(np.float64), p, np.searchsorted(inner, p, side="left").astype(np.int64)


# --- acting on them ---


def choose_threshold(truth: npt.ArrayLike, scores: npt.ArrayLike, *, sensitivity: float | None = None) -> float:
    """Return the threshold at and above which a tile is called positive, chosen on these (validation) tiles.

    Youden's: the largest sensitivity + specificity - 1, of equal ones the nearest to 0.5. With `sensitivity`: the
    highest threshold that reaches it. Thresholds lie half-way between neighbouring scores, where both sides have room.

    Args:
        truth: bool, (N,), is the tile of the positive class. scores: its probability, (N,).
        sensitivity: above 0, to 1; None = Youden's index.

    Raises:
        ValueError: all tiles are of one class, sensitivity is out of range, or as `reliability_curve`.

    Source: Youden 1950, Cancer 3:32.
    """
    is_positive, p = _truth_and_scores(truth, scores)
    positives = int(is_positive.sum())
    if not 0 < positives < len(p):
        raise ValueError(f"truth: {positives} of {len(p)} tiles are positive, a threshold needs some of both classes")
    if sensitivity is not None and not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity: got {sensitivity}, must be above 0 and at most 1")
    distinct, where = np.unique(p, return_inverse=True)
    hits = np.bincount(where, is_positive)[::-1].cumsum()  # called rightly when calling down to each score, from above
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


def net_benefit(
    truth: npt.ArrayLike, scores: npt.ArrayLike, *, thresholds: npt.ArrayLike, weights: FloatArray | None = None
) -> FloatArray:
    """Return TP / N - FP / N * t / (1 - t) of calling positive what scores t or more, (T,), or (S, T) under weights.

    Calling all positive is `net_benefit(truth, ones, ...)`; calling none has a net benefit of 0.

    Args:
        truth: bool, (N,). scores: (N,).
        thresholds: t, the probability from which on acting is worth it, (T,), below 1.
        weights: how often each tile counts, (S, N), see `metrics.resamples`.

    Source: Vickers & Elkin 2006, Medical Decision Making 26:565.
    """
    is_positive, p = _truth_and_scores(truth, scores)
    t = np.asarray(thresholds, dtype=np.float64)
    if not ((t >= 0) & (t < 1)).all():
        raise ValueError(f"thresholds: from {t.min():g} to {t.max():g}, must be at least 0 and below 1")
    called = p[:, None] >= t  # (N, T)
    gain = called * np.where(is_positive[:, None], 1.0, -t / (1 - t))
    if weights is None:
        return np.asarray(gain.mean(0))
    return np.asarray(weights @ gain / weights.sum(1, keepdims=True))


# --- abstaining ---


def risk_coverage(right: npt.ArrayLike, confidence: npt.ArrayLike) -> dict[str, Any]:
    """Return accuracy on the most confident tiles against their share, and the area under the risk.

    Keys: `confidence`, the distinct values, highest first; `count` and `correct`, tiles of at least that confidence;
    `area`, the mean over n = 1 .. N of the error among the n most confident (0 at best; ties in their mean order);
    `area_random`, that of an order by chance, the error rate; `area_best`, that of an order with all errors last.

    Args:
        right: bool, (N,), N >= 1. confidence: (N,), within 0 to 1.

    Source: Geifman & El-Yaniv, arXiv:1705.08500; area: Geifman, Uziel & El-Yaniv, arXiv:1805.08206.
    """
    hit, c = _truth_and_scores(right, confidence)
    distinct, where = np.unique(c, return_inverse=True)
    count = np.bincount(where)[::-1].cumsum()
    correct = np.bincount(where, hit)[::-1].cumsum()
    n = np.arange(1, len(c) + 1)
    errors = np.interp(n, np.append(0, count), np.append(0, count - correct))  # within ties errors are spread evenly
    best = np.maximum(0, n - hit.sum())
    return {
        "confidence": distinct[::-1].tolist(),
        "count": count.tolist(),
        "correct": correct.astype(np.int64).tolist(),
        "area": float((errors / n).mean()),
        "area_random": float(1 - hit.mean()),
        "area_best": float((best / n).mean()),
    }


def choose_abstention(confidence: npt.ArrayLike, *, share: float) -> float:
    """Return the confidence below which at most `share` of these (validation) tiles lie.

    Args:
        confidence: (N,), N >= 1. share: tiles to leave undecided, 0 to 1, 1 excluded.

    Raises:
        ValueError: share is out of range, or no tile.
    """
    ordered = np.sort(np.asarray(confidence, dtype=np.float64))
    if not 0 <= share < 1 or not len(ordered):
        raise ValueError(f"share: got {share} of {len(ordered)} tiles, must be 0 or more and below 1, of some tiles")
    return float(ordered[int(share * len(ordered) + 1e-9)])


def _truth_and_scores(truth: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[BoolArray, FloatArray]:
    is_true, p = np.asarray(truth), np.asarray(scores, dtype=np.float64)
    if is_true.dtype != np.bool_ or p.ndim != 1 or is_true.shape != p.shape or not len(p):
        raise ValueError(
            f"truth and scores: {is_true.dtype} {is_true.shape} and {p.shape}, must be bool (N,) and (N,), N >= 1"
        )
    if not (p.min() >= 0 and p.max() <= 1 + 1e-9):  # written so that NaN fails too
        raise ValueError(f"scores: values from {p.min():g} to {p.max():g}, must lie within 0 to 1")
    return is_true, p
