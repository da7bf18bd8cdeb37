"""Batch-norm statistics re-estimated on other tiles."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sscl import augment
from sscl.data.tiles import place_store
from sscl.models.batch_norm import adapt_batch_norm
from sscl.models.encoders import build_encoder
from sscl.models.features import outputs

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])
OPTIONS = dict(mean=MEAN, std=STD)


def store_of(count: int, *, size_px: int = 16, seed: int = 0):
    """Tiles sorted by brightness, as tiles sorted by class are."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (count, size_px, size_px, 3)) + np.linspace(0, 190, count)[:, None, None, None]
    return place_store(images.astype(np.uint8), device="cpu", budget_gb=0)


def rows_of(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).mean((2, 3))


def encoder() -> Net:
    torch.manual_seed(0)
    return Net()


def inputs(store, rows) -> torch.Tensor:
    return augment.normalise(augment.to_unit(store.gather(torch.from_numpy(rows))), mean=MEAN, std=STD)


@pytest.mark.parametrize("batch_size", [4, 5, 12, 128])
def test_first_layer_has_the_statistics_of_one_big_batch(batch_size):
    net, store, rows = encoder(), store_of(14), np.array([0, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13])
    adapted = adapt_batch_norm(net, store, rows, batch_size=batch_size, **OPTIONS)
    with torch.no_grad():
        x = net.conv1(inputs(store, rows)).double()
    torch.testing.assert_close(adapted.bn1.running_mean.double(), x.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(adapted.bn1.running_var.double(), x.var((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_in_one_batch_it_is_torchs_own_update():
    torch.manual_seed(0)
    net, store, rows = build_encoder("resnet14_small"), store_of(10, size_px=32), rows_of(10)
    reference = copy.deepcopy(net).train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        reference(inputs(store, rows))
    adapted = adapt_batch_norm(net, store, rows, **OPTIONS)
    found, expected = adapted.state_dict(), reference.state_dict()
    for key in found:
        if "running" in key:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-5)


def test_the_original_is_untouched_and_the_copy_evaluates():
    net, store = encoder(), store_of(10)
    net.bn2.eval()  # a frozen part
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    adapted = adapt_batch_norm(net, store, rows_of(10), batch_size=4, **OPTIONS)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert not any(module.training for module in adapted.modules())
    assert not any(module._forward_pre_hooks for module in adapted.modules())
    weights = dict(adapted.named_parameters())
    assert all(torch.equal(value, weights[key]) for key, value in net.named_parameters())
    # What it is for: features of the new tiles come out centred, whatever the training tiles were.
    found = outputs(nn.Sequential(adapted.conv1, adapted.bn1), store, rows_of(10), **OPTIONS)
    assert found.mean((0, 2, 3)).abs().max() < 1e-3


def test_sorted_tiles_are_shuffled_the_same_way_each_time(wrap):
    net, store, rows = encoder(), store_of(64), rows_of(64)

    def deep(batch_size: int) -> torch.Tensor:
        return adapt_batch_norm(net, store, rows, batch_size=batch_size, **OPTIONS).bn2.running_mean

    whole, ours = deep(64), deep(16)
    assert torch.equal(ours, deep(16))
    wrap(batch_norm_order=lambda order, count, **_: np.arange(count))
    # In order, dark and light tiles come in batches of their own, and the second layer never sees them differ.
    assert (ours - whole).norm() < 0.4 * (deep(16) - whole).norm()


@pytest.mark.parametrize(("count", "batch_size"), [(9, 4), (5, 2), (7, 2), (13, 4), (3, 1)])
def test_a_last_batch_of_one_tile_is_shared_out(count, batch_size):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))  # fails on a batch of one
    store = store_of(count)
    adapted = adapt_batch_norm(net, store, rows_of(count), batch_size=batch_size, **OPTIONS)
    x = inputs(store, rows_of(count)).mean((2, 3))
    torch.testing.assert_close(adapted[2].running_mean, x.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapted[2].running_var, x.var(0), rtol=1e-4, atol=1e-5)


def test_the_precision_is_that_of_the_outputs_to_come():
    net, store, rows = encoder(), store_of(12), rows_of(12)
    exact, rough = (adapt_batch_norm(net, store, rows, precision=p, **OPTIONS).bn2 for p in ("fp32", "bf16"))
    assert not torch.allclose(rough.running_var, exact.running_var, rtol=1e-5, atol=0)
    torch.testing.assert_close(rough.running_var, exact.running_var, rtol=0.05, atol=1e-3)


def test_dropout_stays_off():
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3))
    store = store_of(6)
    adapted = adapt_batch_norm(net, store, rows_of(6), **OPTIONS)
    torch.testing.assert_close(adapted[1].running_mean, inputs(store, rows_of(6)).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_faults_are_named():
    store = store_of(4)
    for net in (nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))):
        with pytest.raises(ValueError, match="batch norm: the encoder has no batch-norm layer to adapt"):
            adapt_batch_norm(net, store, rows_of(4), **OPTIONS)
    with pytest.raises(ValueError, match="batch norm: got 1 tiles to adapt to, expected 2 or more"):
        adapt_batch_norm(encoder(), store, rows_of(1), **OPTIONS)
