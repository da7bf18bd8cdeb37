"""Features of an encoder that does not change: computed once, and kept by all that they depend on.

N tiles, B of them a batch, C features, H = W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import augment
from sscl.data import cache
from sscl.data.tiles import Tiles, as_rows
from sscl.models.features import BatchView, symmetry


@dataclass(frozen=True)
class View:
    """What an encoder sees of each tile.

    Attributes:
        key: all that it depends on besides the pixels and their normalisation. make: None = the tile as it is.
    """

    key: tuple[object, ...] = ("as it is",)
    make: BatchView | None = None


AS_IT_IS = View()


def symmetric_view(number: int, *, mean: torch.Tensor, std: torch.Tensor) -> View:
    """Return one of the 8 flips and rotations, by its number; 0 is the tile as it is."""

    def make(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return symmetry(augment.normalise(augment.to_unit(images), mean=mean, std=std), number)

    return View(("symmetry", number), make) if number else AS_IT_IS


@dataclass(frozen=True)
class FeatureKey:
    """All that the features of some tiles depend on.

    Attributes:
        encoder: `Start.fingerprint`, of its weights, pooling and normalisation.
        pixels: `pixels_of` the tiles. rows: N.
        precision: fp32, bf16 or fp16.
        view: `View.key`.
        adapted: batch size of which batch-norm statistics were computed on these tiles; 0 = those of the weights.
    """

    encoder: str
    pixels: str
    rows: int
    precision: str
    view: tuple[object, ...] = AS_IT_IS.key
    adapted: int = 0

    def file(self, cache_dir: Path | str | None) -> Path:
        """Return where the features are kept; the file may not exist yet."""
        return cache.outputs_file(astuple(self), cache_dir=cache_dir)


def kept_features(
    compute: Callable[[], torch.Tensor], key: FeatureKey, *, cache_dir: Path | str | None
) -> torch.Tensor:
    """Return the features, float32 (N, C) on the CPU, from the cache, or from `compute` where it has none.

    Raises:
        ValueError: the cache folder cannot be written; and what `compute` raises.
    """
    found = cache.cached_outputs(lambda: compute().numpy(), key=astuple(key), rows=key.rows, cache_dir=cache_dir)
    return torch.from_numpy(found)


def pixels_of(tiles: Tiles, rows: NDArray[np.int64]) -> str:
    """Return 64 hex digits that depend on the pixels and the order of the tiles at `rows`, and on nothing else.

    Pixels from the cache count as they were when they were decoded.
    """
    found = as_rows(tiles.images).select(rows)
    digest = hashlib.sha256(repr(found.shape).encode())
    digest.update(found.digests().astype("<u8").tobytes())
    return digest.hexdigest()
