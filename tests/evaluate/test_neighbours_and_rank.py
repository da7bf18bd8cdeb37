"""k-NN accuracy and effective rank of embeddings, against scikit-learn and the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from sscl.evaluate.probe import effective_rank, knn_predictions


def blobs(count: int, *, seed: int, classes: int = 3, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes + 2, (count,), generator=generator).clamp(max=classes - 1)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 1.3 * torch.randn(count, dim, generator=generator), labels


def sklearn_knn(bank, bank_labels, queries, *, neighbours):
    """The same vote by scikit-learn: cosine distance d = 1 - similarity."""
    knn = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    knn.fit(bank.double().numpy(), bank_labels.numpy())
    return knn.predict(queries.double().numpy())


@pytest.mark.parametrize("neighbours", [1, 5, 20])
def test_knn_equals_scikit_learn(neighbours):
    bank, bank_labels = blobs(200, seed=0)
    queries, query_labels = blobs(90, seed=1)
    ours = knn_predictions(bank, bank_labels, queries, neighbours=neighbours)
    assert (ours == sklearn_knn(bank, bank_labels, queries, neighbours=neighbours)).all()
    assert 0.4 < (ours == query_labels.numpy()).mean() < 0.95  # neither chance nor perfect, or this would say little


def test_knn_weighs_neighbours_by_their_similarity():
    def at(degrees: float) -> list[float]:
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    bank = torch.tensor([at(5), at(60), at(-60)])
    labels = torch.tensor([0, 1, 1])
    # Two of three are of class 1, but far: exp(cos 5° / 0.07) is above 2 exp(cos 60° / 0.07).
    assert knn_predictions(bank, labels, torch.tensor([at(0)]), neighbours=3).tolist() == [0]


def test_knn_does_not_look_at_lengths_and_takes_what_neighbours_there_are():
    bank, bank_labels = blobs(40, seed=0)
    queries, _ = blobs(30, seed=1)
    scales = torch.rand(40, 1) + 0.1
    plain = knn_predictions(bank, bank_labels, queries, neighbours=7)
    assert (knn_predictions(bank * scales, bank_labels, 3 * queries, neighbours=7) == plain).all()
    everyone = knn_predictions(bank, bank_labels, queries, neighbours=40)
    assert (knn_predictions(bank, bank_labels, queries, neighbours=999) == everyone).all()


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_effective_rank_of_equal_directions_is_their_number(dim):
    both = torch.cat([torch.eye(dim), -torch.eye(dim)])  # the mean is zero, every singular value the same
    assert effective_rank(both) == pytest.approx(dim, abs=1e-6)
    rotation, _ = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(0)))
    assert effective_rank(5 * both @ rotation[:dim] + 3) == pytest.approx(dim, abs=1e-4)


def test_effective_rank_of_one_direction_and_of_none():
    line = torch.linspace(-1, 2, 9)[:, None] * torch.tensor([[1.0, -2.0, 0.5]])
    assert effective_rank(line + 7) == pytest.approx(1, abs=1e-5)
    assert effective_rank(torch.ones(5, 3)) == 1.0


def test_effective_rank_against_the_formula():
    values = np.linalg.svd(np.diag([4.0, 2.0, 1.0]))[1]
    share = values / values.sum()
    expected = math.exp(-sum(p * math.log(p) for p in share))
    rows = torch.tensor([[4.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0]])
    assert effective_rank(torch.cat([rows, -rows])) == pytest.approx(expected, rel=1e-6)
    assert 1 < expected < 3
