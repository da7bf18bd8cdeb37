from __future__ import annotations

import copy
import math
import subprocess
import sys
from typing import get_args

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sscl.train import optim
from sscl.train.optim import (
    LARS,
    build_optimizer,
    parameter_groups,
    set_learning_rate,
)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).double()


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return net(x.to(next(net.parameters()).dtype)).square().sum()


def test_adamw_without_decay_is_adam():
    ours, theirs = small_net(), small_net()
    adamw = build_optimizer("adamw", parameter_groups(ours, learning_rate=0.01, weight_decay=0))
    adam = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for step in range(5):
        for net, optimizer in ((ours, adamw), (theirs, adam)):
            optimizer.zero_grad()
            loss_of(net, step).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_biases_and_norms_take_no_decay():
    net = small_net()
    net[3].bias.requires_grad_(False)
    groups = parameter_groups(net, learning_rate=0.3, weight_decay=0.1)
    names = {id(p): name for name, p in net.named_parameters()}
    kinds = [([names[id(p)] for p in g["params"]], g["weight_decay"], g["adapt"]) for g in groups]
    assert kinds == [(["0.weight", "3.weight"], 0.1, True), (["0.bias", "1.weight", "1.bias"], 0.0, False)]
    assert all(g["lr"] == g["peak_lr"] == 0.3 for g in groups)


def test_a_frozen_module_has_no_groups():
    assert parameter_groups(small_net().requires_grad_(False), learning_rate=0.3, weight_decay=0.1) == []


@pytest.mark.parametrize("name", get_args(optim.Name))
def test_decay_shrinks_weights_alone(name):
    """With no gradient, only decay moves a parameter."""
    net = small_net()
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    optimizer = build_optimizer(name, parameter_groups(net, learning_rate=0.5, weight_decay=0.1))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for key, p in net.named_parameters():
        ratio = (p.detach() / before[key])[before[key] != 0]
        if key in ("0.weight", "3.weight"):
            # LARS: the update 0.1 w is scaled to trust * |w| / |0.1 w|, a step of lr * trust * w.
            expected = 1 - 0.5 * 1e-3 if name == "lars" else 1 - 0.5 * 0.1
        else:
            expected = 1
        assert torch.allclose(ratio, torch.full_like(ratio, expected), atol=1e-12), key


def test_learning_rate_follows_each_groups_peak():
    net = small_net()
    groups = parameter_groups(net[0], learning_rate=0.1, weight_decay=0)
    groups += parameter_groups(net[3], learning_rate=1.0, weight_decay=0)
    optimizer = build_optimizer("sgd", groups)
    for factor in (0.5, 0.25, 1.0):  # from the peak, not from the last rate
        set_learning_rate(optimizer, factor)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1 * factor] * 2 + [factor] * 2)


@pytest.mark.parametrize("fused", [True, None])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_are_torchs_to_the_bit(name, fused, wrap):
    wrap(fused=lambda *_: bool(fused))
    ours, theirs = small_net(), small_net()
    groups = parameter_groups(theirs, learning_rate=0.05, weight_decay=0.1)
    options = {"momentum": 0.9} if name == "sgd" else {}
    reference = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name](groups, fused=fused, **options)
    mine = build_optimizer(name, parameter_groups(ours, learning_rate=0.05, weight_decay=0.1))
    for step in range(4):
        for net, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            loss_of(net, step).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert not any(p.requires_grad for values in mine.state.values() for p in values.values())


def test_training_starts_without_the_compiler():
    """Importing it takes longer than importing torch; so do torchvision's models, scikit-learn and matplotlib."""
    program = """
import sys
import sscl.commands.pretrain, sscl.commands.finetune
from sscl.models.encoders import build_encoder
from sscl.train import memory, optim
import torch

memory.activation_bytes(build_encoder("resnet18"), shape=(8, 3, 32, 32), device_type="cpu")
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
for name in memory.OPTIMIZER_STATE:
    optimizer = optim.build_optimizer(name, optim.parameter_groups(net, learning_rate=0.1, weight_decay=0.1))
    net(torch.ones(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print(sorted({"torch._dynamo", "torch._inductor", "torchvision", "sklearn", "scipy", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_momentum_reaches_the_optimizer(name):
    groups = parameter_groups(small_net(), learning_rate=0.1, weight_decay=0)
    optimizer = build_optimizer(name, groups, momentum=0.37)
    assert isinstance(optimizer, {"sgd": torch.optim.SGD, "lars": LARS}[name])
    assert {g["momentum"] for g in optimizer.param_groups} == {0.37}


def trained(name: str, *, steps: range, state: dict | None = None, net: nn.Module | None = None):
    """A small net after some steps, and its optimiser."""
    net = small_net() if net is None else net
    optimizer = build_optimizer(name, parameter_groups(net, learning_rate=0.05, weight_decay=0.1))
    if state is not None:
        optimizer.load_state_dict(state)
    for step in steps:
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()
    return net, optimizer


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("fused_first", [True, False])
def test_a_state_loads_whether_or_not_it_was_fused(name, fused_first, wrap):
    """As between a GPU, where steps are fused, and a CPU; fused steps exist on both."""
    whole, _ = trained(name, steps=range(6))
    wrap(fused=lambda *_: fused_first)
    net, stopped = trained(name, steps=range(3))
    assert {g["fused"] for g in stopped.param_groups} == {True if fused_first else None}
    state = stopped.state_dict()
    before = {**state, "param_groups": [dict(g) for g in state["param_groups"]]}

    wrap(fused=lambda *_: not fused_first)
    net, resumed = trained(name, steps=range(3, 6), state=state, net=net)
    assert {g["fused"] for g in resumed.param_groups} == {None if fused_first else True}
    assert {g["weight_decay"] for g in resumed.param_groups} == {0.1, 0.0}
    assert state["param_groups"] == before["param_groups"]  # what was given to load is left as it is
    for ours, theirs in zip(net.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-8)  # the bias before the norm has a gradient of rounding


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_without_the_choice_loads_and_one_of_other_groups_is_refused(name):
    net, optimizer = trained(name, steps=range(2))
    state = copy.deepcopy(optimizer.state_dict())
    old = {**state, "param_groups": [{k: v for k, v in g.items() if k != "fused"} for g in state["param_groups"]]}
    ours, _ = trained(name, steps=range(2, 4), state=copy.deepcopy(old), net=copy.deepcopy(net))
    theirs, _ = trained(name, steps=range(2, 4), state=state, net=net)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({**state, "param_groups": state["param_groups"] * 2})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_only_gpus_fuse(name):
    _, optimizer = trained(name, steps=range(1))
    assert not any(g["fused"] for g in optimizer.param_groups)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", get_args(optim.Name))
def test_a_gpu_steps_as_a_cpu_and_skips_a_step_of_infinite_gradients(name):
    # In double precision: the bias before the batch norm has a gradient of rounding alone, which AdamW enlarges.
    nets = [small_net(), small_net().cuda()]
    for net in nets:
        device = next(net.parameters()).device
        optimizer = build_optimizer(name, parameter_groups(net, learning_rate=0.05, weight_decay=0.1))
        if name != "lars":
            assert {g["fused"] for g in optimizer.param_groups} == {True if device.type == "cuda" else None}
        scaler = torch.amp.GradScaler(device.type, init_scale=128.0)
        for step in range(4):
            optimizer.zero_grad()
            x = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(step)).double().to(device)
            factor = math.inf if step == 2 else 1.0
            scaler.scale(factor * net(x).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 64.0
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.allclose(a, b.cpu(), rtol=1e-5, atol=1e-6)


class Reads(TorchDispatchMode):
    """Counts what would wait for a GPU: values that are read."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_a_scaled_step_is_the_step_and_reads_nothing(name, wrap):
    """As in fp16: gradients times the scale give the same weights, and an infinite one changes nothing."""
    wrap(fused=lambda *_: True)  # as there
    plain, scaled = small_net().float(), small_net().float()
    ours, theirs = (
        build_optimizer(name, parameter_groups(net, learning_rate=0.05, weight_decay=0.1)) for net in (scaled, plain)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        for net in (plain, scaled):
            net.zero_grad()
        factor = math.inf if step == 2 else 1.0
        scaler.scale(factor * loss_of(scaled, step)).backward()
        before = [p.detach().clone() for p in scaled.parameters()]
        kept = {key: value.clone() for key, value in ours.state[scaled[0].weight].items()}
        with Reads() as reads:
            scaler.step(ours)
        assert reads.count == 0
        scaler.update()
        if step == 2:
            assert all(torch.equal(p, q) for p, q in zip(scaled.parameters(), before, strict=True))
            assert all(torch.equal(ours.state[scaled[0].weight][key], value) for key, value in kept.items())
            continue
        loss_of(plain, step).backward()
        theirs.step()
    assert scaler.get_scale() == 512.0
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_lars_never_waits_for_the_gpu():
    net = small_net().float().cuda()
    optimizer = build_optimizer("lars", parameter_groups(net, learning_rate=0.05, weight_decay=0.1))
    x = torch.randn(5, 3, 3, 3, device="cuda")
    net(x).square().sum().backward()
    optimizer.step()  # makes the momentum buffers
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_lars_against_a_naive_loop():
    """SimCLR's LARS, one tensor at a time: decay, trust ratio, momentum, then the learning rate."""
    ours, theirs = small_net(), small_net()
    optimizer = build_optimizer("lars", parameter_groups(ours, learning_rate=2.0, weight_decay=0.1), momentum=0.8)
    velocity = {name: torch.zeros_like(p) for name, p in theirs.named_parameters()}
    for step in range(4):
        factor = 1 / (step + 1)
        set_learning_rate(optimizer, factor)
        optimizer.zero_grad()
        loss_of(ours, step).backward()
        optimizer.step()
        theirs.zero_grad()
        loss_of(theirs, step).backward()
        with torch.no_grad():
            for name, p in theirs.named_parameters():
                update = p.grad
                if p.ndim > 1:
                    update = update + 0.1 * p
                    w = math.sqrt(sum(float(x) ** 2 for x in p.flatten()))
                    u = math.sqrt(sum(float(x) ** 2 for x in update.flatten()))
                    update = update * (0.001 * w / u)
                velocity[name] = 0.8 * velocity[name] + update
                p -= 2.0 * factor * velocity[name]
        for name, p in ours.named_parameters():
            assert torch.allclose(p, theirs.get_parameter(name), rtol=1e-10, atol=1e-13), (step, name)


def test_lars_without_adaptation_is_sgd_with_momentum():
    ours, theirs = small_net(), small_net()
    lars = LARS([{"params": list(ours.parameters()), "adapt": False, "weight_decay": 0.1}], lr=0.02, momentum=0.9)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    for step in range(4):
        for net, optimizer in ((ours, lars), (theirs, sgd)):
            optimizer.zero_grad()
            loss_of(net, step).backward()
            optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_lars_step_does_not_depend_on_the_scale_of_the_gradient():
    def stepped(scale: float) -> torch.Tensor:
        p = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        p.grad = scale * torch.tensor([[1.0, 0.0]])
        LARS([p], lr=1.0, momentum=0.0).step()
        return p.detach()

    assert torch.allclose(stepped(1), stepped(1e4))
    assert torch.allclose(stepped(1), torch.tensor([[3 - 0.005, 4.0]]))  # |w| = 5, trust = 0.001


def test_lars_of_zero_weights_and_missing_gradients():
    zero, unused = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zero.grad = torch.ones(2, 2)
    optimizer = LARS([zero, unused], lr=0.1)
    optimizer.step()
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.1))  # a ratio of 0 would never let it leave zero
    assert torch.equal(unused.detach(), torch.ones(2, 2))


def test_lars_makes_its_norms_into_factors_at_once():
    """The arithmetic on norms must not grow with the number of tensors: on a GPU each little operation is a launch."""

    def operations(tensors: int) -> int:
        params = [nn.Parameter(torch.ones(2, 2)) for _ in range(tensors)]
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer = LARS([{"params": params, "weight_decay": 0.1}], lr=0.1)
        optimizer.step()  # makes the momentum buffers
        counter = Operations()
        with counter:
            optimizer.step()
        return counter.count

    assert operations(40) == operations(2) < 20


class Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_lars_resumes_from_its_state():
    whole, first = small_net(), small_net()

    def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            loss_of(net, step).backward()
            optimizer.step()

    def lars(net: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer("lars", parameter_groups(net, learning_rate=1.0, weight_decay=0.1))

    train(whole, lars(whole), range(4))
    stopped = lars(first)
    train(first, stopped, range(2))
    second = small_net()
    second.load_state_dict(first.state_dict())
    resumed = lars(second)
    resumed.load_state_dict(stopped.state_dict())
    train(second, resumed, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", get_args(optim.Name))
def test_a_first_step_that_a_scaler_skips_leaves_no_trace(name, wrap):
    """fp16 usually overflows in its first step, at a scale of 65,536; memory without content is NaN here."""
    wrap(fused=lambda *_: True, empty_memory=lambda empty, x, **_: torch.full(x.shape, math.nan))
    start = torch.linspace(-1, 1, 12).reshape(3, 4)
    after = []
    for skipped in (True, False):
        weight = torch.nn.Parameter(start.clone())
        groups = [{"params": [weight], "weight_decay": 0.01, "peak_lr": 0.1, "lr": 0.1, "adapt": True}]
        optimizer = optim.build_optimizer(name, groups)
        scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
        for gradient in ([math.inf] if skipped else []) + [0.5]:
            scaler.scale(torch.ones(()))  # makes the scale
            weight.grad = torch.full_like(start, gradient) * scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
        after.append(weight.detach())
    assert not torch.equal(after[0], start)
    torch.testing.assert_close(*after)


def stepped(name: str) -> torch.optim.Optimizer:
    net = small_net()
    optimizer = build_optimizer(name, parameter_groups(net, learning_rate=0.1, weight_decay=0.1))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_a_state_of_another_optimizer_or_of_nonsense_is_refused(name):
    fresh = build_optimizer(name, parameter_groups(small_net(), learning_rate=0.1, weight_decay=0.1))
    state = stepped(name).state_dict()
    for group in state["param_groups"]:
        group.update({"lr": "fast", "momentum": None, "peak_lr": -1})
    optim.load_state(fresh, state)  # rates are those of the configuration
    assert all((group["lr"], group["peak_lr"]) == (0.1, 0.1) for group in fresh.param_groups)
    other = stepped("adamw" if name != "adamw" else "sgd").state_dict()
    first = state["state"][0]
    kept = next(key for key in first if key != "step")
    for nonsense in (
        other,
        state | {"state": {0: {}, 1: {kept: "text"}}},
        state | {"state": {0: first | {kept: torch.zeros(1, 2, 3)}}},
        state | {"param_groups": []},
        state | {"param_groups": "text"},
        {"state": {}},
        {},
    ):
        blank = build_optimizer(name, parameter_groups(small_net(), learning_rate=0.1, weight_decay=0.1))
        with pytest.raises((ValueError, KeyError, AttributeError, TypeError)):
            optim.load_state(blank, nonsense)
