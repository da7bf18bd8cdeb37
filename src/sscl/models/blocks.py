"""The blocks of an encoder, from the first to the last: which keep their input alone, and which learn how fast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from sscl.models.encoders import EfficientNetLite, Encoder, TimmEncoder

STAGES = ("layer1", "layer2", "layer3", "layer4")  # of torchvision's ResNets and timm's
GROUPS = ("blocks", "stages", "layers")  # what timm's nets call the list of theirs


def blocks_of(encoder: Encoder) -> list[nn.Module]:
    """Return the blocks through which a tile goes one after the other: of a transformer its layers, of a ResNet its
    stages; none where they are not known.
    """
    if isinstance(encoder, EfficientNetLite):
        return list(encoder.net._blocks)
    net = encoder.net if isinstance(encoder, TimmEncoder) else encoder
    for name in GROUPS:
        group = getattr(net, name, None)
        if isinstance(group, (nn.Sequential, nn.ModuleList)):
            return list(group)
    stages = [getattr(net, name, None) for name in STAGES]
    return [stage for stage in stages if isinstance(stage, nn.Sequential)]


# --- gradient checkpointing ---


def checkpoint_blocks(encoder: Encoder) -> None:
    """Have each block keep its input alone in training, and compute the rest once more in the backward pass, in place.

    Gradients stay the same to the bit, dropout included, and statistics of batch norm move once. The forward pass of
    each block is another one from then on; parameters and their names stay.

    Raises:
        ValueError: its blocks are not known.

    Source: Chen et al., arXiv:1604.06174.
    """
    blocks = blocks_of(encoder)
    if not blocks:
        raise ValueError(f"train.gradient_checkpointing: the blocks of {encoder.name} are not known; leave it out")
    for block in blocks:
        norms = [part for part in block.modules() if isinstance(part, _BatchNorm)]
        vars(block)["forward"] = partial(_recomputed, block.forward, norms)


def _recomputed(forward: Callable[..., Any], norms: list[_BatchNorm], *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    # `checkpoint` has arguments of its own, so those that a block gets by name are bound before.
    contexts = partial(_contexts, norms)
    return checkpoint(partial(forward, **options), *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(
    norms: list[_BatchNorm],
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _statistics_kept(norms)


@contextlib.contextmanager
def _statistics_kept(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let batch norms compute as before, but move copies of their running statistics."""
    own = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers |= {name: value.clone() for name, value in norm._buffers.items() if value is not None}
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers |= buffers


@contextlib.contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Let the blocks keep everything for a while; gives those that otherwise keep their input alone."""
    blocks = [part for part in model.modules() if _is_checkpointed(part)]
    own = [vars(block).pop("forward") for block in blocks]
    try:
        yield blocks
    finally:
        for block, forward in zip(blocks, own, strict=True):
            vars(block)["forward"] = forward


def _is_checkpointed(part: nn.Module) -> bool:
    forward = vars(part).get("forward")
    return isinstance(forward, partial) and forward.func is _recomputed


# --- layer-wise learning rates ---


def rate_factors(encoder: Encoder, decay: float) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter: 1 in the last block, `decay` in the one before, and so
    on down to the embedding or the first convolution.

    Raises:
        ValueError: its blocks are not known.

    Source: BEiT, arXiv:2106.08254; the layers of timm's nets are those of `timm.optim.param_groups_layer_decay`.
    """
    layers = _layers(encoder)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def _layers(encoder: Encoder) -> dict[str, int]:
    """Return the layer of each parameter, from 0."""
    if isinstance(encoder, TimmEncoder):
        matcher = getattr(encoder.net, "group_matcher", None)
        if matcher is None:
            raise ValueError(f"train.layer_decay: the layers of {encoder.name} are not known; leave it out")
        from timm.models import group_parameters

        found = group_parameters(encoder.net, matcher(coarse=False), reverse=True)
        return {f"net.{name}": layer for name, layer in found.items()}
    block_of = {id(p): i for i, block in enumerate(blocks_of(encoder), 1) for p in block.parameters()}
    found, layer = {}, 0
    for name, parameter in encoder.named_parameters():  # from the first convolution on; what follows the last is its
        layer = found[name] = block_of.get(id(parameter), layer)
    return found


def undecayed(encoder: Encoder) -> set[str]:
    """Return the parameters of more than one dimension that take no weight decay: tokens and position embeddings."""
    if not isinstance(encoder, TimmEncoder) or not hasattr(encoder.net, "no_weight_decay"):
        return set()
    return {f"net.{name}" for name in encoder.net.no_weight_decay()}
