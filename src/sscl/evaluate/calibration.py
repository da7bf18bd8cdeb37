"""Calibration of probabilities: a temperature fitted on validation tiles, and calibration errors on any tiles.

Shape letters: N tiles, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from sscl.data.mhist import ANNOTATORS
from sscl.evaluate.decisions import choose_threshold, truth_and_scores
from sscl.evaluate.influence import mean_of_tiles
from sscl.evaluate.intervals import Interval, Sample, share_intervals, wald_interval
from sscl.evaluate.metrics import FloatArray, IntArray
from sscl.models.calibration import KeptCalibration
from sscl.records import Record

BINS = 15  # of calibration errors, as in Guo et al.
CURVE_BINS = 10  # of reliability curves
FEW = 50  # validation tiles; below, what is fitted on them changes much from one sample to another
MATTERS_ECE = 0.1  # a mean gap between confidence and accuracy that one would want to see
FEWEST_BINS = 4  # all on one side: p = 2 x 0.5^4 = 0.13 for one class, and the mean gap is tested besides
TEMPERATURES = (0.05, 20.0)  # beyond these the tiles cannot tell one temperature from another
DEFINITION = (
    f"ECE: top-label confidence against accuracy in {BINS} bins of equal width (arXiv:1706.04599, Eq. 3); "
    "equal mass: in bins of equally many tiles; Brier: squared distance to the one-hot truth, over classes, 0 to 2"
)


class ReliabilityBin(Record):
    """Tiles with a predicted probability in (low, high], and how often the outcome occurred.

    Attributes:
        count: tiles. score: their mean predicted probability. frequency: fraction with the outcome.
        interval: 95%, of that fraction; None: too few groups.
    """

    low: float
    high: float
    count: int
    score: float
    frequency: float
    interval: Interval | None


class MiscalledClass(Record):
    """A class whose probability is too low (`under`) or too high in every reliability bin.

    Attributes:
        index: of the class. bins: that hold tiles. score: mean probability. frequency: fraction that is of the class.
    """

    index: int
    under: bool
    bins: int
    score: float
    frequency: float


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

    The loss is convex in 1 / T, so the one root of its slope is the answer. T is kept within TEMPERATURES: where every
    tile is right there is no best T (the smaller, the better) and the lower end is returned; where the logits are far
    too confident, or predict the labels worse than chance, the upper one. A result at an end was bounded, not found.

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
    logits: torch.Tensor,
    labels: npt.ArrayLike,
    *,
    classes: Sequence[str],
    positive: int | None,
    precision: str = "fp32",
) -> KeptCalibration:
    """Return what a checkpoint keeps of its validation tiles.

    Where every validation tile is right, or nearly so (`fit_temperature` then ends at its lower bound), the temperature
    stays 1: no finite number of tiles is evidence for unlimited confidence.

    Args:
        logits, labels: of the validation tiles, (N, K) and (N,). classes: K names. positive: index or None.
        precision: in which the logits were computed.
    """
    truth = np.asarray(labels, dtype=np.int64)
    temperature = fit_temperature(logits, truth)
    method = f"minimises the cross-entropy of {len(truth)} validation tiles"
    if temperature == TEMPERATURES[0]:
        temperature = 1.0
        method = (
            f"left at 1: {len(truth)} validation tiles, nearly all classified correctly, would give less than "
            f"{TEMPERATURES[0]:g}"
        )
    elif temperature == TEMPERATURES[1]:
        method += f"; limited to {temperature:g}: the logits are far too confident, or uninformative"
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
        precision=precision,
        logits=logits.detach().float().cpu(),
        labels=torch.from_numpy(truth),
    )


# --- calibration errors ---


def brier_score(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Return the multi-class Brier score: the mean over tiles of sum_k (p_k - [k is the label])^2, 0 to 2.

    Args:
        labels: (N,). probabilities: (N, K).

    Source: Brier 1950, Monthly Weather Review 78:1. For two classes it is twice `binary_brier_score`.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    right = p[np.arange(len(p)), np.asarray(labels)]
    return float(np.einsum("ij,ij->i", p, p).mean() - 2 * right.mean() + 1)  # without a second table of (N, K)


def binary_brier_score(targets: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the mean of (score - target)^2, 0 to 1, where targets are 0, 1 or fractions.

    Args:
        targets, scores: (N,), in 0 to 1.
    """
    return float(((np.asarray(scores, dtype=np.float64) - np.asarray(targets, dtype=np.float64)) ** 2).mean())


def soft_vote_brier(votes: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the Brier score of the probability of class 1 against the fraction of annotators who chose it.

    Args:
        votes: annotators of seven who chose class 1 (SSA), (N,). scores: its probability, (N,).
    """
    return binary_brier_score(np.asarray(votes) / ANNOTATORS, scores)


def expected_calibration_error(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, equal_mass: bool = False
) -> float:
    """Return the ECE of the top label: the mean over tiles of |accuracy - mean confidence| of the tile's bin.

    Args:
        labels: (N,). probabilities: (N, K). equal_mass: see `calibration_error`.

    Source: Guo et al., arXiv:1706.04599, Eq. 3; bins (low, high], as there.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    return calibration_error(p.argmax(1) == np.asarray(labels), p.max(1), equal_mass=equal_mass)


def calibration_error(outcomes: npt.ArrayLike, scores: npt.ArrayLike, *, equal_mass: bool = False) -> float:
    """Return the mean over tiles of |fraction with the outcome - mean score| of the tile's bin.

    Args:
        outcomes: bool, (N,). scores: their probabilities, (N,), N >= 1.
        equal_mass: whether the bins are of equally many tiles, instead of equal width over 0 to 1.

    Raises:
        ValueError: other shapes; scores outside 0 to 1.
    """
    hit, p, where, _ = _binned(outcomes, scores, bins=BINS, equal_mass=equal_mass)
    return float(np.abs(np.bincount(where, hit - p, minlength=BINS)).sum() / len(p))


def calibration_error_by_chance(
    scores: npt.ArrayLike, *, gap: float = 0.0, worth: int | None = None, seed: int = 0
) -> FloatArray:
    """Return calibration errors that probabilities would have by chance, on as many tiles, (500,), ascending.

    The error is never 0 on finitely many tiles; one below the 95% quantile of these is no evidence of miscalibration.
    Outcomes are drawn from the scores themselves.

    Args:
        scores: (N,). gap: how much more often outcomes fail than the scores say; 0 = true probabilities.
        worth: independent tiles that these are worth, where tiles of a slide depend on each other; None = N.
        seed: of the draws.

    Source: consistency resampling, Bröcker & Smith 2007, Weather and Forecasting 22:651.
    """
    rng = np.random.default_rng(seed)
    _, p, where, _ = _binned(np.zeros(np.shape(scores), dtype=bool), scores, bins=BINS)
    drawn = []
    for _ in range(500):
        own, bin_of = p, where
        if worth is not None and worth < len(p):
            rows = rng.integers(len(p), size=worth)
            own, bin_of = p[rows], where[rows]
        gaps = (rng.random(len(own)) < own - gap) - own
        drawn.append(np.abs(np.bincount(bin_of, gaps, minlength=BINS)).sum() / len(own))
    return np.sort(np.array(drawn))


def miscalled_classes(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, sample: Sample | None = None
) -> tuple[MiscalledClass, ...]:
    """Return the classes whose probability is too low, or too high, in every bin of their reliability curve.

    At least FEWEST_BINS bins must hold tiles, and the mean gap must lie beyond its 95% interval.

    Args:
        labels: (N,). probabilities: (N, K).
        sample: the same tiles with their groups; None = independent tiles.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    sample = Sample.of(y, classes=p.shape[1], groups=None) if sample is None else sample
    found = []
    for index in range(p.shape[1]):
        hit, score, where, _ = _binned(y == index, p[:, index], bins=CURVE_BINS)
        gaps = np.bincount(where, hit - score)[np.bincount(where) > 0]
        if len(gaps) < FEWEST_BINS or not ((gaps > 0).all() or (gaps < 0).all()):
            continue
        ends = wald_interval(mean_of_tiles(hit - score, sample))
        if ends is not None and (ends[0] > 0 or ends[1] < 0):
            found.append(
                MiscalledClass(
                    index=index,
                    under=ends[0] > 0,
                    bins=len(gaps),
                    score=float(score.mean()),
                    frequency=float(hit.mean()),
                )
            )
    return tuple(found)


def reliability_curve(
    outcomes: npt.ArrayLike, scores: npt.ArrayLike, *, bins: int = CURVE_BINS, sample: Sample | None = None
) -> tuple[ReliabilityBin, ...]:
    """Return how often an outcome occurred against its predicted probability, for each bin that holds tiles.

    Args:
        outcomes: bool, (N,). scores: probabilities, (N,), N >= 1.
        bins: how many, of equal width over 0 to 1. A score on an edge belongs to the lower one.
        sample: the same tiles with their groups; None = independent tiles.

    Raises:
        ValueError: as `calibration_error`.
    """
    hit, p, where, edges = _binned(outcomes, scores, bins=bins)
    ends = share_intervals(hit > 0, where, None if sample is None else sample.groups, shares=bins)
    rows = []
    for index in np.unique(where):
        inside = where == index
        low, high = (float(of[index]) for of in ends)
        rows.append(
            ReliabilityBin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                count=int(inside.sum()),
                score=float(p[inside].mean()),
                frequency=float(hit[inside].mean()),
                interval=None if np.isnan(low) else (low, high),
            )
        )
    return tuple(rows)


def _binned(
    outcomes: npt.ArrayLike, scores: npt.ArrayLike, *, bins: int, equal_mass: bool = False
) -> tuple[FloatArray, FloatArray, IntArray, FloatArray]:
    """Return outcomes as 0 and 1, scores, and the bin of each, (N,) each; then the edges of the bins."""
    hit, p = truth_and_scores(outcomes, scores)
    edges = np.linspace(0, 1, bins + 1)
    if equal_mass:
        edges = np.quantile(p, edges)
    return hit.astype(np.float64), p, np.searchsorted(edges[1:-1], p, side="left").astype(np.int64), edges
