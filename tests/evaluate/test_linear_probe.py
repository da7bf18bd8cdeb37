"""The linear probe, its validation folds, the kNN's votes and the cache of features."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sscl.evaluate.probe import fit_linear_probe, knn_probabilities, validation_folds

GRID = (1e-3, 1e-2, 0.1, 1.0, 10.0)


def blobs(count: int, *, seed: int, classes: int = 3, dim: int = 12) -> tuple[torch.Tensor, np.ndarray]:
    """Overlapping classes of unequal size, features of very different scales."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.integers(0, classes + 2, count), classes - 1)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    scales = np.logspace(-2, 2, dim)
    return torch.from_numpy((centres[labels] + 1.5 * rng.normal(size=(count, dim))) * scales).float(), labels


def reference(x: torch.Tensor, y: np.ndarray, *, c: float):
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000, tol=1e-6)).fit(x.double().numpy(), y)


class TestLinearProbe:
    def test_equals_scikit_learn_step_by_step(self):
        x, y = blobs(300, seed=0)
        queries, truth = blobs(200, seed=1)
        folds, how = validation_folds(y, fraction=0.2, seed=3)
        assert how == "carved"
        ((train, held),) = folds
        probe = fit_linear_probe(x, y, folds=folds, grid=GRID[::-1])

        expected = {
            c: balanced_accuracy_score(y[held], reference(x[train], y[train], c=c).predict(x[held].double().numpy()))
            for c in GRID
        }
        assert probe.scores == pytest.approx(expected)
        assert len(set(probe.scores.values())) > 2  # else nothing was chosen
        assert probe.c == min(c for c in GRID if expected[c] == max(expected.values()))
        theirs = reference(x, y, c=probe.c).predict_proba(queries.double().numpy())
        ours = probe.probabilities(queries, num_classes=3)
        np.testing.assert_allclose(ours, theirs, atol=2e-3)  # tol of L-BFGS
        assert 0.5 < balanced_accuracy_score(truth, ours.argmax(1)) < 0.98
        assert (probe.fits, probe.unconverged) == (len(GRID) + 1, 0)

    def test_two_classes_and_a_class_never_seen(self):
        x, y = blobs(120, seed=0, classes=2)
        labels = np.where(y == 1, 3, 1)  # classes 1 and 3 of 5
        probe = fit_linear_probe(x, labels, folds=[], grid=GRID)
        found = probe.probabilities(x, num_classes=5)
        np.testing.assert_allclose(found.sum(1), 1)
        assert not found[:, [0, 2, 4]].any()
        np.testing.assert_allclose(found[:, [1, 3]], reference(x, y, c=1.0).predict_proba(x.double()), atol=2e-3)

    def test_a_tie_takes_the_strongest_penalty(self):
        x = torch.tensor([[-1.0], [-2.0], [-3.0], [1.0], [2.0], [3.0]])
        y = np.array([0, 0, 0, 1, 1, 1])
        probe = fit_linear_probe(x, y, folds=[(np.array([0, 1, 3, 4]), np.array([2, 5]))], grid=GRID)
        assert set(probe.scores.values()) == {1.0}
        assert probe.c == min(GRID)

    def test_validation_neither_scales_nor_fits_the_fold(self):
        x, y = blobs(200, seed=0)
        train, held = np.arange(150), np.arange(150, 200)
        a = fit_linear_probe(x, y, folds=[(train, held)], grid=GRID, rows=train)
        moved = x.clone()
        moved[held] = x[held].flip(0) * 7
        b = fit_linear_probe(moved, y, folds=[(train, held)], grid=[a.c], rows=train)
        np.testing.assert_array_equal(a.scaler.mean_, b.scaler.mean_)
        np.testing.assert_array_equal(a.regression.coef_, b.regression.coef_)
        assert a.scores[a.c] != b.scores[a.c]

    def test_an_outlier_in_validation_does_not_scale_the_fold(self):
        x = torch.tensor([-1.0] * 12 + [1.0] * 6 + [-1.0] * 5 + [1.0] * 5 + [1e6])[:, None]
        y = np.array([0] * 12 + [1] * 6 + [0] * 5 + [1] * 6)
        # Scaled by the outlier too, -1 and 1 would be one value, and all tiles of the larger class.
        probe = fit_linear_probe(x, y, folds=[(np.arange(18), np.arange(18, 29))], grid=[0.1], rows=np.arange(18))
        assert probe.scores == {0.1: 1.0}

    def test_without_folds_c_is_the_nearest_to_one(self):
        x, y = blobs(60, seed=0)
        probe = fit_linear_probe(x, y, folds=[], grid=(1e-3, 0.2, 30.0))
        assert (probe.c, probe.scores, probe.fits) == (0.2, {}, 1)

    def test_fits_that_do_not_converge_are_counted_not_shouted(self):
        x, y = blobs(200, seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            folds, _ = validation_folds(y, fraction=0.2, seed=0)
            probe = fit_linear_probe(x, y, folds=folds, grid=(1e-4, 1e3), max_iterations=3)
        assert probe.fits == 3
        assert probe.unconverged >= 1

    def test_a_feature_without_spread_does_no_harm(self):
        x, y = blobs(100, seed=0)
        x = torch.cat([x, torch.full((100, 1), 3.0)], 1)
        assert np.isfinite(fit_linear_probe(x, y, folds=[], grid=GRID).probabilities(x, num_classes=3)).all()


class TestValidationFolds:
    def test_carved_within_every_class(self):
        y = np.array([0] * 40 + [1] * 10)
        ((train, held),), how = validation_folds(y, fraction=0.2, seed=0)
        assert how == "carved"
        assert np.bincount(y[held]).tolist() == [8, 2]
        assert sorted([*train, *held]) == list(range(50))
        assert not np.array_equal(held, validation_folds(y, fraction=0.2, seed=1)[0][0][1])

    def test_no_group_on_both_sides(self):
        y = np.tile([0, 1], 30)
        groups = np.repeat([f"slide{i}" for i in range(10)], 6)
        ((train, held),), how = validation_folds(y, fraction=0.2, seed=0, groups=groups)
        assert how == "carved by group"
        assert not set(groups[train]) & set(groups[held])
        drawn = {tuple(validation_folds(y, fraction=0.2, seed=s, groups=groups)[0][0][1]) for s in range(5)}
        assert len(drawn) > 1

    def test_one_group_a_class_is_carved_by_tiles(self):
        y = np.repeat([0, 1], 20)
        _, how = validation_folds(y, fraction=0.2, seed=0, groups=y.astype(str))
        assert how == "carved"

    @pytest.mark.parametrize(("rarest", "folds"), [(2, 2), (4, 4)])
    def test_too_few_labels_give_folds(self, rarest, folds):
        y = np.array([0] * 30 + [1] * rarest)
        pairs, how = validation_folds(y, fraction=0.1, seed=0)
        assert (how, len(pairs)) == (f"{folds}-fold", folds)
        assert sorted(np.concatenate([held for _, held in pairs])) == list(range(len(y)))
        for train, held in pairs:
            assert not set(train) & set(held)
            assert set(y[train]) == set(y[held]) == {0, 1}
        other, _ = validation_folds(y, fraction=0.1, seed=1)
        assert not np.array_equal(pairs[0][1], other[0][1])

    def test_a_single_tile_is_always_fitted(self):
        y = np.array([0] * 6 + [1] * 6 + [2])
        pairs, how = validation_folds(y, fraction=0.2, seed=0)
        assert how == "5-fold"
        for train, held in pairs:
            assert 12 in train
            assert 12 not in held
        assert validation_folds(np.array([0, 1, 2]), fraction=0.2, seed=0) == ([], "none")


@pytest.mark.parametrize("neighbours", [1, 20, 500])
def test_votes_equal_scikit_learn(neighbours, number):
    number(knn_queries=32)  # several parts, the last one shorter
    bank, labels = blobs(200, seed=0)
    queries, _ = blobs(70, seed=1)
    knn = KNeighborsClassifier(
        min(neighbours, 200), metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(bank.double().numpy(), labels)
    ours = knn_probabilities(bank, torch.from_numpy(labels), queries, neighbours=neighbours, num_classes=4)
    assert ours.shape == (70, 4)
    assert not ours[:, 3].any()
    np.testing.assert_allclose(ours[:, :3], knn.predict_proba(queries.double().numpy()), atol=1e-4)
