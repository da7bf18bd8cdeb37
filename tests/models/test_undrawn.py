"""Encoders built without random numbers, where memory that nobody filled holds NaN, and then loaded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sscl.config.published import PUBLISHED
from sscl.models.dry_run import state_of
from sscl.models.encoders import build_encoder
from sscl.models.undrawn import Undrawn

SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2}
OWN = ("resnet14_small", "resnet18_pathmnist", "efficientnet_lite0")
# With buffers that are in no file: positions that turn, windows that shift.
TIMM = {
    "timm:test_resnet": {},
    "timm:test_vit3": {},
    "timm:test_efficientnet": {},
    "timm:eva02_tiny_patch14_224": SMALL,
    "timm:swin_tiny_patch4_window7_224": {"depths": [2, 1, 1, 1], "embed_dim": 16, "num_heads": [1, 1, 1, 1]},
}


@pytest.fixture(autouse=True)
def _unfilled_is_nan(monkeypatch) -> Iterator[None]:
    # A deterministic run earlier in this process turns it off.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [*((name, {}) for name in OWN), *TIMM.items(), *((name, SMALL) for name in PUBLISHED)],
)
def test_all_comes_from_the_file_or_is_as_ever(name, kwargs):
    drawn = build_encoder(name, kwargs=kwargs)
    with Undrawn():
        ours = build_encoder(name, kwargs=kwargs)
    assert any(value.isnan().any() for value in ours.parameters())
    ours.load_state_dict(drawn.state_dict())
    found, expected = state_of(ours), state_of(drawn)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_tensors_that_are_no_parameters_are_filled():
    with Undrawn():
        filled = torch.nn.init.kaiming_uniform_(torch.empty(3, 3)), torch.empty(3).normal_()
    assert not any(tensor.isnan().any() for tensor in filled)
