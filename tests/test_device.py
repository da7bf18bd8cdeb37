from __future__ import annotations

import os
import re

import pytest
import torch

from sscl.device import Later, autocast, cpu_cores, describe_device, pick_device, pick_precision

CPU = torch.device("cpu")


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, *, count: int, bf16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)


def test_auto_takes_cuda_where_it_is(monkeypatch):
    pretend_cuda(monkeypatch, count=0)
    assert pick_device("auto") == CPU
    pretend_cuda(monkeypatch, count=1)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cpu") == CPU
    assert pick_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("name", ["gpu", "mps", "", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cuda 0"])
@pytest.mark.parametrize("count", [0, 1])
def test_unknown_names(name, count, monkeypatch):
    pretend_cuda(monkeypatch, count=count)
    with pytest.raises(ValueError, match=re.escape(f"device: got {name!r}, allowed are auto, cpu, cuda, cuda:N")):
        pick_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_asked_for_where_there_is_none(name, monkeypatch):
    pretend_cuda(monkeypatch, count=0)
    message = f"device: {name} was asked for, but torch sees no CUDA device; use device=cpu or device=auto"
    with pytest.raises(ValueError, match=message):
        pick_device(name)


def test_a_cuda_device_beyond_the_last(monkeypatch):
    pretend_cuda(monkeypatch, count=2)
    assert pick_device("cuda:1").index == 1
    with pytest.raises(ValueError, match="device: got cuda:2, allowed are cuda:0 to cuda:1"):
        pick_device("cuda:2")


def test_precision(monkeypatch):
    cuda = torch.device("cuda")
    pretend_cuda(monkeypatch, count=1)
    assert pick_precision("auto", cuda) == "bf16"
    assert pick_precision("auto", CPU) == "fp32"
    pretend_cuda(monkeypatch, count=1, bf16=False)  # emulated bf16 would be slower than fp32
    assert pick_precision("auto", cuda) == "fp32"
    for name in ("fp32", "bf16", "fp16"):
        assert pick_precision(name, cuda) == name
    assert pick_precision("bf16", CPU) == "bf16"
    with pytest.raises(ValueError, match="precision: fp16 needs a CUDA device; on a CPU use fp32, bf16 or auto"):
        pick_precision("fp16", CPU)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_sets_the_format_of_the_forward_pass(precision, dtype):
    with autocast(CPU, precision):
        assert torch.nn.Linear(3, 2)(torch.ones(1, 3)).dtype == dtype


def test_describe_device():
    assert describe_device(CPU) == f"cpu ({torch.get_num_threads()} threads)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_real_gpu():
    device = pick_device("auto")
    assert device.type == "cuda"
    assert torch.cuda.get_device_name() in describe_device(device)
    with autocast(device, pick_precision("auto", device)):
        out = torch.nn.Linear(3, 2, device=device)(torch.ones(1, 3, device=device))
    assert out.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[pick_precision("auto", device)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_only_the_cores_that_this_process_may_use_are_counted():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpu_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert cpu_cores() == len(before)


def test_values_read_later_are_those_of_the_moment_at_any_shape():
    values = torch.arange(6.0).reshape(2, 3).requires_grad_()
    total, kept = Later(values.sum()), Later(values)
    expected = values.detach().clone()
    values.detach().zero_()
    assert total.value() == 15
    assert torch.equal(kept.tensor(), expected)
    assert not kept.tensor().requires_grad
