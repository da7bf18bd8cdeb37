"""The heatmaps of many tiles: each with its scores, batch by batch.

N tiles, S the side of a tile in pixels, h x w cells of a map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import augment
from sscl.data.tiles import TileStore
from sscl.explain import cam
from sscl.explain.targets import AnyTarget
from sscl.models import features
from sscl.models.heads import Classifier


@dataclass(frozen=True, eq=False)
class Heatmap:
    """The map of a tile.

    Attributes:
        cells: raw, before ReLU and scaling, (h, w). enlarged: to the tile, (S, S).
        prediction: index of the class that the model finds most likely.
        score: what the map explains, without the bias; missed: the sum of the cells minus the score; both in logits,
            None where maps do not sum to the score.
    """

    cells: NDArray[np.float32]
    enlarged: NDArray[np.float32]
    prediction: int
    score: float | None
    missed: float | None


def heatmaps(
    model: Classifier,
    store: TileStore,
    rows: NDArray[np.int64],
    *,
    target: AnyTarget,
    mean: torch.Tensor,
    std: torch.Tensor,
    method: str = "gradcam",
    layers: Sequence[str] = (),
    fuse: str = "max",
    batch_size: int = 32,
    progress: str | None = None,
) -> Iterator[Heatmap]:
    """Yield the heatmap of each tile at `rows`.

    Args:
        target, method, layers, fuse: see `cam.class_maps`. mean, std: (3,). progress: name of a bar, or None.
    """
    complete = method in cam.COMPLETE and not layers
    for images in features.batches(store, rows, batch_size=batch_size, progress=progress):
        x = augment.normalise(augment.to_unit(images), mean=mean, std=std)
        raw, logits = cam.class_maps(model, x, target=target, method=method, layers=layers, fuse=fuse)
        large = cam.upsample(raw, size_px=x.shape[-1]).float().cpu().numpy()
        scores: list[float | None] = [None] * len(images)
        missed: list[float | None] = [None] * len(images)
        if complete:
            score, miss = cam.unexplained(raw, logits, bias=model.head.bias, target=target)
            scores, missed = score.tolist(), miss.tolist()
        predictions = logits.argmax(1).tolist()
        yield from map(Heatmap, raw.float().cpu().numpy(), large, predictions, scores, missed)
