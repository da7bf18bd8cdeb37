"""Metrics, intervals and paired differences of a probe's runs, against scikit-learn and a naive bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from sscl.evaluate.bootstrap import bootstrap_intervals
from sscl.evaluate.probe_results import Found, Gain, Measured, RunFacts, differences, measure, summarise

SCORES = {
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
    "macro_f1": lambda labels, said: f1_score(labels, said, average="macro"),
}


def classifiers(count: int = 200, pairs: int = 3, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of unequal classes, and predictions that are right more often on our side."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.integers(0, 5, count), 2)
    noise = rng.integers(0, 3, (2, pairs, count))
    ours = np.where(rng.random((pairs, count)) < 0.8, labels, noise[0])
    theirs = np.where(rng.random((pairs, count)) < 0.6, labels, noise[1])
    return labels, ours, theirs


def measured(
    labels: np.ndarray, ours: Any, theirs: Any, *, groups: Any = None, samples: int = 200, seed: int = 0
) -> Measured:
    """A probe of two encoders, a seed for each row of predictions."""
    place = {"set": "s", "part": "test", "fraction": 1.0, "label_seed": 0, "labels": 9, "classifier": "linear"}
    found = Found(labels={("s", "test"): labels}, groups={("s", "test"): groups})
    for encoder, predictions in (("ours", ours), ("theirs", theirs)):
        for number, own in enumerate(predictions):
            found.runs.append(RunFacts(encoder=encoder, seed=number, **place))
            found.predictions.append(own)
    return measure(found, samples=samples, seed=seed)


def difference(labels: np.ndarray, ours: Any, theirs: Any, **options: Any) -> Gain:
    (row,) = differences(measured(labels, ours, theirs, **options), reference="theirs")
    return row


def gain(metric: str, labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> float:
    score = SCORES[metric]
    return float(np.mean([score(labels, a) - score(labels, b) for a, b in zip(ours, theirs, strict=True)]))


@pytest.mark.parametrize("metric", SCORES)
def test_differences_are_those_of_scikit_learn(metric):
    labels, ours, theirs = classifiers()
    found = difference(labels, ours, theirs)
    each = [gain(metric, labels, a[None], b[None]) for a, b in zip(ours, theirs, strict=True)]
    assert found.pairs == 3
    assert getattr(found, metric).values == pytest.approx(each)
    assert getattr(found, metric).mean == pytest.approx(np.mean(each))
    assert getattr(found, metric).sd == pytest.approx(np.std(each, ddof=1))
    assert getattr(difference(labels, ours[:1], theirs[:1]), metric).sd is None
    assert getattr(difference(labels, theirs, ours), metric).mean == pytest.approx(-getattr(found, metric).mean)


def counted(metric: str, labels: np.ndarray, said: np.ndarray) -> float:
    """Count class by class; scikit-learn's calls take 1 ms each."""
    found = []
    for one in np.unique(np.concatenate([labels, said])):
        right, there, called = (labels[said == one] == one).sum(), (labels == one).sum(), (said == one).sum()
        if metric == "macro_f1":
            found.append(2 * right / (there + called))
        elif there:
            found.append(right / there)
    return float(np.mean(found))


def naive_interval(metric, labels, ours, theirs, *, groups, samples: int) -> tuple[float, float]:
    """Draw tiles within each class, or whole groups, and count."""
    rng = np.random.default_rng(7)
    assert counted(metric, labels, ours[0]) == pytest.approx(SCORES[metric](labels, ours[0]))
    drawn = []
    for _ in range(samples):
        if groups is None:
            rows = np.concatenate(
                [rng.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in np.unique(labels)]
            )
        else:
            names = np.unique(groups)
            rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.choice(names, len(names))])
        pairs = [(a[rows], b[rows]) for a, b in zip(ours, theirs, strict=True)]
        drawn.append(np.mean([counted(metric, labels[rows], a) - counted(metric, labels[rows], b) for a, b in pairs]))
    return tuple(np.quantile(drawn, [0.025, 0.975]))


@pytest.mark.parametrize(("metric", "grouped"), [("balanced_accuracy", False), ("macro_f1", True)])
def test_the_interval_is_that_of_a_naive_bootstrap(metric, grouped):
    labels, ours, theirs = classifiers(120, 2)
    groups = np.random.default_rng(1).integers(0, 15, 120).astype(str) if grouped else None
    found = getattr(difference(labels, ours, theirs, groups=groups, samples=4000), metric).interval
    assert found == pytest.approx(naive_interval(metric, labels, ours, theirs, groups=groups, samples=400), abs=0.03)
    assert 0.1 < found[1] - found[0] < 0.4


def test_a_single_run_has_the_interval_of_metrics():
    labels, ours, theirs = classifiers(120, 1)
    found = measured(labels, ours, theirs, seed=4)
    expected = bootstrap_intervals(labels, np.eye(3)[ours[0]], positive=None, samples=200, seed=4)
    row = next(row for row in summarise(found) if row.encoder == "ours")
    for metric in SCORES:
        assert getattr(row, metric).interval == pytest.approx(getattr(expected, metric))


def test_several_runs_have_the_interval_of_their_mean():
    """Against the difference to a classifier that is always right, whose metrics no resample changes."""
    labels, ours, _ = classifiers(120, 3)
    found = measured(labels, ours, np.stack([labels] * 3))
    row = next(row for row in summarise(found) if row.encoder == "ours").balanced_accuracy
    (gained,) = differences(found, reference="theirs")
    low, high = gained.balanced_accuracy.interval
    assert row.interval == pytest.approx((1 + low, 1 + high))
    assert row.interval[0] < row.mean < row.interval[1]
    assert row.sd == pytest.approx(np.std(row.values, ddof=1))


def test_tiles_of_a_slide_that_agree_widen_all_intervals():
    copies = [np.repeat(values, 6, axis=-1) for values in classifiers(40, 1)]
    slides = np.repeat(np.arange(40), 6).astype(str)

    def widths(**options: Any) -> list[float]:
        found = measured(*copies, samples=1000, **options)
        (gained,) = differences(found, reference="theirs")
        intervals = [
            *(row.balanced_accuracy.interval for row in summarise(found)),
            gained.macro_f1.interval,
        ]
        return [high - low for low, high in intervals]

    assert all(whole > 1.7 * one for whole, one in zip(widths(groups=slides), widths(), strict=True))


def test_only_runs_of_the_same_labels_are_paired():
    """Of two seeds and two draws of the labels each run meets the one of its own seed and draw."""
    labels, ours, theirs = classifiers(pairs=4)
    place = {"set": "s", "part": "test", "fraction": 0.1, "labels": 9, "classifier": "linear"}
    found = Found(labels={("s", "test"): labels}, groups={("s", "test"): None})
    order = {"ours": [0, 1, 2, 3], "theirs": [3, 1, 0, 2]}
    for encoder, predictions in (("ours", ours), ("theirs", theirs)):
        for number in order[encoder]:
            found.runs.append(RunFacts(encoder=encoder, seed=number // 2, label_seed=number % 2, **place))
            found.predictions.append(predictions[number])
    (row,) = differences(measure(found, samples=20, seed=0), reference="theirs")
    assert row.resampled == "tiles of each class"
    expected = [accuracy_score(labels, a) - accuracy_score(labels, b) for a, b in zip(ours, theirs, strict=True)]
    assert row.accuracy.values == pytest.approx(expected)


def test_equal_predictions_differ_by_nothing():
    labels, ours, _ = classifiers()
    found = difference(labels, ours, ours).balanced_accuracy
    assert (found.mean, found.sd, found.interval) == (0, 0, (0, 0))


def test_a_resample_may_miss_a_class():
    labels = np.array([0, 0, 0, 1])
    groups = np.array(["a", "b", "c", "d"])
    found = difference(labels, labels[None], np.array([[0, 1, 0, 0]]), groups=groups, samples=500)
    assert np.isfinite(found.balanced_accuracy.interval).all()
