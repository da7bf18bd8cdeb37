"""Classification metrics, as pure functions on numpy arrays.

Their intervals come from `influence` and `intervals`. Shape letters: N tiles, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sscl.records import Record

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

DISPLAY_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "mcc": "MCC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "loss": "loss",
    "ece": "ECE",
    "ece_equal_mass": "ECE, bins of equal mass",
    "brier": "Brier score",
    "soft_vote_brier": "Brier score against votes",
}
OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "mcc")
OF_LABELS = ("accuracy", "balanced_accuracy", "macro_f1")  # need predicted classes only; comparisons show these
MANY_CLASSES = 20  # more are not named, counted or drawn each on its own: see `worst_classes`
_WORST_CLASSES = 10
_FEW_TILES = 60  # of a class of several; up to there each is compared with all others, instead of sorting all tiles
OF_A_CLASS = ("precision", "recall", "f1")


class ClassMetrics(Record):
    """Metrics of one class against the rest; None = undefined. `support` counts the tiles whose true class it is."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


class Metrics(Record):
    """Metrics of a classifier; None = undefined, or, of sensitivity and specificity, no positive class."""

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    auroc: float | None
    average_precision: float | None
    mcc: float | None
    sensitivity: float | None = None
    specificity: float | None = None
    per_class: tuple[ClassMetrics, ...]


def display_name(key: str, *, of: str | None = None) -> str:
    """Return what a metric is called in tables and charts, with the class that it is of in front.

    Examples:
        >>> display_name("auroc"), display_name("f1", of="SSA")
        ('AUROC', 'SSA F1')
    """
    name = DISPLAY_NAMES[key]
    return name if of is None else f"{of} {name}"


def confusion_matrix(labels: npt.ArrayLike, predictions: npt.ArrayLike, *, num_classes: int) -> IntArray:
    """Return the (K, K) matrix of counts: row = true class, column = predicted class.

    Args:
        labels, predictions: class indices 0..K-1, (N,).
        num_classes: K.

    Raises:
        ValueError: the shapes differ, or an index is not an integer within 0..K-1.
    """
    truth = class_indices(labels, name="labels", num_classes=num_classes)
    predicted = class_indices(predictions, name="predictions", num_classes=num_classes)
    if truth.shape != predicted.shape:
        raise ValueError(f"labels and predictions: {len(truth)} against {len(predicted)} tiles, must be equally many")
    counts = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def classification_metrics(labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, positive: int | None) -> Metrics:
    """Return the metrics; an undefined one is None, never 0 or NaN.

    Balanced accuracy is the mean recall over the classes present in the truth, macro F1 the mean over the classes
    present in truth or prediction. With `positive` there are also sensitivity and specificity, of that class against
    the rest. The prediction is the argmax.

    For two classes and a `positive` one, `auroc` and `average_precision` are those of the positive class;
    otherwise they are the unweighted one-vs-rest mean, undefined when a class is absent from the truth. Where
    scikit-learn warns and returns 0 (precision of a class never predicted, MCC of a constant prediction), the
    value here is None.

    Args:
        labels: true classes, (N,), N >= 1.
        probabilities: (N, K), in 0..1.
        positive: index of the positive class, or None.

    Raises:
        ValueError: wrong shapes, no tile, labels out of range, or values that are no probabilities.
    """
    truth, scores = checked(labels, probabilities, positive=positive)
    classes, total, predicted = scores.shape[1], len(truth), scores.argmax(axis=1)
    actual, called = (np.bincount(of, minlength=classes).astype(np.float64) for of in (truth, predicted))
    right = np.bincount(truth[truth == predicted], minlength=classes).astype(np.float64)
    precision, recall, f1 = _ratio(right, called), _ratio(right, actual), _ratio(2 * right, actual + called)
    auroc, average_precision = (
        float(of[positive] if classes == 2 and positive is not None else of.mean())
        for of in one_against_rest(truth, scores)
    )
    # Gorodkin's K-category correlation; Matthews's for K = 2.
    covariance = right.sum() * total - (actual * called).sum()
    spread = (total**2 - (called**2).sum()) * (total**2 - (actual**2).sum())
    sensitivity = specificity = None
    if positive is not None:
        negatives = total - actual[positive]
        sensitivity = _number(recall[positive])
        if negatives:
            specificity = float((negatives - called[positive] + right[positive]) / negatives)
    return Metrics(
        accuracy=float(right.sum() / total),
        balanced_accuracy=float(np.nanmean(recall)),
        macro_f1=float(np.nanmean(f1)),
        auroc=_number(auroc),
        average_precision=_number(average_precision),
        mcc=float(covariance / np.sqrt(spread)) if spread > 0 else None,
        sensitivity=sensitivity,
        specificity=specificity,
        per_class=tuple(
            ClassMetrics(precision=_number(p), recall=_number(r), f1=_number(f), support=int(tiles))
            for p, r, f, tiles in zip(precision, recall, f1, actual, strict=True)
        ),
    )


def worst_classes(per_class: Sequence[ClassMetrics]) -> list[int]:
    """Return the classes whose metrics are shown, see `shown_classes`."""
    return shown_classes([np.nan if row.recall is None else row.recall for row in per_class])


def shown_classes(recalls: npt.ArrayLike) -> list[int]:
    """Return the classes that are shown each: all, or of many those with the lowest recall, the worst first.

    Args:
        recalls: of each class, (K,); NaN of one without tiles, which comes last.
    """
    recalls = np.asarray(recalls, dtype=np.float64)
    if len(recalls) <= MANY_CLASSES:
        return list(range(len(recalls)))
    worst: list[int] = np.argsort(recalls, kind="stable")[:_WORST_CLASSES].tolist()
    return worst


def shown_of(classes: int, *, others: str = "all are in metrics.json") -> str:
    """Return a clause on which classes `worst_classes` leaves out, and where these are; "" of none."""
    if classes <= MANY_CLASSES:
        return ""
    return f"the {_WORST_CLASSES} of {classes:,} classes with the lowest recall; {others}"


def largest_classes(
    counts: Mapping[str, Mapping[str, int]], *, most: int = MANY_CLASSES
) -> Mapping[str, Mapping[str, int]]:
    """Return counts of tiles, {split: {class: tiles}}; of more than `most` classes the largest, the rest as one."""
    totals: Counter[str] = Counter()
    for of in counts.values():
        totals.update(of)
    if len(totals) <= most:
        return counts
    kept = {name for name, _ in totals.most_common(most - 1)}
    rest = f"{len(totals) - len(kept):,} smaller classes"
    return {
        split: {name: number for name, number in of.items() if name in kept}
        | {rest: sum(number for name, number in of.items() if name not in kept)}
        for split, of in counts.items()
    }


def confusions(matrix: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """Return the most frequent errors, (true class, predicted class, tiles), at most ten."""
    counts = np.array(matrix)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:10]
    places = np.column_stack([*np.unravel_index(order, counts.shape), counts.ravel()[order]]).tolist()
    return [(truth, predicted, tiles) for truth, predicted, tiles in places if tiles]


def one_against_rest(truth: IntArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return AUROC and average precision of each class against the rest, (K,) each; NaN = undefined.

    Args:
        truth: (N,). scores: (N, K).
    """
    classes, counts = scores.shape[1], np.bincount(truth, minlength=scores.shape[1])
    found = np.full((2, classes), np.nan)
    for label in np.flatnonzero((counts > 0) & (counts < len(truth))):
        rank = _by_comparing if classes > 2 and counts[label] <= _FEW_TILES else _by_sorting
        found[:, label] = rank(truth == label, scores[:, label])
    return found[0], found[1]


def _by_sorting(is_class: npt.NDArray[np.bool_], scores: FloatArray) -> tuple[float, float]:
    """Return AUROC and average precision of one class against the rest, both of which have tiles."""
    order = np.argsort(-scores, kind="stable")
    ordered, hit = scores[order], is_class[order]
    # Tied scores count as one threshold: in AUROC they give half a point, in AP one common precision.
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    positives = np.add.reduceat(hit, starts, dtype=np.float64)  # (thresholds,), high scores first
    negatives = np.add.reduceat(~hit, starts, dtype=np.float64)
    above_positive, above_negative = positives.cumsum(), negatives.cumsum()
    all_positive, all_negative = above_positive[-1], above_negative[-1]
    below = all_negative - above_negative + negatives / 2  # negatives ranked below, ties half
    precision = above_positive / (above_positive + above_negative)
    auroc = (positives * below).sum() / (all_positive * all_negative)
    return float(auroc), float((positives * precision).sum() / all_positive)


def _by_comparing(is_class: npt.NDArray[np.bool_], scores: FloatArray) -> tuple[float, float]:
    """Return what `_by_sorting` does, from each tile of the class beside all others."""
    own, others = scores[is_class], scores[~is_class]
    above_positive = (own >= own[:, None]).sum(axis=1)
    above_negative = (others >= own[:, None]).sum(axis=1)
    below = len(others) - above_negative + (others == own[:, None]).sum(axis=1) / 2
    precision = above_positive / (above_positive + above_negative)
    return float(below.sum() / (len(own) * len(others))), float(np.add.reduceat(precision, [0])[0] / len(own))


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Return numerator / denominator, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def checked(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, positive: int | None
) -> tuple[IntArray, FloatArray]:
    """Return labels (N,) and probabilities (N, K) as arrays.

    Raises:
        ValueError: as `classification_metrics`.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"probabilities: shape {scores.shape}, must be (tiles, classes) with at least one of each")
    # Written so that NaN fails too.
    if not (scores.min() >= -1e-6 and scores.max() <= 1 + 1e-6):
        raise ValueError(
            f"probabilities: values from {scores.min():.4g} to {scores.max():.4g}, must be finite and "
            "within 0 to 1 (for logits apply softmax first)"
        )
    truth = class_indices(labels, name="labels", num_classes=scores.shape[1])
    if len(truth) != len(scores):
        raise ValueError(f"labels and probabilities: {len(truth)} against {len(scores)} tiles, must be equally many")
    if positive is not None and not 0 <= positive < scores.shape[1]:
        raise ValueError(f"positive: {positive}, must be None or a class index 0 to {scores.shape[1] - 1}")
    return truth, scores


def class_indices(values: npt.ArrayLike, *, name: str, num_classes: int) -> IntArray:
    """Return class indices as an array, (N,).

    Raises:
        ValueError: not a list of integers within 0 to K - 1; `name` is what they are called there.
    """
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name}: {array.dtype} of shape {array.shape}, must be a list of integers")
    if array.size and not (array.min() >= 0 and array.max() < num_classes):
        raise ValueError(f"{name}: values from {array.min()} to {array.max()}, must lie within 0 to {num_classes - 1}")
    return array.astype(np.int64)
