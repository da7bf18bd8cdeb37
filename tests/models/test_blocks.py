from __future__ import annotations

import copy

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from sscl.models.blocks import blocks_of, checkpoint_blocks, rate_factors, without_checkpointing
from sscl.models.encoders import Encoder, build_encoder
from sscl.models.lora import add_lora
from sscl.train.optim import parameter_groups
from sscl.train.step import statistics_once

NAMES = ("resnet14_small", "efficientnet_lite0", "timm:test_vit")


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def both(name: str) -> tuple[Encoder, Encoder]:
    """An encoder as it is, and with checkpoints."""
    torch.manual_seed(0)
    plain = build_encoder(name)
    saving = copy.deepcopy(plain)
    checkpoint_blocks(saving)
    return plain, saving


def one_step(encoder: nn.Module) -> torch.Tensor:
    torch.manual_seed(2)
    out = encoder(images())
    out.square().sum().backward()
    return out


def same(plain: nn.Module, saving: nn.Module) -> bool:
    """Gradients and buffers, batch-norm statistics and their count among them."""
    for (name, p), (other, q) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert name == other
        assert p.grad is not None, name
        assert torch.equal(p.grad, q.grad), name
    return all(torch.equal(p, q) for p, q in zip(plain.buffers(), saving.buffers(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_statistics_are_the_same_bits(name):
    plain, saving = both(name)
    assert torch.equal(one_step(plain), one_step(saving))
    assert same(plain, saving)
    assert saving.state_dict().keys() == plain.state_dict().keys()


def test_less_is_kept():
    def kept(encoder: nn.Module) -> int:
        found: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x.nbytes), lambda _: None):
            encoder(images())
        return sum(found)

    plain, saving = both("timm:test_vit")
    assert kept(saving) < kept(plain) / 5


def test_dropout_drops_the_same_again():
    plain, saving = both("timm:test_vit")
    for encoder in (plain, saving):
        for block in encoder.net.blocks:
            block.mlp.drop1.p = 0.5
    assert torch.equal(one_step(plain), one_step(saving))
    assert same(plain, saving)


def test_statistics_that_are_held_stay():
    plain, saving = both("timm:test_resnet")
    for encoder in (plain, saving):
        for part in encoder.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
    one_step(plain)
    one_step(saving)
    assert same(plain, saving)


def test_microbatches_move_the_statistics_once():
    plain, saving = both("timm:test_resnet")
    for encoder in (plain, saving):
        norms = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
        with statistics_once(norms, parts=1) as note:
            with torch.no_grad():
                encoder(images())
            note()
            one_step(encoder)
    assert same(plain, saving)


def test_without_checkpoints_for_a_while():
    _, saving = both("timm:test_vit")
    with without_checkpointing(saving) as blocks:
        assert blocks == list(saving.net.blocks)
        assert not any("forward" in vars(block) for block in blocks)
    assert all("forward" in vars(block) for block in saving.net.blocks)


def test_unknown_blocks_are_refused():
    encoder = build_encoder("timm:test_vit")
    encoder.net.blocks = nn.Identity()
    assert blocks_of(encoder) == []
    with pytest.raises(ValueError, match=r"^train\.gradient_checkpointing: .*timm:test_vit"):
        checkpoint_blocks(encoder)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_convnext", "test_resnet"])
def test_rates_and_exemptions_are_timms(name):
    encoder = build_encoder(f"timm:{name}")
    own = {id(p): key for key, p in encoder.named_parameters()}
    exempt = getattr(encoder.net, "no_weight_decay", tuple)()
    groups = param_groups_layer_decay(encoder.net, weight_decay=0.1, no_weight_decay_list=exempt, layer_decay=0.7)
    theirs = {own[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert rate_factors(encoder, 0.7) == pytest.approx({key: scale for key, (scale, _) in theirs.items()})
    ours = parameter_groups(encoder, learning_rate=0.2, weight_decay=0.1, layer_decay=0.7)
    assert len({g["peak_lr"] for g in ours}) == len({scale for scale, _ in theirs.values()})
    for group in ours:
        for p in group["params"]:
            assert (group["peak_lr"] / 0.2, group["weight_decay"]) == pytest.approx(theirs[own[id(p)]])


def test_the_stages_of_a_resnet():
    factors = rate_factors(build_encoder("resnet18"), 0.5)
    assert [factors[key] for key in ("conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer4.1.bn2.bias")] == [
        0.5**4,
        0.5**4,
        0.5**3,
        1,
    ]
    lite = rate_factors(build_encoder("efficientnet_lite0"), 0.5)
    assert lite["net._conv_stem.weight"] == 0.5**16
    assert lite["net._blocks.15._bn2.weight"] == lite["net._conv_head.weight"] == 1


def test_lora_learns_at_the_rate_of_its_block():
    encoder = build_encoder("timm:test_vit")
    add_lora(encoder, rank=2, alpha=2.0, targets=("qkv",), size_px=32)
    factors = rate_factors(encoder, 0.5)
    for i in range(6):
        assert (
            factors[f"net.blocks.{i}.attn.qkv.lora_b"] == factors[f"net.blocks.{i}.attn.qkv.weight"] == 0.5 ** (5 - i)
        )
