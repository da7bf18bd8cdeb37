from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sscl.data.tiles import place_store
from sscl.models.features import batches, outputs

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])


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


def test_batches_come_in_order(store):
    parts = list(batches(store, ROWS, batch_size=3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert np.array_equal(torch.cat(parts).numpy(), store.images[ROWS])


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
