"""LoRA: linear layers whose weights are frozen, each with a product of two small matrices that is trained instead.

B tiles, L tokens, R the rank. Source: Hu et al., arXiv:2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sscl.device import sum_dtype
from sscl.models.dry_run import fake_inputs
from sscl.models.encoders import Encoder
from sscl.words import closest, listed, some

PARTS = ("lora_a", "lora_b")  # parameters of an adapted layer besides weight and bias


class LoraLinear(nn.Linear):
    """A linear layer of weight W + scale B A, of which A (R, in) and B (out, R) alone are trained.

    In evaluation mode it computes with the one matrix that is exported, so that what validation measures is what
    `eval` and `predict` will compute.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scale: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs, (B, L, in) -> (B, L, out)."""
        if not self.training:
            return F.linear(x, self.merged(), self.bias)
        narrow = self.scale * F.linear(x, self.lora_a)  # (B, L, R)
        return F.linear(x, self.weight, self.bias) + F.linear(narrow, self.lora_b)

    def merged(self) -> torch.Tensor:
        """Return W + scale B A, (out, in)."""
        exact = sum_dtype(self.weight.device)  # float32 products may be rounded to TF32 on a GPU
        product = self.lora_b.to(exact) @ self.lora_a.to(exact)
        return (self.weight.to(exact) + self.scale * product).to(self.weight.dtype)


def add_lora(encoder: Encoder, *, rank: int, alpha: float, targets: Sequence[str], size_px: int) -> None:
    """Freeze an encoder and let its linear layers of the given names learn, in place: at first they compute the same.

    A is drawn as torch draws linear layers and B is 0. Names and values of the other parameters stay.

    Args:
        rank: R. alpha: B A is multiplied by alpha / rank, so that another rank needs no other learning rate.
        targets: last parts of the layers' names, as in qkv or attn.proj.
        size_px: side of the tiles.

    Raises:
        ValueError: no linear layers; a target that is none of them, or that the encoder does not call as a layer.
    """
    layers = {
        name: part
        for name, part in encoder.named_modules()
        if isinstance(part, nn.Linear) and type(part).forward is nn.Linear.forward
    }
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    if not layers:
        raise ValueError(
            f"train.lora: {encoder.name} has no linear layers for it, as transformers have; leave train.lora out"
        )
    found: dict[str, nn.Linear] = {}
    for target in targets:
        matching = {name: layer for name, layer in layers.items() if f".{name}".endswith(f".{target}")}
        if not matching:
            near = closest(target, names)
            hint = "" if near is None else f"; did you mean {near}?"
            raise ValueError(
                f"train.lora.targets: got {target!r}, but the linear layers of {encoder.name} are {some(names)}{hint}"
            )
        found |= matching
    encoder.requires_grad_(False)
    for layer in found.values():
        _adapt(layer, rank=rank, scale=alpha / rank)
    uncalled = _uncalled(encoder, found, size_px=size_px)
    if uncalled:
        raise ValueError(
            f"train.lora.targets: {encoder.name} does not call {uncalled} as a layer of its own, so LoRA cannot reach "
            f"it; leave {uncalled.rpartition('.')[2]} out of {some(names)}"
        )


def _adapt(layer: nn.Linear, *, rank: int, scale: float) -> None:
    weight = layer.weight
    a, b = weight.new_empty(rank, layer.in_features), weight.new_zeros(layer.out_features, rank)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    # Not a new module: the names in the state dict stay, and whatever else holds the layer.
    layer.__class__ = LoraLinear
    assert isinstance(layer, LoraLinear)
    layer.lora_a, layer.lora_b, layer.scale = nn.Parameter(a), nn.Parameter(b), scale


def _uncalled(encoder: Encoder, layers: dict[str, nn.Linear], *, size_px: int) -> str:
    """Return the first layer that a forward pass does not call, empty if there is none.

    Some nets read the weights of a layer and compute by themselves (timm's Swin v2, BEiT).
    """
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers.values()]
    with FakeTensorMode(), torch.no_grad():
        state, images = fake_inputs(encoder, shape=(2, 3, size_px, size_px), device=torch.device("cpu"))
        torch.func.functional_call(encoder, state, (images,))
    for hook in hooks:
        hook.remove()
    return next((name for name, layer in layers.items() if layer not in called), "")


def lora_layers(module: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield the adapted layers of a module by name."""
    for name, part in module.named_modules():
        if isinstance(part, LoraLinear):
            yield name, part


def merged_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """Return an encoder's state dict without a trace of LoRA: W + scale B A in place of W."""
    state: dict[str, torch.Tensor] = encoder.state_dict()
    for name, layer in lora_layers(encoder):
        state[f"{name}.weight"] = layer.merged().detach()
        for part in PARTS:
            del state[f"{name}.{part}"]
    return state


def described(encoder: Encoder, targets: Sequence[str]) -> str:
    """Return in words what of an encoder is trained."""
    learn = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    layers = sum(1 for _ in lora_layers(encoder))
    rank = next(len(layer.lora_a) for _, layer in lora_layers(encoder))
    whole = sum(p.numel() for p in encoder.parameters())
    return (
        f"LoRA of rank {rank} in {layers} layers ({listed(targets)}): {learn:,} parameters of the encoder are trained, "
        f"{whole - learn:,} are frozen"
    )
