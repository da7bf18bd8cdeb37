"""The head on frozen features: which view of a tile each epoch takes, and logistic regression as a linear layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sscl.config import FinetuneConfig
from sscl.train.frozen import FrozenFeatures
from sscl.train.logistic import fit_logistic


def config(**train: Any) -> FinetuneConfig:
    given = {"freeze_encoder": True, "head": "logistic", **train}
    return FinetuneConfig(run="run", data={"root": "nowhere"}, train=given)


def drawn(views: int, *, classes: int = 3) -> tuple[FrozenFeatures, np.ndarray, np.ndarray]:
    """Features far from standardised, 24 tiles a class."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), [24, 9, 15][:classes])
    centre = rng.normal(size=(classes, 5))[labels]
    x = (centre + rng.normal(size=(views, len(labels), 5))) * [1, 30, 0.01, 1, 0] + [0, 500, 3, -2, 7]
    held = rng.choice(len(labels), 12, replace=False)
    table, validation = torch.from_numpy(x).float(), torch.from_numpy(x[0, held]).float()
    return FrozenFeatures(table, np.arange(len(labels)), validation, by_tile=False), labels, labels[held]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_linear_layer_gives_the_probabilities_of_scikit_learn(classes: int, weighted: bool) -> None:
    found, labels, held = drawn(1, classes=classes)
    settings = config(loss="weighted_cross_entropy" if weighted else "cross_entropy", c_grid=(0.1,))
    fit = fit_logistic(settings, found, labels, held, num_classes=classes)
    regression = LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced" if weighted else None)
    x = found.views[0].double().numpy()
    theirs = make_pipeline(StandardScaler(), regression).fit(x, labels).predict_proba(x)
    logits = torch.nn.functional.linear(found.views[0], fit.head["weight"], fit.head["bias"])
    assert np.abs(logits.softmax(1).numpy() - theirs).max() < 1e-4
    assert torch.allclose(logits.sum(1), torch.zeros(len(labels)), atol=1e-2)  # each class has a score of its own


def test_views_that_are_equal_change_nothing_and_more_validation_accuracy_is_chosen() -> None:
    one, labels, held = drawn(1)
    many = FrozenFeatures(one.views.expand(4, -1, -1), one.rows, one.validation, by_tile=False)
    once = fit_logistic(config(), one, labels, held, num_classes=3)
    fourfold = fit_logistic(config(), many, labels, held, num_classes=3)
    assert once.chosen == fourfold.chosen
    assert torch.allclose(once.head["weight"], fourfold.head["weight"], rtol=1e-2, atol=1e-3)
    scores = [row["validation_balanced_accuracy"] for row in once.rows]
    assert once.chosen == scores.index(max(scores))
    assert [row["c"] for row in once.rows] == sorted(config().train.c_grid)


@pytest.mark.parametrize("by_tile", [False, True])
def test_an_epoch_takes_the_next_view_of_each_tile(by_tile: bool) -> None:
    rows = np.array([2, 5, 6])
    table = torch.arange(4)[:, None, None] * 100.0 + torch.from_numpy(rows)[:, None]  # (k, T, 1): view and tile
    found = FrozenFeatures(table, rows, table[0], by_tile=by_tile)
    order, repeats = np.array([[6, 2], [5, 6]]), np.array([[0, 0], [0, 1]])
    steps = torch.stack(list(found.steps(order, repeats, epoch=3, device=torch.device("cpu"))))[..., 0]
    which = (3 + repeats + (order if by_tile else 0)) % 4
    assert steps.tolist() == (100 * which + order).tolist()
