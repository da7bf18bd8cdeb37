"""A model's outputs for the tiles of a set: an encoder's features, a classifier's logits.

N tiles, B of them a batch, C features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from sscl import augment
from sscl.data.tiles import TileStore
from sscl.device import autocast


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
