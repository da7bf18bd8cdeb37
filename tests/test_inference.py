"""A classifier is applied without waiting for the device (on fake CUDA tensors), and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sscl.data.tiles import TileStore
from sscl.explain.heatmaps import heatmaps
from sscl.explain.kinds import MapKind
from sscl.explain.targets import DIFFERENCE
from sscl.models import build_encoder, features
from sscl.models.classifier import inference_precision
from sscl.models.encoders import Encoder
from sscl.models.heads import Classifier

CUDA = torch.device("cuda")
aten = torch.ops.aten
WAITING = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for the device: values read, and copies that are not queued."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.dtypes: list[torch.dtype] = []  # of the convolutions
        self.batches: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if func in WAITING and any(x.device.type == "cuda" for x in given):
            self.found.append(str(func))
        if func is aten.copy_.default and args[0].device != args[1].device and not (len(args) > 2 and args[2]):
            self.found.append(f"{func} {args[1].device} to {args[0].device}")
        if func is aten._to_copy.default and out.device != args[0].device and not kwargs.get("non_blocking"):
            self.found.append(f"{func} {args[0].device} to {out.device}")
        if func in (aten.convolution.default, aten.conv2d.default):  # the second in inference mode
            self.dtypes.append(args[0].dtype)
            self.batches.append(len(args[0]))
        return out


class Read(TileStore):
    """A store that is not on the device; reading into fake memory is left out."""

    def _read(self, rows: NDArray[np.int64], batch: torch.Tensor) -> torch.Tensor:
        return batch


class Event:
    """Stands for a CUDA event; what is waited for last is waited for at the end."""

    recorded: list[Event]

    def __init__(self) -> None:
        self.behind: int | None = None

    def record(self, stream: object) -> None:
        self.recorded.append(self)

    def synchronize(self) -> None:
        self.behind = len(self.recorded) - self.recorded.index(self) - 1


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda device: None)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(features, "check_finite", lambda found: None)  # fake tensors have no values
    # The engine of autograd looks for the GPU's driver.
    monkeypatch.setattr(torch.autograd, "grad", lambda score, features, **_: [torch.empty_like(f) for f in features])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    Event.recorded = []
    return Event.recorded


@contextmanager
def fake_cuda() -> Iterator[Waits]:
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        yield waits


class Small(Encoder):
    """Two convolutions: each operation on a fake tensor takes a millisecond."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.net(x)
        return maps


def fake_classifier() -> tuple[Classifier, dict[str, torch.Tensor]]:
    model = Classifier(Small(), num_classes=2).eval()
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.empty(value.shape, device="cuda"))
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
    return model, {"mean": torch.empty(3, device="cuda"), "std": torch.empty(3, device="cuda")}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("resident", [True, False])
def test_outputs_of_a_set_wait_for_batches_before(events: list[Event], symmetric: bool, resident: bool) -> None:
    with fake_cuda() as waits:
        model, pixels = fake_classifier()
        tiles = torch.empty((21, 16, 16, 3), dtype=torch.uint8, device="cuda")
        store = TileStore(tiles, device=CUDA) if resident else Read(np.zeros((21, 16, 16, 3), np.uint8), device=CUDA)
        found = features.outputs(
            model, store, np.arange(21), batch_size=4, precision="bf16", symmetric=symmetric, **pixels
        )
    assert found.shape == (21, 2)
    assert found.device.type == "cpu"
    assert waits.found == []
    assert set(waits.dtypes) == {torch.bfloat16}
    assert set(waits.batches) == {4}  # also the last one, of a single tile
    assert [event.behind for event in events] == [2, 2, 2, 2, 1, 0][: len(events)]
    assert len(events) == 6


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "hirescam"])
def test_maps_wait_for_the_batch_before_and_are_computed_in_float32(events: list[Event], method: str) -> None:
    with fake_cuda() as waits:
        model, pixels = fake_classifier()
        store = TileStore(torch.empty((6, 16, 16, 3), dtype=torch.uint8, device="cuda"), device=CUDA)
        batches = heatmaps(model, store, np.arange(6), target=DIFFERENCE, kind=MapKind(method), batch_size=2, **pixels)
        started = []
        # The values of fake tensors cannot be read, so it stops at the first batch that would be.
        with pytest.raises(Exception, match=r"(?i)fake|numpy|data"):
            started += list(batches)
    assert not started
    assert waits.found == []
    assert set(waits.dtypes) == {torch.float32}
    assert waits.batches.count(2) == len(waits.batches)
    copies = 5 if method in ("gradcam", "hirescam") else 3
    assert len(events) == 2 * copies  # of two batches, before the first is looked at


def test_logits_under_autocast_are_as_fine_as_float32() -> None:
    """The head in bf16 would round them to 8 bits: 0.5 apart at 100."""
    torch.manual_seed(0)
    model = Classifier(build_encoder("resnet14_small"), num_classes=2).eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        maps = model.forward_features(torch.rand(8, 3, 32, 32))
        logits = model.forward_head(maps)
    assert maps.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    exact = maps.double().mean((2, 3)) @ model.head.weight.double().T + model.head.bias.double()
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("wanted", "device", "fitted", "expected"),
    [
        ("auto", "cpu", "bf16", "fp32"),
        ("bf16", "cpu", "fp32", "bf16"),
        ("auto", "cuda", "bf16", "bf16"),
        ("auto", "cuda", "fp32", "fp32"),
        ("fp32", "cuda", "bf16", "fp32"),
    ],
)
def test_a_classifier_is_applied_in_the_precision_it_was_fitted_in(
    with_cards: Any, wanted: str, device: str, fitted: str, expected: str
) -> None:
    with_cards((8, 0))
    assert inference_precision(wanted, torch.device(device), fitted=fitted) == expected


def test_a_card_without_the_precision_it_was_fitted_in_takes_its_own(with_cards: Any) -> None:
    with_cards((7, 5), names=["T4"])
    assert inference_precision("auto", CUDA, fitted="bf16") == "fp16"
    with pytest.raises(ValueError, match="precision: bf16"):
        inference_precision("bf16", CUDA, fitted="bf16")
