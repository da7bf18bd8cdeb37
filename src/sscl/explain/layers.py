"""The outputs of a model's named layers, part of the graph of its logits.

B tiles, C channels, h x w cells of a feature map, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sscl.words import nearest


def layer_features(model: nn.Module, images: Tensor, layers: Sequence[str]) -> tuple[list[Tensor], Tensor]:
    """Return what each named module outputs, (B, C, h, w), part of the logits' graph, and the logits (B, K).

    The graph begins at the first named layer, and no parameter is in it. No hook stays.

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
        if len(shape) != 4 or min(shape[2:]) < 2 or shape[2] * columns != shape[3] * rows:
            raise ValueError(f"layer: {name} gives no feature maps (its output is {shape}); name another layer")
    return [kept[name][0] for name in layers], logits


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
