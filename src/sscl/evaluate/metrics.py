"""Classification metrics, as pure functions on numpy arrays.

Every metric is computed from weights per tile, all ones for its value, so that tests and simulations can weigh tiles;
its interval comes from `influence` and `intervals`. Shape letters: N
tiles, K classes, S rows of weights.
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
_FEW_TILES = 60  # of a class; up to there, comparing each with all others is faster than sorting all tiles
_BLOCK_TILES = 128  # that are compared at once
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
    values = weighted_metrics(truth, scores, np.ones((1, len(truth))), positive=positive)
    flat = {key: _number(value[0]) for key, value in values.items()}
    support = np.bincount(truth, minlength=scores.shape[1]).tolist()
    rows = [
        ClassMetrics(support=count, **{key: flat.pop(f"{key} {label}") for key in OF_A_CLASS})
        for label, count in enumerate(support)
    ]
    return Metrics.model_validate({**flat, "per_class": rows})


def weighted_metrics(
    truth: IntArray, scores: FloatArray, weights: FloatArray, *, positive: int | None
) -> dict[str, FloatArray]:
    """Return each metric under each row of weights (S, N), as (S,) arrays; NaN = undefined.

    Per-class metrics have keys such as "precision 0".
    """
    classes = scores.shape[1]
    right, actual, called = _counts(truth, scores.argmax(axis=1), weights, num_classes=classes)
    total = actual.sum(axis=1)
    precision, recall = _ratio(right, called), _ratio(right, actual)
    f1 = _ratio(2 * right, actual + called)

    ranking = _rankings(truth, scores, weights)
    if classes == 2 and positive is not None:
        auroc, average_precision = (of[:, positive] for of in ranking)
    else:
        auroc, average_precision = (of.mean(axis=1) for of in ranking)
    # Gorodkin's K-category correlation; Matthews's for K = 2.
    covariance = right.sum(axis=1) * total - (actual * called).sum(axis=1)
    spread = (total**2 - (called**2).sum(axis=1)) * (total**2 - (actual**2).sum(axis=1))

    values = {
        "accuracy": right.sum(axis=1) / total,
        "balanced_accuracy": _defined_mean(recall),
        "macro_f1": _defined_mean(f1),
        "auroc": auroc,
        "average_precision": average_precision,
        "mcc": _ratio(covariance, np.sqrt(spread)),
    }
    if positive is not None:
        negatives = total - actual[:, positive]
        values["sensitivity"] = recall[:, positive]
        values["specificity"] = _ratio(negatives - called[:, positive] + right[:, positive], negatives)
    for label in range(classes):
        values[f"precision {label}"] = precision[:, label]
        values[f"recall {label}"] = recall[:, label]
        values[f"f1 {label}"] = f1[:, label]
    return values


def _counts(
    truth: IntArray, predicted: IntArray, weights: FloatArray, *, num_classes: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return tiles predicted right, of each true and of each predicted class, (S, K) each, exact: small integers."""
    right = weights * (truth == predicted)
    return tuple(
        _by_class(of, label, num_classes) for of, label in ((right, truth), (weights, truth), (weights, predicted))
    )  # type: ignore[return-value]


def _by_class(weights: FloatArray, labels: IntArray, num_classes: int) -> FloatArray:
    """Return the sum of the weights (S, N) of the tiles of each class, (S, K), in time that does not grow with K."""
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    sums = np.zeros((len(weights), num_classes))
    sums[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def _ranking_metrics(
    is_class: npt.NDArray[np.bool_], scores: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return AUROC and average precision of one class against the rest, (S,) each, under weights (S, N).

    By hand, because scikit-learn and scipy take one row of weights at a time: this sorts the scores once for all rows.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hit = scores[order], is_class[order]
    # Tied scores count as one threshold: in AUROC they give half a point, in AP one common precision.
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    positives = np.add.reduceat(weights[:, order] * hit, starts, axis=1)  # (S, thresholds), high scores first
    negatives = np.add.reduceat(weights[:, order] * ~hit, starts, axis=1)
    above_positive, above_negative = positives.cumsum(axis=1), negatives.cumsum(axis=1)
    all_positive, all_negative = above_positive[:, -1], above_negative[:, -1]
    below = all_negative[:, None] - above_negative + negatives / 2  # negatives ranked below, ties half
    auroc = _ratio((positives * below).sum(axis=1), all_positive * all_negative)
    # A threshold before the first drawn tile has no precision, but no positives either: it adds 0.
    precision = above_positive / np.maximum(above_positive + above_negative, 1)
    average_precision = _ratio((positives * precision).sum(axis=1), all_positive)
    return auroc, np.where(all_negative > 0, average_precision, np.nan)


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
    auroc, average_precision = _rankings(truth, scores, np.ones((1, len(truth))))
    return auroc[0], average_precision[0]


def _rankings(truth: IntArray, scores: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return AUROC and average precision of each class against the rest, (S, K) each; NaN of an absent class.

    Of a class of few tiles these are compared with all others, several classes at once, instead of sorting all tiles
    once a class: that takes S x N steps a tile, however many classes there are.
    """
    classes, counts = scores.shape[1], np.bincount(truth, minlength=scores.shape[1])
    few = np.flatnonzero(counts <= _FEW_TILES) if classes > 2 else np.arange(0)
    found = np.full((2, len(weights), classes), np.nan)
    for label in np.setdiff1d(np.arange(classes), few):
        found[:, :, label] = _ranking_metrics(truth == label, scores[:, label], weights)
    single = weights.astype(np.float32)  # its sums are whole numbers below 2^24, so exact
    present = few[counts[few] > 0]
    block_of = np.cumsum(counts[present]) // _BLOCK_TILES
    for block in np.unique(block_of):
        labels = present[block_of == block]
        tiles = np.concatenate([np.flatnonzero(truth == label) for label in labels])  # (b,), class by class
        starts = np.cumsum([0, *counts[labels[:-1]]])
        own, other = truth[tiles], scores.T[truth[tiles]]  # of the same class's column, (b, N)
        score, elsewhere = scores[tiles, own][:, None], truth != own[:, None]
        same = (own == own[:, None]) & (other[:, tiles] >= score)
        drawn = weights[:, tiles]
        above_negative = (single @ ((other >= score) & elsewhere).T.astype(np.float32)).astype(np.float64)  # (S, b)
        ties = (other == score) & elsewhere
        tied = (single @ ties.T.astype(np.float32)).astype(np.float64) if ties.any() else 0.0
        all_positive = np.add.reduceat(drawn, starts, axis=1)  # (S, classes of the block)
        all_negative = weights.sum(1, keepdims=True) - all_positive
        below = np.repeat(all_negative, counts[labels], axis=1) - above_negative + tied / 2
        above_positive = drawn @ same.T.astype(np.float64)
        precision = above_positive / np.maximum(above_positive + above_negative, 1)
        found[0][:, labels] = _ratio(np.add.reduceat(drawn * below, starts, axis=1), all_positive * all_negative)
        average = _ratio(np.add.reduceat(drawn * precision, starts, axis=1), all_positive)
        found[1][:, labels] = np.where(all_negative > 0, average, np.nan)
    return found[0], found[1]


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Return numerator / denominator, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _defined_mean(values: FloatArray) -> FloatArray:
    """Return the mean over the classes (S, K) -> (S,), leaving out undefined ones."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


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
