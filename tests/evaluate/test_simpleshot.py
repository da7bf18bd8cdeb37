"""SimpleShot against scikit-learn's NearestCentroid, and its intervals over draws and tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from sscl.evaluate.probe_shots import Labelled, ShotRun, shot_differences, shot_runs, summarise_shots
from sscl.evaluate.simpleshot import draw_shots, enough_tiles, simpleshot_predictions

CLASSES = ("a", "b", "c")


def blobs(counts: tuple[int, ...], *, seed: int, apart: float = 1.0) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    features = rng.normal(size=(len(labels), 8)) + 3
    features[np.arange(len(labels)), labels] += apart
    return Labelled(torch.tensor(features, dtype=torch.float32), labels)


def runs_of(train: Labelled, queries: Labelled, **options: Any) -> list[ShotRun]:
    given = {"classes": CLASSES, "shots": (1, 4, 16), "draws": 20, "encoder": "e", "seed": 0, "part": ("s", "test")}
    return shot_runs(train, queries, **{**given, **options})


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # its variances, of one tile a class
@pytest.mark.parametrize("shots", [1, 5])
def test_each_draw_is_the_nearest_centroid_of_scikit_learn(shots):
    train, queries = blobs((30, 20, 9), seed=0), blobs((40, 40, 40), seed=1)
    drawn = draw_shots(train.labels, np.arange(3), most=5, draws=7, seed=0)
    found = simpleshot_predictions(train.features, drawn, queries.features, shots=shots)
    centre = train.features.double().numpy().mean(0)
    bank, points = (normalize(one.features.double().numpy() - centre) for one in (train, queries))
    for draw in range(7):
        rows = np.concatenate([of[draw, :shots] for of in drawn])
        oracle = NearestCentroid().fit(bank[rows], train.labels[rows])
        np.testing.assert_array_equal(found[draw], oracle.predict(points))
    assert len({tuple(row) for row in found.tolist()}) > 3


def test_draws_are_of_each_class_without_repeats_and_the_same_each_time():
    labels = blobs((30, 20, 9), seed=0).labels
    drawn = draw_shots(labels, np.array([0, 2]), most=8, draws=50, seed=0)
    for of, label in zip(drawn, (0, 2), strict=True):
        assert of.shape == (50, 8)
        assert (labels[of] == label).all()
        assert all(len(set(row)) == 8 for row in of.tolist())
        assert len(set(of[:, 0].tolist())) > 5  # other tiles come first in other draws
    again = draw_shots(labels, np.array([0, 2]), most=8, draws=50, seed=0)
    np.testing.assert_array_equal(drawn[1], again[1])
    assert not np.array_equal(drawn[0], draw_shots(labels, np.array([0]), most=8, draws=50, seed=1)[0])


def test_more_shots_are_better_and_the_mean_is_that_of_the_draws():
    train, queries = blobs((60, 60, 60), seed=0), blobs((50, 50, 50), seed=1)
    runs = runs_of(train, queries)
    found = {row.shots: row for row in summarise_shots(runs)}
    assert found[1].balanced_accuracy.mean < found[4].balanced_accuracy.mean < found[16].balanced_accuracy.mean
    drawn = draw_shots(train.labels, np.arange(3), most=16, draws=20, seed=0)
    each = [
        balanced_accuracy_score(queries.labels, row)
        for row in simpleshot_predictions(train.features, drawn, queries.features, shots=4)
    ]
    row = found[4].balanced_accuracy
    assert (row.mean, row.sd) == (pytest.approx(np.mean(each)), pytest.approx(np.std(each, ddof=1)))
    assert row.values == (pytest.approx(np.mean(each)),)
    assert row.interval[0] < row.mean < row.interval[1]
    assert found[1].draws == 20


def test_the_interval_holds_draws_and_tiles():
    """Over other draws and other tiles of the same blobs the mean lies within."""
    train, queries = blobs((200, 200, 200), seed=0), blobs((60, 60, 60), seed=1)
    (run,) = runs_of(train, queries, shots=(1,), draws=100)
    (row,) = summarise_shots([run])
    low, high = row.balanced_accuracy.interval
    others = [
        run.values[1].mean()
        for seed in range(2, 22)
        for run in runs_of(
            blobs((200, 200, 200), seed=100 + seed), blobs((60, 60, 60), seed=seed), shots=(1,), draws=30
        )
    ]
    assert np.mean([low < value < high for value in others]) > 0.8
    spread = row.balanced_accuracy.sd / 10 * 2
    assert high - low > 2 * spread  # tiles add to it


def test_a_class_with_fewer_tiles_than_shots_is_left_out_with_its_queries():
    train, queries = blobs((30, 30, 5), seed=0), blobs((20, 20, 20), seed=1)
    assert enough_tiles(train.labels, shots=6, num_classes=3).tolist() == [0, 1]
    found = {run.place.shots: run for run in runs_of(train, queries)}
    assert {shots: run.left_out for shots, run in found.items()} == {1: (), 4: (), 16: ("c",)}
    assert len(found[16].means[0].influence) == 40
    assert [run.place.shots for run in runs_of(blobs((30, 3, 2), seed=0), queries)] == [1]


def test_differences_are_over_the_same_draws():
    queries = blobs((40, 40, 40), seed=1)
    runs = [
        run
        for name, apart in (("good", 2.0), ("poor", 0.5))
        for run in runs_of(blobs((30, 30, 30), seed=0, apart=apart), queries, encoder=name)
    ]
    good, poor = ({row.shots: row for row in summarise_shots(runs) if row.encoder == name} for name in ("good", "poor"))
    for row in shot_differences(runs, reference="poor"):
        assert row.encoder == "good"
        gap = good[row.shots].balanced_accuracy.mean - poor[row.shots].balanced_accuracy.mean
        assert row.balanced_accuracy.mean == pytest.approx(gap)
        assert row.balanced_accuracy.interval[0] < gap < row.balanced_accuracy.interval[1]
    seeds = [
        run
        for name, numbers in (("ours", (0, 1)), ("one", (0,)))
        for seed in numbers
        for run in runs_of(blobs((30, 30, 30), seed=seed), queries, encoder=name, seed=seed, shots=(4,))
    ]
    (row,) = shot_differences(seeds, reference="one")
    assert len(row.balanced_accuracy.values) == 2
    assert row.balanced_accuracy.values[0] == 0  # the same features
