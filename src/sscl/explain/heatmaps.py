"""The heatmaps of many tiles: each with its scores, batch by batch.

N tiles, S the side of a tile in pixels, h x w cells of a map.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import augment
from sscl.data.tiles import TileStore
from sscl.device import Later
from sscl.explain import cam
from sscl.explain.choice import of_model
from sscl.explain.kinds import GRADCAM, MapKind
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
    kind: MapKind = GRADCAM,
    batch_size: int = 32,
    progress: str | None = None,
) -> Iterator[Heatmap]:
    """Yield the heatmap of each tile at `rows`.

    Args:
        target: see `cam.class_maps`; of a tensor, a row for each of `rows`.
        mean, std, kind: see `heatmaps_of_batches`. progress: name of a bar, or None.
    """
    batches = features.batches(store, rows, batch_size=batch_size, progress=progress)
    parts = torch.split(target, batch_size) if isinstance(target, torch.Tensor) else itertools.repeat(target)
    yield from heatmaps_of_batches(model, zip(batches, parts, strict=False), mean=mean, std=std, kind=kind)


def heatmaps_of_batches(
    model: Classifier,
    batches: Iterable[tuple[torch.Tensor, AnyTarget]],
    *,
    mean: torch.Tensor,
    std: torch.Tensor,
    kind: MapKind = GRADCAM,
) -> Iterator[Heatmap]:
    """Yield the heatmap of each tile of the batches; those of a batch arrive while the next is computed.

    Args:
        batches: tiles, uint8 (B, S, S, 3) on the model's device, and their target, see `cam.class_maps`.
        mean, std: (3,). kind: how the maps are made.

    Maps are computed in float32 also where predictions are not: in bf16 each feature has 8 bits, and a map of the
    difference of two logits is what remains when large parts of both cancel.
    """
    kind = of_model(kind, model)
    coming: deque[_Started] = deque()
    for images, target in batches:
        x = augment.normalise(augment.to_unit(images), mean=mean, std=std)
        raw, logits = cam.class_maps(model, x, target=target, kind=kind)
        large = cam.upsample(raw, size_px=x.shape[-1]).float()
        sums = (
            cam.unexplained(raw, logits, bias=model.head.bias, target=target, gamma=kind.gamma)
            if kind.in_logits
            else ()
        )
        coming.append(_Started(*map(Later, (raw.float(), large, logits.argmax(1), *sums))))
        if len(coming) > 1:
            yield from coming.popleft().heatmaps()
    while coming:
        yield from coming.popleft().heatmaps()


@dataclass(frozen=True, eq=False)
class _Started:
    """A batch of maps on its way from the device; the fields are those of `Heatmap`."""

    cells: Later
    enlarged: Later
    prediction: Later
    score: Later | None = None
    missed: Later | None = None

    def heatmaps(self) -> Iterator[Heatmap]:
        """Yield the heatmaps as soon as they have arrived."""
        cells, enlarged = (later.tensor().clone().numpy() for later in (self.cells, self.enlarged))
        predictions = self.prediction.tensor().tolist()
        none = [None] * len(predictions)
        scores, missed = (none if one is None else one.tensor().tolist() for one in (self.score, self.missed))
        yield from map(Heatmap, cells, enlarged, predictions, scores, missed)
