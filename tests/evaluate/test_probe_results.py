"""Metrics, intervals and paired differences of a probe's runs, against scikit-learn and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from sscl.evaluate.comparison import side_by_side
from sscl.evaluate.intervals import Sample, draw_variance
from sscl.evaluate.metric_intervals import metric_intervals
from sscl.evaluate.predictions import TilePredictions
from sscl.evaluate.probe_results import (
    Found,
    Gain,
    Measured,
    RunFacts,
    differences,
    measure,
    summarise,
)
from sscl.evaluate.proportions import proportions_among

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


def measured(labels: np.ndarray, ours: Any, theirs: Any, *, groups: Any = None) -> Measured:
    """A probe of two encoders, a seed for each row of predictions."""
    place = {"set": "s", "part": "test", "fraction": 1.0, "label_seed": 0, "labels": 9, "classifier": "linear"}
    found = Found(labels={("s", "test"): labels}, groups={("s", "test"): groups})
    for encoder, predictions in (("ours", ours), ("theirs", theirs)):
        for number, own in enumerate(predictions):
            found.runs.append(RunFacts(encoder=encoder, seed=number, **place))
            found.predictions.append(own)
    return measure(found)


@pytest.mark.parametrize("per_group", [None, 1, 9])
@pytest.mark.parametrize("classes", [2, 12])
def test_every_command_gives_one_interval_of_one_metric(classes, per_group):
    """eval (and with it card, report and folds), compare and probe; also of 12 classes of which the last is absent."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, min(classes, 11), 180)
    scores = rng.random((180, classes)) + np.eye(classes)[labels]
    probabilities, groups = scores / scores.sum(1, keepdims=True), None
    if per_group is not None:
        groups = (np.arange(180) // per_group).astype(str)
    predictions = probabilities.argmax(1)
    expected = metric_intervals(labels, probabilities, positive=None, groups=groups)
    found = TilePredictions(
        ids=tuple(map(str, range(180))),
        classes=tuple(map(str, range(classes))),
        labels=labels,
        predictions=predictions,
        probabilities=probabilities,
        losses=np.ones(180),
        groups=None if groups is None else tuple(groups),
    )
    compared = side_by_side({"a": [found]}, against={}).rows["a"].runs[0].intervals
    probed = measured(labels, predictions[None], predictions[None], groups=groups)
    of_runs = probed.runs[0].intervals
    of_mean = summarise(probed)[0]
    for metric in SCORES:
        ends = pytest.approx(getattr(expected, metric), rel=1e-12)
        assert compared[metric] == ends
        assert of_runs[metric] == ends
        assert getattr(of_mean, metric).interval == ends
    sample = Sample.of(labels, classes=classes, groups=groups)
    everything = np.ones(180, dtype=bool)
    assert proportions_among({"x": (predictions == labels, everything)}, sample)["x"].interval == expected.accuracy


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


def test_a_single_run_has_the_interval_of_metrics():
    labels, ours, theirs = classifiers(120, 1)
    expected = metric_intervals(labels, np.eye(3)[ours[0]], positive=None)
    row = next(row for row in summarise(measured(labels, ours, theirs)) if row.encoder == "ours")
    for metric in SCORES:
        assert getattr(row, metric).interval == pytest.approx(getattr(expected, metric), abs=0.004)


def test_the_interval_of_a_mean_over_runs_holds_tiles_and_draws():
    """Accuracies of 2,000 tiles that differ from draw to draw more than tiles explain: the draws decide the width."""
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 3
    skills = (0.6, 0.7, 0.75, 0.85)
    ours = np.array([np.where(rng.random(2000) < skill, labels, (labels + 1) % 3) for skill in skills])
    found = next(row for row in summarise(measured(labels, ours, ours[:1])) if row.encoder == "ours").accuracy
    draws = stats.t.ppf(0.975, 3) * found.sd / 2
    assert draws < (found.interval[1] - found.interval[0]) / 2 < 1.1 * draws
    alone = measured(labels, ours, ours[:1]).runs[0].intervals["accuracy"]
    assert alone[1] - alone[0] < 0.3 * draws


def test_intervals_over_draws_and_tiles_hold_the_truth():
    """Three draws of the labels, on the same 200 tiles: over the tiles alone fewer than half would."""
    rng, held, alone = np.random.default_rng(0), [], []
    labels = np.zeros(200, dtype=np.int64)
    for _ in range(150):
        skills = 0.7 + 0.07 * rng.standard_normal(3)
        ours = (rng.random((3, 200)) > skills[:, None]).astype(np.int64)
        found = measured(labels, ours, ours[:1])
        row = next(row for row in summarise(found) if row.encoder == "ours").accuracy
        held.append(row.interval[0] <= 0.7 <= row.interval[1])
        low, high = found.runs[0].intervals["accuracy"]
        alone.append(abs(row.mean - 0.7) < (high - low) / 2 / np.sqrt(3))
    assert np.mean(held) > 0.9
    assert np.mean(alone) < 0.8


def test_seeds_and_label_seeds_each_add_their_variance():
    values, seeds = [1.0, 2.0, 4.0, 5.0], [(0, 0), (0, 1), (1, 0), (1, 1)]
    variance, freedom = draw_variance(values, seeds)
    assert variance == pytest.approx(np.var([1.5, 4.5], ddof=1) / 2 + np.var([2.5, 3.5], ddof=1) / 2)
    assert 1 < freedom < 2
    assert draw_variance([1.0, 1.5], [(0, 0), (0, 1)]) == (pytest.approx(0.0625), 1)
    assert draw_variance([1.0], [(0, 0)]) is None


def test_several_runs_have_the_interval_of_their_mean():
    labels, ours, _ = classifiers(120, 3)
    row = next(row for row in summarise(measured(labels, ours, ours)) if row.encoder == "ours").balanced_accuracy
    assert row.interval[0] < row.mean < row.interval[1]
    assert row.sd == pytest.approx(np.std(row.values, ddof=1))


def test_tiles_of_a_slide_that_agree_widen_all_intervals():
    copies = [np.repeat(values, 6, axis=-1) for values in classifiers(40, 1)]
    slides = np.repeat(np.arange(40), 6).astype(str)

    def widths(**options: Any) -> list[float]:
        found = measured(*copies, **options)
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
    (row,) = differences(measure(found), reference="theirs")
    expected = [accuracy_score(labels, a) - accuracy_score(labels, b) for a, b in zip(ours, theirs, strict=True)]
    assert row.accuracy.values == pytest.approx(expected)


def test_equal_predictions_differ_by_nothing():
    labels, ours, _ = classifiers()
    found = difference(labels, ours, ours).balanced_accuracy
    assert (found.mean, found.sd) == (0, 0)
    assert found.interval[0] == -found.interval[1]
    assert 0 < found.interval[1] < 0.04


def test_too_few_slides_have_no_interval():
    labels = np.array([0, 0, 0, 1])
    found = difference(labels, labels[None], np.array([[0, 1, 0, 0]]), groups=np.array(["a", "a", "c", "d"]))
    assert found.balanced_accuracy.interval is None
