"""A model's outputs for the tiles of a set: an encoder's features, a classifier's logits.

N tiles, B of them a batch, C features, K classes.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sscl import augment
from sscl.data.tiles import TileStore
from sscl.device import Later, autocast
from sscl.progress import Bar

BatchView = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of tiles uint8 (B, H, W, 3) and their rows (B,)

SYMMETRIES = 8  # flips and rotations of a square
_BEHIND = 2  # batches whose outputs are still on their way to the host


def batches(
    store: TileStore, rows: NDArray[np.int64], *, batch_size: int, progress: str | None = None
) -> Iterator[torch.Tensor]:
    """Yield the tiles at `rows` in order, uint8 (<= batch_size, H, W, 3) on the device; `progress` names a bar.

    The next ones are read meanwhile, see `TileStore.batches`.
    """
    order = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    bar = Bar(len(rows), desc=progress, unit="tile")
    with bar, contextlib.closing(store.batches(order)) as coming:
        for images in coming:
            yield images
            bar.update(len(images))


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
    view: BatchView | None = None,
    progress: str | None = None,
) -> torch.Tensor:
    """Return model(tile) of the tiles at `rows`, in evaluation mode, float32 on the CPU, (N, ...).

    With an encoder these are its embeddings (N, C), with a classifier its logits (N, K). Every part of the
    model is left in the mode it was in. The device is given the next batches before the outputs of one have arrived.

    With `view` the model sees what that makes of the tiles, normalised, (B, 3, H, W); else the tiles as they are.

    With `symmetric` it is the mean over the 8 flips and rotations of each tile, to the last bit the same whichever way
    the tile lies. Of a classifier it is the mean of logits, not of probabilities: what comes back is logits still, so
    that a temperature is applied once and in one place, and no view counts for less because its softmax saturates.

    Raises:
        ValueError: some output is not a finite number: the weights have diverged.
    """
    modes = [(module, module.training) for module in model.modules()]  # a frozen part may be in another mode
    model.eval()
    pad_to = batch_size if len(rows) > batch_size else 0
    coming: deque[Later] = deque()
    parts: list[torch.Tensor] = []
    try:
        order = torch.split(torch.from_numpy(rows), batch_size)
        for part, images in zip(order, batches(store, rows, batch_size=batch_size, progress=progress), strict=True):
            found = forward(
                model,
                images,
                mean=mean,
                std=std,
                precision=precision,
                symmetric=symmetric,
                pad_to=pad_to,
                view=None if view is None else _of_rows(view, part.to(images.device)),
            )
            coming.append(Later(found))
            if len(coming) > _BEHIND:
                parts.append(coming.popleft().tensor().clone())  # from memory that is pinned, so from scarce memory
        parts += [later.tensor() for later in coming]
    finally:
        for module, training in modes:
            module.training = training
    whole = torch.cat(parts)
    check_finite(whole)
    return whole


def _of_rows(view: BatchView, rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: view(images, rows)


@torch.inference_mode()
def forward(
    model: nn.Module,
    images: torch.Tensor,
    *,
    mean: torch.Tensor,
    std: torch.Tensor,
    precision: str = "fp32",
    symmetric: bool = False,
    pad_to: int = 0,
    view: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the outputs of a model in evaluation mode for tiles on the device, float32 there, (B, ...).

    Args:
        images: uint8 (B, H, W, 3). mean, std, precision, symmetric: as of `outputs`.
        pad_to: on CUDA, fewer tiles are filled up to this many, since cuDNN searches its fastest algorithms anew for
            each size of a batch, which takes longer than the tiles.
        view: makes the model's input of the tiles; None = they are normalised as they are.
    """
    count = len(images)
    x = augment.normalise(augment.to_unit(images), mean=mean, std=std) if view is None else view(images)
    if images.device.type == "cuda" and count < pad_to:
        x = torch.cat([x, x[:1].expand(pad_to - count, *x.shape[1:])]).contiguous(memory_format=torch.channels_last)
    with autocast(images.device, precision):
        found = mean_over_symmetries(model, x) if symmetric else model(x)
    return found.float()[:count]


def check_finite(found: torch.Tensor) -> None:
    """Raise ValueError if some outputs, (N, ...), are not finite numbers, saying what to do."""
    broken = int((~found.isfinite())[:, None].flatten(1).any(1).sum())
    if broken:
        raise ValueError(
            f"the model's outputs for {broken} of {len(found)} tiles are not finite numbers: its weights diverged; "
            "lower train.learning_rate, lengthen train.warmup_epochs, or set precision=fp32"
        )


def mean_over_symmetries(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the mean of the model's float32 outputs over the 8 flips and rotations of x (B, 3, H, H), (B, ...).

    The views are sorted before they are added, so that rounding does not depend on which of them comes first.
    """
    views = [model(symmetry(x, number)).float() for number in range(SYMMETRIES)]
    return torch.stack(views).sort(0).values.mean(0)


def symmetry(x: torch.Tensor, number: int) -> torch.Tensor:
    """Return one of the 8 flips and rotations of x (B, 3, H, H), channels_last; number 0 is x itself."""
    turned = torch.rot90(x, number // 2, (2, 3))
    return (turned.flip(3) if number % 2 else turned).contiguous(memory_format=torch.channels_last)
