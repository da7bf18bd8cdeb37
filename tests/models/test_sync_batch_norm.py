"""Batch norm over ranks on fake CUDA tensors and in a fake group of two; tests/test_ranks.py has its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torch.distributed as td
from torch import nn
from torch._subclasses import fake_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from sscl.models.sync_batch_norm import BatchNormOverRanks, synchronise_batch_norm


@pytest.fixture
def two_fake_ranks() -> Iterator[None]:
    td.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    td.destroy_process_group()


@pytest.fixture
def shapes_of_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The shapes that torch's kernels for GPUs return, which torch itself does not know."""

    def channels(x: torch.Tensor) -> torch.Tensor:
        return torch.empty(x.shape[1], device=x.device)  # float32, whatever x is

    def stats(x: Any, eps: Any) -> Any:
        return channels(x), channels(x)

    def gather(x: Any, mean: Any, invstd: Any, running_mean: Any, running_var: Any, m: Any, eps: Any, n: Any) -> Any:
        assert n.dtype == running_mean.dtype
        assert mean.shape == invstd.shape == (2, x.shape[1])
        return channels(x), channels(x)

    def reduce(grad: Any, x: Any, mean: Any, invstd: Any, weight: Any, *wanted: bool) -> Any:
        return tuple(channels(x) for _ in range(4))

    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name, shape in {
        "batch_norm_stats": stats,
        "batch_norm_gather_stats_with_counts": gather,
        "batch_norm_elemt": lambda x, *rest: torch.empty_like(x),
        "batch_norm_backward_reduce": reduce,
        "batch_norm_backward_elemt": lambda grad, x, *rest: torch.empty_like(x),
    }.items():
        library.impl(name, shape, "Meta")
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda device: None)
    yield
    library._destroy()


NORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean of all batches": {"momentum": None},
    "untracked": {"track_running_stats": False},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", NORMS)
def test_on_a_gpu_it_waits_for_nothing(
    two_fake_ranks: None, shapes_of_kernels: None, kind: str, dtype: torch.dtype
) -> None:
    """A fake tensor has no value: reading one, or a shape that depends on one, raises."""
    with fake_tensor.FakeTensorMode():
        norm = nn.BatchNorm2d(4, device="cuda", **NORMS[kind])
        synchronise_batch_norm(norm)
        x = torch.empty(2, 4, 8, 8, device="cuda", dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()

        y = norm(x)
        # The engine wants a real GPU for its thread, so the step of backward is called by itself.
        at_x, at_weight, at_bias, *_ = type(y.grad_fn)._forward_cls.backward(y.grad_fn, torch.empty_like(y))

        assert y.dtype == at_x.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert {v.device.type for v in (y, at_x, at_weight, at_bias)} == {"cuda"}
        assert at_weight.dtype == torch.float32


def test_norms_of_timm_keep_their_activation_and_their_keys(two_fake_ranks: None) -> None:
    net = timm.create_model("efficientnet_b0")
    keys, activations = list(net.state_dict()), sum(isinstance(m, nn.SiLU) for m in net.modules())
    parameters = list(net.parameters())

    synchronise_batch_norm(net)

    assert sum(isinstance(m, BatchNormOverRanks) for m in net.modules()) == 49
    assert list(net.state_dict()) == keys
    assert sum(isinstance(m, nn.SiLU) for m in net.modules()) == activations
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))


def test_in_evaluation_and_alone_it_is_torchs(request: pytest.FixtureRequest) -> None:
    norm: nn.Module = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    norm(x)
    expected = norm.eval()(x)
    synchronise_batch_norm(norm)
    assert not isinstance(norm, BatchNormOverRanks)  # there is one process

    request.getfixturevalue("two_fake_ranks")
    synchronise_batch_norm(norm)
    synchronise_batch_norm(norm)  # a second time changes nothing

    assert isinstance(norm, BatchNormOverRanks)
    assert torch.equal(norm(x), expected)


def test_a_norm_that_computes_something_else_is_refused(two_fake_ranks: None) -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match=r"^model\.name: its layer 1 is a Doubled"):
        synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(3), Doubled(3)))
