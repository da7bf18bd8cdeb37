from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from sscl import paired
from sscl.paired import balanced_accuracy_difference


def classifiers(count: int = 200, pairs: int = 3, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of unequal classes, and predictions that are right more often on our side."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.integers(0, 5, count), 2)
    noise = rng.integers(0, 3, (2, pairs, count))
    ours = np.where(rng.random((pairs, count)) < 0.8, labels, noise[0])
    theirs = np.where(rng.random((pairs, count)) < 0.6, labels, noise[1])
    return labels, ours, theirs


def gain(labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> float:
    scores = [
        balanced_accuracy_score(labels, a) - balanced_accuracy_score(labels, b)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return float(np.mean(scores))


def test_differences_are_those_of_scikit_learn():
    labels, ours, theirs = classifiers()
    found = balanced_accuracy_difference(labels, ours, theirs, samples=10)
    each = [gain(labels, a[None], b[None]) for a, b in zip(ours, theirs, strict=True)]
    assert found["values"] == pytest.approx(each)
    assert found["mean"] == pytest.approx(np.mean(each))
    assert found["sd"] == pytest.approx(np.std(each, ddof=1))
    assert balanced_accuracy_difference(labels, ours[:1], theirs[:1], samples=10)["sd"] is None
    swapped = balanced_accuracy_difference(labels, theirs, ours, samples=10)
    assert swapped["mean"] == pytest.approx(-found["mean"])


def naive_interval(labels, ours, theirs, *, groups, samples: int) -> tuple[float, float]:
    """Draw tiles within each class, or whole groups, and measure with scikit-learn."""
    rng = np.random.default_rng(7)
    drawn = []
    for _ in range(samples):
        if groups is None:
            rows = np.concatenate(
                [rng.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in np.unique(labels)]
            )
        else:
            names = np.unique(groups)
            rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.choice(names, len(names))])
        drawn.append(gain(labels[rows], ours[:, rows], theirs[:, rows]))
    return tuple(np.quantile(drawn, [0.025, 0.975]))


@pytest.mark.parametrize("grouped", [False, True])
def test_the_interval_is_that_of_a_naive_bootstrap(grouped):
    labels, ours, theirs = classifiers(120, 2)
    groups = np.random.default_rng(1).integers(0, 15, 120).astype(str) if grouped else None
    found = balanced_accuracy_difference(labels, ours, theirs, groups=groups, samples=4000)["interval"]
    assert found == pytest.approx(naive_interval(labels, ours, theirs, groups=groups, samples=400), abs=0.03)
    assert 0.1 < found[1] - found[0] < 0.4


def test_tiles_of_a_slide_that_agree_widen_the_interval():
    labels, ours, theirs = classifiers(40, 1)
    copies = [np.repeat(values, 6, axis=-1) for values in (labels, ours, theirs)]
    slides = np.repeat(np.arange(40), 6).astype(str)
    one_by_one = balanced_accuracy_difference(*copies, samples=2000)["interval"]
    whole = balanced_accuracy_difference(*copies, groups=slides, samples=2000)["interval"]
    assert whole[1] - whole[0] > 2 * (one_by_one[1] - one_by_one[0])


def test_equal_predictions_differ_by_nothing():
    labels, ours, _ = classifiers()
    found = balanced_accuracy_difference(labels, ours, ours)
    assert (found["mean"], found["sd"], found["interval"]) == (0, 0, (0, 0))


def test_the_same_seed_gives_the_same_interval_whatever_the_chunks(monkeypatch):
    labels, ours, theirs = classifiers()
    first = balanced_accuracy_difference(labels, ours, theirs, samples=300)
    monkeypatch.setattr(paired, "_CHUNK_ELEMENTS", 7 * len(labels))
    assert balanced_accuracy_difference(labels, ours, theirs, samples=300) == first
    assert balanced_accuracy_difference(labels, ours, theirs, samples=300, seed=1) != first


def test_a_resample_may_miss_a_class():
    labels = np.array([0, 0, 0, 1])
    found = balanced_accuracy_difference(
        labels, labels[None], np.array([[0, 1, 0, 0]]), groups=np.array(["a", "b", "c", "d"]), samples=500
    )
    assert np.isfinite(found["interval"]).all()


@pytest.mark.parametrize("shape", [(2, 9), (3, 8)])
def test_refuses_shapes_that_do_not_agree(shape):
    labels, ours, _ = classifiers(9, 3)
    with pytest.raises(ValueError, match=r"labels, ours and theirs: shapes \(9,\), \(3, 9\) and"):
        balanced_accuracy_difference(labels, ours, np.zeros(shape, dtype=np.int64))
