"""Classification metrics with intervals, as pure functions on numpy arrays.

One implementation serves the point values and the bootstrap: every metric is computed from integer weights
per tile, all ones for the point value, the multiplicities of a resample for the bootstrap. Shape letters: N
tiles, K classes, S resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

FIGURES = ("accuracy", "balanced_accuracy", "macro_f1")  # those of predicted classes that comparisons show
GROUPS = "slides, patients or clusters of near-duplicates"  # what whole groups of tiles may be
ANNOTATORS = 7  # MHIST: votes are counts out of seven
_ENOUGH_GROUPS = 10  # cluster bootstraps are known to cover too little with less than a few tens
_CHUNK_ELEMENTS = 4_000_000  # resamples are worked through in chunks of about this many weights (32 MB)


def confusion_matrix(labels: npt.ArrayLike, predictions: npt.ArrayLike, *, num_classes: int) -> IntArray:
    """Return the (K, K) matrix of counts: row = true class, column = predicted class.

    Args:
        labels, predictions: class indices 0..K-1, (N,).
        num_classes: K.

    Raises:
        ValueError: the shapes differ, or an index is not an integer within 0..K-1.
    """
    truth = _class_indices(labels, name="labels", num_classes=num_classes)
    predicted = _class_indices(predictions, name="predictions", num_classes=num_classes)
    if truth.shape != predicted.shape:
        raise ValueError(f"labels and predictions: {len(truth)} against {len(predicted)} tiles, must be equally many")
    counts = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def classification_metrics(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, positive: int | None
) -> dict[str, Any]:
    """Return the metrics as a nested dict of floats; an undefined one is None, never 0 or NaN.

    Keys: `accuracy`, `balanced_accuracy` (mean recall over the classes present in the truth), `macro_f1`
    (mean over the classes present in truth or prediction), `auroc`, `average_precision`, `mcc`, and
    `per_class`, a list of {`precision`, `recall`, `f1`, `support`}. With `positive` also `sensitivity` and
    `specificity` of that class against the rest. The prediction is the argmax.

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
    truth, scores = _checked(labels, probabilities, positive=positive)
    values = _weighted_metrics(truth, scores, np.ones((1, len(truth))), positive=positive)
    flat = {key: _number(value[0]) for key, value in values.items()}
    return _nested(flat, support=np.bincount(truth, minlength=scores.shape[1]).tolist())


def bootstrap_intervals(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    positive: int | None,
    groups: Sequence[str] | npt.NDArray[np.str_] | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return percentile bootstrap intervals, (low, high) or None, under the keys of `classification_metrics`.

    Tiles are resampled with replacement within each true class, so the class counts stay as they are
    (`support` has no interval: None); with groups whole groups are, see `resamples`. A metric has no interval
    where it is undefined on the tiles themselves, or on more than 1 - level of the resamples. Without groups,
    tiles of one slide are treated as independent, so with several tiles a slide the intervals are too narrow; of
    one group alone there is nothing to draw, and no interval; and a class with no error (or with one tile) gets an
    interval of zero width: see `wilson_proportions`.

    Args:
        labels, probabilities, positive: as in `classification_metrics`.
        groups: slide, patient or cluster of near-duplicates of each tile, (N,), or None.
        samples: number of resamples, >= 1.
        seed: of the resampling; the same seed gives the same intervals.
        level: coverage, within 0..1 exclusive.

    Raises:
        ValueError: as `classification_metrics`; or samples or level out of range.

    Source: Efron & Tibshirani 1993, ch. 13 (percentile interval).
    """
    truth, scores = _checked(labels, probabilities, positive=positive)
    if samples < 1:
        raise ValueError(f"samples: {samples}, must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level: {level}, must lie between 0 and 1 (0.95 is usual)")
    chunks = [
        _weighted_metrics(truth, scores, weights, positive=positive)
        for weights in resamples(truth, groups=groups, samples=samples, seed=seed)
    ]
    point = _weighted_metrics(truth, scores, np.ones((1, len(truth))), positive=positive)
    alone = groups is not None and len(set(groups)) == 1
    flat: dict[str, tuple[float, float] | None] = {}
    for key in point:
        values = np.concatenate([chunk[key] for chunk in chunks])  # (S,)
        undefined = np.isnan(values)
        if alone or np.isnan(point[key][0]) or undefined.mean() > 1 - level:
            flat[key] = None
        else:
            low, high = np.quantile(values[~undefined], [(1 - level) / 2, (1 + level) / 2])
            flat[key] = (float(low), float(high))
    return _nested(flat, support=[None] * scores.shape[1])


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
    z = NormalDist().inv_cdf((1 + level) / 2)
    proportion = successes / total
    centre = (proportion + z * z / (2 * total)) / (1 + z * z / total)
    half_width = z / (1 + z * z / total) * ((proportion * (1 - proportion) + z * z / (4 * total)) / total) ** 0.5
    # At 0 and at all successes the bound is exactly 0 or 1; floating point misses it by one rounding.
    low = 0.0 if successes == 0 else centre - half_width
    high = 1.0 if successes == total else centre + half_width
    return low, high


def proportion(successes: int, total: int) -> dict[str, Any] | None:
    """Return {`count`, `of`, `value`, `wilson` (95%)} of a proportion; None of nothing."""
    if not total:
        return None
    return {
        "count": successes,
        "of": total,
        "value": successes / total,
        "wilson": wilson_interval(successes, total),
    }


def wilson_proportions(matrix: npt.ArrayLike, *, positive: int | None) -> dict[str, Any]:
    """Return every metric that is a share of tiles as its `proportion`, under the keys of `classification_metrics`.

    These are accuracy, sensitivity and specificity (with `positive`), and precision and recall in `per_class`. Unlike
    a bootstrap's, these intervals have a width where no tile is wrong.

    Args:
        matrix: counts (K, K), rows = truth, see `confusion_matrix`. positive: index of the positive class, or None.
    """
    counts = np.asarray(matrix)
    right, actual, called = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    found: dict[str, Any] = {"accuracy": proportion(int(right.sum()), int(counts.sum()))}
    if positive is not None:
        negatives = int(counts.sum() - actual[positive])
        false_alarms = int(called[positive] - right[positive])
        found["sensitivity"] = proportion(int(right[positive]), int(actual[positive]))
        found["specificity"] = proportion(negatives - false_alarms, negatives)
    found["per_class"] = [
        {"precision": proportion(int(r), int(c)), "recall": proportion(int(r), int(a))}
        for r, c, a in zip(right, called, actual, strict=True)
    ]
    return found


def accuracy_by_agreement(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, votes: npt.ArrayLike
) -> list[dict[str, Any]]:
    """Return accuracy by how many of the seven annotators agreed, from "7/7" down to "4/7".

    Each row is {`agreement`, `count`, `correct`, `accuracy`, `interval`}; the interval is Wilson's at 95%;
    accuracy and interval are None where no tile has that agreement.

    Args:
        labels, predictions: class indices, (N,).
        votes: annotators for the second class (SSA), 0..7, (N,).

    Raises:
        ValueError: the shapes differ, or a vote is no integer within 0..7.
    """
    truth, predicted = np.asarray(labels), np.asarray(predictions)
    vote = _class_indices(votes, name="votes", num_classes=ANNOTATORS + 1)
    if not truth.shape == predicted.shape == vote.shape:
        raise ValueError(
            f"labels, predictions and votes: shapes {truth.shape}, {predicted.shape} and {vote.shape}, must be equal"
        )
    agreeing = np.maximum(vote, ANNOTATORS - vote)
    right = truth == predicted
    rows: list[dict[str, Any]] = []
    for agreement in range(ANNOTATORS, ANNOTATORS // 2, -1):
        count = int((agreeing == agreement).sum())
        correct = int(right[agreeing == agreement].sum())
        rows.append(
            {
                "agreement": f"{agreement}/{ANNOTATORS}",
                "count": count,
                "correct": correct,
                "accuracy": correct / count if count else None,
                "interval": wilson_interval(correct, count) if count else None,
            }
        )
    return rows


def resamples(
    labels: IntArray, *, groups: Sequence[str] | npt.NDArray[np.str_] | None = None, samples: int, seed: int
) -> Iterator[FloatArray]:
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


def few_groups(groups: Sequence[str] | npt.NDArray[np.str_] | None) -> str | None:
    """Return a sentence where intervals from resampled groups rest on too few of them; else None."""
    count = len(set(groups)) if groups is not None else _ENOUGH_GROUPS
    if count >= _ENOUGH_GROUPS:
        return None
    if count == 1:
        return f"1 group ({GROUPS}) is all there is: an interval over groups has no width, or is not given"
    return f"{count} groups ({GROUPS}) are few to draw from: the intervals over them are too narrow"


def figures(labels: IntArray, predictions: IntArray, *, weights: FloatArray | None = None) -> FloatArray:
    """Return what `classification_metrics` says of predicted classes, in the order of FIGURES, (S, 3).

    Args:
        labels, predictions: class indices, (N,).
        weights: how often each tile counts, (S, N), see `resamples`; None = each once, S = 1.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    classes = int(max(labels.max(), predictions.max())) + 1
    right, actual, called = _counts(labels, predictions, weights, num_classes=classes)
    return np.stack(
        [
            right.sum(axis=1) / actual.sum(axis=1),
            _defined_mean(_ratio(right, actual)),
            _defined_mean(_ratio(2 * right, actual + called)),
        ],
        axis=1,
    )


def _weighted_metrics(
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

    ranking = [_ranking_metrics(truth == label, scores[:, label], weights) for label in range(classes)]
    if classes == 2 and positive is not None:
        auroc, average_precision = ranking[positive]
    else:
        auroc, average_precision = np.mean(ranking, axis=0)
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
    member = np.eye(num_classes)
    actual, right = member[truth], member[truth] * (truth == predicted)[:, None]
    return weights @ right, weights @ actual, weights @ member[predicted]


def _ranking_metrics(
    is_class: npt.NDArray[np.bool_], scores: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return AUROC and average precision of one class against the rest, (S,) each, under weights (S, N)."""
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


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Return numerator / denominator, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _defined_mean(values: FloatArray) -> FloatArray:
    """Return the mean over the classes (S, K) -> (S,), leaving out undefined ones."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _nested(flat: dict[str, Any], *, support: list[Any]) -> dict[str, Any]:
    """Return the public layout: scalar metrics, then `per_class`."""
    nested = {key: value for key, value in flat.items() if " " not in key}
    nested["per_class"] = [
        {key: flat[f"{key} {label}"] for key in ("precision", "recall", "f1")} | {"support": count}
        for label, count in enumerate(support)
    ]
    return nested


def _checked(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, positive: int | None
) -> tuple[IntArray, FloatArray]:
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"probabilities: shape {scores.shape}, must be (tiles, classes) with at least one of each")
    # Written so that NaN fails too.
    if not (scores.min() >= -1e-6 and scores.max() <= 1 + 1e-6):
        raise ValueError(
            f"probabilities: values from {scores.min():.4g} to {scores.max():.4g}, must be finite and "
            "within 0 to 1 (for logits apply softmax first)"
        )
    truth = _class_indices(labels, name="labels", num_classes=scores.shape[1])
    if len(truth) != len(scores):
        raise ValueError(f"labels and probabilities: {len(truth)} against {len(scores)} tiles, must be equally many")
    if positive is not None and not 0 <= positive < scores.shape[1]:
        raise ValueError(f"positive: {positive}, must be None or a class index 0 to {scores.shape[1] - 1}")
    return truth, scores


def _class_indices(values: npt.ArrayLike, *, name: str, num_classes: int) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name}: {array.dtype} of shape {array.shape}, must be a list of integers")
    if array.size and not (array.min() >= 0 and array.max() < num_classes):
        raise ValueError(f"{name}: values from {array.min()} to {array.max()}, must lie within 0 to {num_classes - 1}")
    return array.astype(np.int64)
