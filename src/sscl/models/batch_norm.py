"""Batch-norm statistics: keep those of the weights, or re-estimate them on other tiles.

N tiles, B of them a batch, C channels, h x w positions.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sscl import augment
from sscl.data.tiles import TileStore, epoch_order
from sscl.device import autocast, sum_dtype
from sscl.models.features import batches


def keep_batch_statistics(module: nn.Module) -> None:
    """Put every batch norm into evaluation mode: it normalises by its running statistics and leaves them as they are.

    Call it after each `train()`. Its scale and shift still learn, where they require a gradient.
    """
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()


@torch.no_grad()
def adapt_batch_norm(
    encoder: nn.Module,
    store: TileStore,
    rows: NDArray[np.int64],
    *,
    mean: torch.Tensor,
    std: torch.Tensor,
    batch_size: int = 128,
    precision: str = "fp32",
    progress: str | None = None,
) -> nn.Module:
    """Return a copy of the encoder whose batch-norm statistics are those of the clean tiles at `rows`.

    In evaluation mode; the encoder itself is not touched. One pass in a fixed random order (batches of one class would
    mislead the deeper layers), in batches of two tiles or more. A layer's statistics are of all its inputs together,
    not an average over batches, so at the first layer they are those of one big batch; deeper layers see inputs that
    were normalised batch by batch.

    Raises:
        ValueError: no batch norm with running statistics, or fewer than two tiles.

    Source: AdaBN, Li et al., arXiv:1603.04779.
    """
    encoder = copy.deepcopy(encoder).eval()
    layers = [m for m in encoder.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise ValueError("batch norm: the encoder has no batch-norm layer to adapt; leave its statistics as they are")
    if len(rows) < 2:
        raise ValueError(f"batch norm: got {len(rows)} tiles to adapt to, expected 2 or more")
    sums: dict[nn.Module, torch.Tensor] = {}

    def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].float().transpose(0, 1).flatten(1)  # (C, B * h * w)
        variance, centre = (value.to(sum_dtype(x.device)) for value in torch.var_mean(x, 1, correction=0))
        count = torch.full_like(centre, x.shape[1])
        sums[layer] = sums.get(layer, 0) + torch.stack([count, count * centre, count * (variance + centre**2)])

    hooks = [layer.train().register_forward_pre_hook(add) for layer in layers]
    shuffled = rows[epoch_order(len(rows), seed=0, epoch=0)]
    batch_size = max(2, math.ceil(len(rows) / math.ceil(len(rows) / batch_size)))
    while len(rows) % batch_size == 1:  # a single tile has no variance where its map is one position
        batch_size += 1
    for images in batches(store, shuffled, batch_size=batch_size, progress=progress):
        x = augment.normalise(augment.to_unit(images), mean=mean, std=std)
        with autocast(store.device, precision):
            encoder(x)
    for layer, hook in zip(layers, hooks, strict=True):
        hook.remove()
        if layer in sums:  # else the forward pass does not use it
            count, total, squares = sums[layer]
            centre = total / count
            variance = (squares / count - centre**2).clamp(min=0) * count / (count - 1)
            layer.load_state_dict({"running_mean": centre, "running_var": variance}, strict=False)
    return encoder.eval()
