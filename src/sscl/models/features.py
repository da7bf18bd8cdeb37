"""Embeddings of a tile set, and what they are worth: kNN, linear probe, effective rank.

N tiles, M queries, C features, K classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from sscl import augment
from sscl.data.tiles import TileStore, epoch_order
from sscl.device import autocast

if TYPE_CHECKING:  # takes a second to import, and training needs none of it
    pass


def batches(rows: NDArray[np.int64], *, batch_size: int, progress: str | None = None) -> Iterator[torch.Tensor]:
    """Yield the rows in order, int64 (<= batch_size,) at a time; `progress` names a bar."""
    bar = tqdm(total=len(rows), desc=progress, unit="tile", disable=progress is None, leave=False)
    with bar:
        for start in range(0, len(rows), batch_size):
            part = torch.from_numpy(rows[start : start + batch_size])
            yield part
            bar.update(len(part))


@torch.no_grad()
def outputs(
    model: nn.Module,
    store: TileStore,
    rows: NDArray[np.int64],
    *,
    mean: torch.Tensor,
    std: torch.Tensor,
    batch_size: int = 128,
    precision: str = "fp32",
    symmetric: bool = False,
    progress: str | None = None,
) -> torch.Tensor:
    """Return model(tile) of the clean tiles at `rows`, in evaluation mode, float32 on the CPU, (N, ...).

    With an encoder these are its embeddings (N, C), with a classifier its logits (N, K). Every part of the
    model is left in the mode it was in.

    With `symmetric` it is the mean over the 8 flips and rotations of each tile, to the last bit the same whichever way
    the tile lies. Of a classifier it is the mean of logits, not of probabilities: what comes back is logits still, so
    that a temperature is applied once and in one place, and no view counts for less because its softmax saturates.

    Raises:
        ValueError: some output is not a finite number: the weights have diverged.
    """
    modes = [(module, module.training) for module in model.modules()]  # a frozen part may be in another mode
    model.eval()
    parts = []
    try:
        for part in batches(rows, batch_size=batch_size, progress=progress):
            x = augment.normalise(augment.to_unit(store.gather(part)), mean=mean, std=std)
            with autocast(store.device, precision):
                found = mean_over_symmetries(model, x) if symmetric else model(x)
            parts.append(found.float().cpu())
    finally:
        for module, training in modes:
            module.training = training
    found = torch.cat(parts)
    broken = int((~found.isfinite()).reshape(len(found), -1).any(1).sum())
    if broken:
        raise ValueError(
            f"the model's outputs for {broken} of {len(found)} tiles are not finite numbers: its weights diverged; "
            "lower train.learning_rate, lengthen train.warmup_epochs, or set precision=fp32"
        )
    return found


def mean_over_symmetries(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the mean of the model's float32 outputs over the 8 flips and rotations of x (B, 3, H, H), (B, ...).

    The views are sorted before they are added, so that rounding does not depend on which of them comes first.
    """
    views = []
    for turns in range(4):
        turned = torch.rot90(x, turns, (2, 3))
        for view in (turned, turned.flip(3)):
            views.append(model(view.contiguous(memory_format=torch.channels_last)).float())
    return torch.stack(views).sort(0).values.mean(0)


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
    mislead the deeper layers), in batches of nearly equal size. A layer's statistics are of all its inputs together,
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
        variance, centre = (value.double() for value in torch.var_mean(x, 1, correction=0))
        count = torch.full_like(centre, x.shape[1])
        sums[layer] = sums.get(layer, 0) + torch.stack([count, count * centre, count * (variance + centre**2)])

    hooks = [layer.train().register_forward_pre_hook(add) for layer in layers]
    shuffled = rows[epoch_order(len(rows), seed=0, epoch=0)]
    batch_size = math.ceil(len(rows) / math.ceil(len(rows) / batch_size))
    for part in batches(shuffled, batch_size=batch_size, progress=progress):
        x = augment.normalise(augment.to_unit(store.gather(part)), mean=mean, std=std)
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
