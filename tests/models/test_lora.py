from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sscl.models.encoders import Encoder, build_encoder
from sscl.models.lora import add_lora, lora_layers, merged_state

VIT = "timm:test_vit"


def adapted(name: str = VIT, *, trained: bool = False, **options) -> Encoder:
    torch.manual_seed(0)
    encoder = build_encoder(name)
    add_lora(encoder, **{"rank": 2, "alpha": 6.0, "targets": ("qkv", "proj"), "size_px": 32, **options})
    if trained:
        for _, layer in lora_layers(encoder):
            nn.init.normal_(layer.lora_b, std=0.1)
    return encoder


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_at_the_start_nothing_has_changed_to_the_bit():
    torch.manual_seed(0)
    plain = build_encoder(VIT)
    encoder = adapted()
    for mode in (True, False):
        assert torch.equal(encoder.train(mode)(images()), plain.train(mode)(images()))
    state = plain.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in merged_state(encoder).items())
    assert merged_state(encoder).keys() == state.keys()


def test_a_layer_is_what_the_paper_says():
    encoder = adapted(trained=True, rank=3, alpha=6.0)
    name, layer = next(iter(lora_layers(encoder)))
    assert name == "net.blocks.0.attn.qkv"
    x = torch.randn(4, 5, layer.in_features)
    delta = torch.einsum("or,ri,bli->blo", layer.lora_b, layer.lora_a, x)
    wanted = nn.functional.linear(x, layer.weight, layer.bias) + 2.0 * delta
    torch.testing.assert_close(layer(x), wanted)


def test_merged_outputs_are_the_unmerged_ones():
    encoder = adapted(trained=True)
    unmerged = encoder.train()(images())
    plain = build_encoder(VIT)
    assert (plain(images()) - unmerged).abs().max() > 1e-2
    plain.load_state_dict(merged_state(encoder))
    torch.testing.assert_close(plain(images()), unmerged, rtol=1e-5, atol=1e-5)
    assert torch.equal(plain(images()), encoder.eval()(images()))  # as validation computes


def test_the_small_matrices_alone_learn():
    encoder = adapted(trained=True)
    encoder(images()).square().sum().backward()
    learned = [name for name, p in encoder.named_parameters() if p.grad is not None]
    assert learned == [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert {name.rpartition(".")[2] for name in learned} == {"lora_a", "lora_b"}
    assert len(learned) == 6 * 2 * 2  # blocks, layers, matrices


def test_a_target_may_have_more_of_a_name():
    found = dict(lora_layers(adapted(targets=("blocks.1.attn.qkv", "fc2"))))
    assert len(found) == 1 + 6
    assert "net.blocks.1.attn.qkv" in found
    assert not any(name.endswith("proj") for name in found)


@pytest.mark.parametrize(
    ("name", "targets", "key", "said"),
    [
        ("resnet18", ("qkv",), "train.lora: ", "resnet18"),
        ("timm:test_resnet", ("qkv",), "train.lora: ", "timm:test_resnet"),
        (VIT, ("qkv", "fc3"), "train.lora.targets: ", "qkv, proj, fc1, fc2; did you mean fc2?"),
        (VIT, ("kv",), "train.lora.targets: ", "got 'kv'"),  # no end of a name's part
    ],
)
def test_layers_that_are_not_there(name, targets, key, said):
    encoder = build_encoder(name)
    before = copy.deepcopy(encoder.state_dict())
    with pytest.raises(ValueError, match=f"^{key}") as caught:
        add_lora(encoder, rank=2, alpha=1.0, targets=targets, size_px=32)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert encoder.state_dict().keys() == before.keys()


def test_a_layer_that_the_net_does_not_call(monkeypatch):
    """As in timm's Swin v2 and BEiT, whose attention reads the weights of qkv and multiplies by itself."""
    encoder = build_encoder(VIT)
    attention = encoder.net.blocks[3].attn

    def reads_weights(x: torch.Tensor, **_) -> torch.Tensor:
        return attention.proj(nn.functional.linear(x, attention.qkv.weight)[..., :64])

    monkeypatch.setattr(attention, "forward", reads_weights)
    with pytest.raises(ValueError, match=r"train\.lora\.targets: .*net\.blocks\.3\.attn\.qkv"):
        add_lora(encoder, rank=2, alpha=1.0, targets=("qkv",), size_px=32)


def test_under_autocast_gradients_reach_it():
    encoder = adapted(trained=True)
    with torch.autocast("cpu", torch.bfloat16):
        encoder(images()).float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in encoder.parameters() if p.requires_grad)
