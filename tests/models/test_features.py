from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from sscl.data.tiles import place_store
from sscl.evaluate.probe import effective_rank, knn_accuracy
from sscl.models.features import batches, outputs

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])


def blobs(count: int, *, seed: int, classes: int = 3, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes + 2, (count,), generator=generator).clamp(max=classes - 1)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 1.3 * torch.randn(count, dim, generator=generator), labels


def sklearn_knn(bank, bank_labels, queries, query_labels, *, neighbours):
    """The same vote by scikit-learn: cosine distance d = 1 - similarity."""
    knn = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    knn.fit(bank.double().numpy(), bank_labels.numpy())
    return balanced_accuracy_score(query_labels.numpy(), knn.predict(queries.double().numpy()))


@pytest.mark.parametrize("neighbours", [1, 5, 20])
def test_knn_equals_scikit_learn(neighbours):
    bank, bank_labels = blobs(200, seed=0)
    queries, query_labels = blobs(90, seed=1)
    ours = knn_accuracy(bank, bank_labels, queries, query_labels, neighbours=neighbours)
    theirs = sklearn_knn(bank, bank_labels, queries, query_labels, neighbours=neighbours)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert 0.4 < ours < 0.95  # neither chance nor perfect, or the comparison would say little


def test_knn_weighs_neighbours_by_their_similarity():
    def at(degrees: float) -> list[float]:
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    bank = torch.tensor([at(5), at(60), at(-60)])
    labels = torch.tensor([0, 1, 1])
    # Two of three are of class 1, but far: exp(cos 5° / 0.07) is above 2 exp(cos 60° / 0.07).
    assert knn_accuracy(bank, labels, torch.tensor([at(0)]), torch.tensor([0]), neighbours=3) == 1.0


def test_knn_does_not_look_at_lengths_and_takes_what_neighbours_there_are():
    bank, bank_labels = blobs(40, seed=0)
    queries, query_labels = blobs(30, seed=1)
    scales = torch.rand(40, 1) + 0.1
    arguments = (bank_labels, 3 * queries, query_labels)
    plain = knn_accuracy(bank, bank_labels, queries, query_labels, neighbours=7)
    assert knn_accuracy(bank * scales, *arguments, neighbours=7) == pytest.approx(plain)
    everyone = knn_accuracy(bank, bank_labels, queries, query_labels, neighbours=40)
    assert knn_accuracy(bank, bank_labels, queries, query_labels, neighbours=999) == everyone


def test_knn_is_balanced_over_the_classes_that_are_asked_for():
    bank, bank_labels = torch.eye(3), torch.tensor([0, 1, 2])
    queries = torch.stack([torch.eye(3)[0]] * 9 + [torch.eye(3)[0]])
    labels = torch.tensor([0] * 9 + [1])  # class 2 is not among the queries
    assert knn_accuracy(bank, bank_labels, queries, labels, neighbours=1) == 0.5


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


# --- outputs ---


class Net(nn.Module):
    """Has what betrays a wrong mode or a wrong batch: batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


@pytest.fixture
def store():
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), dtype=np.uint8)
    return place_store(images, device="cpu", budget_gb=1)


ROWS = np.array([3, 0, 10, 7, 7, 1, 2], dtype=np.int64)


def test_outputs_are_the_models_on_clean_normalised_tiles(store):
    model = Net().eval()
    x = (torch.from_numpy(store.images[ROWS]).permute(0, 3, 1, 2).double() / 255 - MEAN.view(3, 1, 1)) / STD.view(
        3, 1, 1
    )
    with torch.no_grad():
        expected = model(x.float())
    found = outputs(model, store, ROWS, mean=MEAN, std=STD)
    assert found.shape == (7, 4)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.allclose(found, expected, atol=1e-5)


def test_outputs_are_computed_in_the_precision_asked_for(store):
    exact, rough = (outputs(Net(), store, ROWS, mean=MEAN, std=STD, precision=p) for p in ("fp32", "bf16"))
    assert rough.dtype == torch.float32
    assert not torch.allclose(rough, exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_outputs_do_not_depend_on_the_batch_size(store, batch_size):
    model = Net()
    found = outputs(model, store, ROWS, mean=MEAN, std=STD, batch_size=batch_size)
    assert torch.allclose(found, outputs(model, store, ROWS, mean=MEAN, std=STD), atol=1e-6)
    assert torch.equal(found[3], found[4])  # the same tile twice


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_leave_the_model_as_it_was(store, training, frozen):
    model = Net().train(training)
    if frozen:
        model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    outputs(model, store, ROWS, mean=MEAN, std=STD)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_outputs_leave_the_mode_even_after_a_failure(store):
    model = Net().train()
    with pytest.raises(IndexError):
        outputs(model, store, np.array([99]), mean=MEAN, std=STD)
    assert model.training


def test_outputs_that_are_not_numbers_say_what_to_do(store):
    model = Net()
    model.layers[0].weight.data[:] = torch.inf
    with pytest.raises(
        ValueError, match="outputs for 7 of 7 tiles are not finite numbers: its weights diverged; lower"
    ):
        outputs(model, store, ROWS, mean=MEAN, std=STD)


def test_batches_come_in_order():
    parts = list(batches(ROWS, batch_size=3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.cat(parts).tolist() == ROWS.tolist()


def test_the_mean_over_symmetries_is_the_same_to_the_last_bit_whichever_way_the_tiles_lie():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(100, 3))
    tiles = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)

    def found(images: np.ndarray, **options: bool) -> torch.Tensor:
        store = place_store(np.ascontiguousarray(images), device="cpu", budget_gb=1)
        return outputs(net, store, np.arange(5), mean=MEAN, std=STD, batch_size=3, **options)

    usual = found(tiles, symmetric=True)
    eight = [np.rot90(flipped, turns, (1, 2)) for flipped in (tiles, tiles[:, :, ::-1]) for turns in range(4)]
    assert len({image.tobytes() for image in eight}) == 8
    for image in eight:
        assert torch.equal(found(image, symmetric=True), usual)
        assert torch.allclose(found(image), usual) is False
    assert torch.allclose(torch.stack([found(image) for image in eight]).mean(0), usual, atol=1e-6)
