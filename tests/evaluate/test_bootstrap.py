from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sscl.evaluate import bootstrap
from sscl.evaluate.bootstrap import bootstrap_intervals, few_groups
from sscl.evaluate.metrics import OF_A_CLASS, OVERALL, classification_metrics, weighted_metrics


class TestBootstrap:
    @pytest.mark.parametrize(("classes", "positive"), [(2, 1), (5, None)])
    def test_each_resample_equals_scikit_learn_on_the_same_tiles(
        self, classes: int, positive: int | None, drawn: Any, sklearn_metrics: Any
    ) -> None:
        labels, probabilities = drawn(tiles=120, classes=classes, seed=5)
        assert len(np.unique(probabilities[:, 1])) < 15  # tied scores
        weights = np.concatenate(list(bootstrap.resamples(labels, samples=8, seed=1)))
        values = weighted_metrics(labels, probabilities, weights, positive=positive)
        for sample in range(8):
            tiles = np.repeat(np.arange(120), weights[sample].astype(int))
            theirs = sklearn_metrics(labels[tiles], probabilities[tiles], positive=positive)
            for key in theirs.keys() - {"per_class"}:
                assert values[key][sample] == pytest.approx(theirs[key], abs=1e-12), key
            for label, row in enumerate(theirs["per_class"]):
                for key in OF_A_CLASS:
                    assert values[f"{key} {label}"][sample] == pytest.approx(row[key], abs=1e-12)

    def test_intervals_are_the_quantiles_of_the_resamples(self, drawn: Any, sklearn_metrics: Any) -> None:
        labels, probabilities = drawn(tiles=80, classes=2)
        weights = np.concatenate(list(bootstrap.resamples(labels, samples=60, seed=7)))
        values = []
        for row in weights:
            tiles = np.repeat(np.arange(80), row.astype(int))
            values.append(sklearn_metrics(labels[tiles], probabilities[tiles], positive=1))
        intervals = bootstrap_intervals(labels, probabilities, positive=1, samples=60, seed=7, level=0.8)
        for key in (*OVERALL, "sensitivity", "specificity"):
            assert getattr(intervals, key) == pytest.approx(tuple(np.quantile([v[key] for v in values], [0.1, 0.9]))), (
                key
            )
        precision = [v["per_class"][0]["precision"] for v in values]
        assert intervals.per_class[0].precision == pytest.approx(tuple(np.quantile(precision, [0.1, 0.9])))

    def test_resamples_are_stratified_and_differ(self) -> None:
        labels = np.repeat([0, 1, 2], [1, 2, 40])
        weights = np.concatenate(list(bootstrap.resamples(labels, samples=300, seed=0)))
        for label, count in enumerate([1, 2, 40]):
            assert (weights[:, labels == label].sum(axis=1) == count).all()
        # Of two tiles each resample draws both (half the time) or one twice (a quarter each).
        pairs = weights[:, labels == 1][:, 0]
        assert 0.4 < np.mean(pairs == 1) < 0.6
        assert 0.15 < np.mean(pairs == 2) < 0.35
        assert len(np.unique(weights, axis=0)) > 290

    def test_classes_are_resampled_independently(self) -> None:
        labels = np.repeat([0, 1], 20)
        weights = np.concatenate(list(bootstrap.resamples(labels, samples=50, seed=0)))
        assert not np.array_equal(weights[:, :20], weights[:, 20:])

    def test_same_keys_as_the_point_values_which_lie_inside(self, drawn: Any) -> None:
        labels, probabilities = drawn(tiles=200, classes=3, decimals=6)
        point = classification_metrics(labels, probabilities, positive=None)
        intervals = bootstrap_intervals(labels, probabilities, positive=None, samples=300)
        for key in OVERALL:
            assert getattr(intervals, key)[0] < getattr(point, key) < getattr(intervals, key)[1]
        for row, interval in zip(point.per_class, intervals.per_class, strict=True):
            for key in OF_A_CLASS:
                assert getattr(interval, key)[0] < getattr(row, key) < getattr(interval, key)[1]

    def test_depends_on_the_seed_alone(self, number: Any, drawn: Any) -> None:
        labels, probabilities = drawn(tiles=101, classes=3)
        first = bootstrap_intervals(labels, probabilities, positive=None, samples=101, seed=4)
        assert first != bootstrap_intervals(labels, probabilities, positive=None, samples=101, seed=5)
        number(bootstrap_elements=1000)  # many small chunks instead of one
        assert first == bootstrap_intervals(labels, probabilities, positive=None, samples=101, seed=4)

    def test_a_wider_level_gives_wider_intervals(self, drawn: Any) -> None:
        labels, probabilities = drawn(tiles=100, classes=2)
        narrow = bootstrap_intervals(labels, probabilities, positive=1, samples=200, level=0.5).accuracy
        wide = bootstrap_intervals(labels, probabilities, positive=1, samples=200, level=0.95).accuracy
        assert wide[0] < narrow[0] < narrow[1] < wide[1]

    def test_covers_the_truth_about_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)
        labels = np.repeat([0, 1], 100)
        covered = 0
        for seed in range(200):
            right = rng.random(200) < 0.8
            predictions = np.where(right, labels, 1 - labels)
            intervals = bootstrap_intervals(labels, np.eye(2)[predictions], positive=1, samples=200, seed=seed)
            low, high = intervals.accuracy
            covered += low <= 0.8 <= high
        assert 180 <= covered <= 199

    def test_one_tile_of_a_class_has_an_interval_without_width(self) -> None:
        labels, probabilities = [0, 0, 0, 1], [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]]
        intervals = bootstrap_intervals(labels, probabilities, positive=1, samples=100)
        assert intervals.sensitivity == (1.0, 1.0)
        assert intervals.specificity[0] < intervals.specificity[1]

    def test_no_interval_where_many_resamples_leave_the_metric_undefined(self) -> None:
        # The only tile called 1 is left out of about a third of the resamples: no precision there.
        probabilities = [[0.9, 0.1]] * 5 + [[0.1, 0.9]]
        intervals = bootstrap_intervals([0, 0, 0, 1, 1, 1], probabilities, positive=1, samples=200)
        assert intervals.per_class[1].precision is None
        assert intervals.per_class[0].precision is not None

    def test_groups_are_drawn_whole(self, drawn: Any, sklearn_metrics: Any) -> None:
        labels, probabilities = drawn(tiles=90, classes=2, seed=2)
        groups = [f"slide {i % 9}" for i in range(90)]
        weights = np.concatenate(list(bootstrap.resamples(labels, groups=groups, samples=60, seed=7)))
        values = []
        for row in weights:
            tiles = np.repeat(np.arange(90), row.astype(int))
            values.append(sklearn_metrics(labels[tiles], probabilities[tiles], positive=1))
        intervals = bootstrap_intervals(labels, probabilities, positive=1, groups=groups, samples=60, seed=7)
        for key in (*OVERALL, "sensitivity", "specificity"):
            assert getattr(intervals, key) == pytest.approx(
                tuple(np.quantile([v[key] for v in values], [0.025, 0.975]))
            ), key

    @pytest.mark.parametrize("options", [{"samples": 0}, {"level": 1.0}, {"level": 0.0}])
    def test_refuses_impossible_options(self, options: dict) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            bootstrap_intervals([0, 1], np.eye(2), positive=1, **options)


def test_resamples_of_groups_draw_them_whole() -> None:
    labels = np.random.default_rng(1).integers(0, 3, 60)
    groups = [f"slide {i // 5}" for i in range(60)]
    weights = np.concatenate(list(bootstrap.resamples(labels, groups=groups, samples=250, seed=0)))
    assert weights.shape == (250, 60)
    assert (weights.reshape(250, 12, 5) == weights.reshape(250, 12, 5)[:, :, :1]).all()  # tiles of a slide go together
    assert (weights.sum(1) == 60).all()
    assert len(np.unique(weights[:, 0])) > 2


@pytest.mark.parametrize("groups", [None, [str(i // 5) for i in range(60)]])
def test_the_same_seed_gives_the_same_resamples_whatever_the_chunks(groups, number) -> None:
    labels = np.random.default_rng(1).integers(0, 3, 60)

    def resamples(seed: int) -> np.ndarray:
        return np.concatenate(list(bootstrap.resamples(labels, groups=groups, samples=50, seed=seed)))

    first = resamples(0)
    number(bootstrap_elements=7 * 60)
    assert (resamples(0) == first).all()
    assert not (resamples(1) == first).all()


def test_few_groups_are_told() -> None:
    assert few_groups(None) is few_groups([str(i % 10) for i in range(40)]) is None
    assert few_groups([str(i % 9) for i in range(40)]).count("9 groups (slides, patients or")
    assert few_groups(["one"] * 40).count("1 group (slides, patients or")


def test_one_group_alone_gives_no_interval() -> None:
    labels, scores = np.arange(40) % 2, np.random.default_rng(0).dirichlet((1, 1), 40)
    one = bootstrap_intervals(labels, scores, positive=1, groups=["slide"] * 40, samples=50)
    two = bootstrap_intervals(labels, scores, positive=1, groups=["slide"] * 20 + ["other"] * 20, samples=50)
    assert one.accuracy is one.auroc is one.per_class[0].recall is None
    assert two.accuracy is not None
