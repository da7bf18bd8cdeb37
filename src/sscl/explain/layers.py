"""The outputs of a model's named layers, part of the graph of its logits; those of a transformer's blocks are tokens.

B tiles, C channels, h x w cells of a feature map, N tokens, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sscl.words import nearest


def layer_features(model: nn.Module, images: Tensor, layers: Sequence[str]) -> tuple[list[Tensor], Tensor]:
    """Return what each named module outputs, part of the logits' graph, and the logits (B, K).

    Outputs are maps (B, C, h, w) or a transformer's tokens (B, N, C), of which `grid_of` makes one. The graph begins at
    the first named layer, and no parameter is in it. No hook stays.

    Raises:
        ValueError: no module of that name; or one that does not run exactly once, or whose output is not a map.
    """
    constants = {name: value.detach() for name, value in model.named_parameters()}
    with _keeping(model, layers) as kept:
        logits: Tensor = torch.func.functional_call(model, constants, (images,))
    rows, columns = images.shape[2:]
    for name in layers:
        found = kept[name]
        if len(found) != 1:
            times = "does not run" if not found else f"runs {len(found)} times"
            raise ValueError(f"layer: {name} {times} in one pass, so it has no single map; name the block around it")
        shape = tuple(found[0].shape)
        cells = cells_of(model, found[0])
        if cells is None or min(cells) < 2 or cells[0] * columns != cells[1] * rows:
            raise ValueError(f"layer: {name} gives no feature maps (its output is {shape}); name another layer")
    return [kept[name][0] for name in layers], logits


def grid_of(model: object, output: Tensor) -> Tensor:
    """Return what a layer gave, or a gradient of it, as a map (B, C, h, w): of tokens, those of the patches."""
    if output.ndim == 4:
        return output
    found: Tensor = model.grid(output)  # type: ignore[attr-defined]
    return found


def cells_of(model: nn.Module, output: Tensor) -> tuple[int, int] | None:
    """Return the rows and columns of what a layer gave; None if it is no map."""
    if output.ndim not in (3, 4):
        return None
    try:
        return tuple(grid_of(model, output).shape[2:])  # type: ignore[return-value]
    except (ValueError, RuntimeError, AttributeError):  # no tokens, too few of them, or a model that has none
        return None


def blocks_of(model: object) -> dict[str, nn.Module]:
    """Return the blocks of a transformer by name, first to last; empty of any other model."""
    net = getattr(getattr(model, "encoder", None), "net", None)
    blocks = getattr(net, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not hasattr(net, "num_prefix_tokens"):
        return {}
    return {f"encoder.net.blocks.{name}": block for name, block in blocks.named_children()}


def layers_that_matter(model: object) -> tuple[str, ...]:
    """Return the layers whose patch tokens still lead to a transformer's feature; empty where the last features do.

    A class token is taken after the last block, from where no patch leads to it: the gradient is zero there. All that
    it gets of the patches comes through the first norm of that block. (The block's input would do for Grad-CAM alone:
    a norm does not see the length of a token, so HiResCAM's token times gradient vanishes there.) A feature that is the
    class token and the mean of the patches has its two parts in two layers.
    """
    blocks, encoder = list(blocks_of(model)), getattr(model, "encoder", None)
    pooling = getattr(encoder, "pooling", "mean")
    if not blocks or pooling == "mean":
        return ()
    first = f"{blocks[-1]}.norm1"
    return (first,) if pooling == "class" else (first, "encoder.net.norm")


@contextlib.contextmanager
def _keeping(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Keep what the named modules output while the context lasts."""
    modules = {name: module for name, module in model.named_modules() if name}
    for name in layers:
        if name not in modules:
            raise ValueError(f"layer: got {name!r}, the model has no such layer; {nearest(name, modules, cutoff=0)}")
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, given: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                return None
            found = output if output.requires_grad else output.detach().requires_grad_(True)
            kept[name].append(found)
            return found.clone()  # what follows may work in place

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in kept]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
