"""The same picture, turned or mirrored by quarters, compressed or resized again: a perceptual hash of 63 bits.

A similar hash alone makes no pair: the thumbnails must correlate. What neither turns nor mirrors change is compared
first: one product of 80 numbers a pair leaves one pair in 2,000 of colon tiles, and nothing is lost by it.

N tiles, thumbnails of S x S.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.data.threads import blocks

Floats = NDArray[np.float32]
Signs = NDArray[np.int8]
Thumbnails = NDArray[np.float32] | NDArray[np.float16]

BITS = 63
SYMMETRIES = (
    "as it is",
    "mirrored left-right",
    "mirrored top-bottom",
    "turned 180°",
    "mirrored along the diagonal",
    "turned 90° clockwise",
    "turned 90° counter-clockwise",
    "mirrored along the other diagonal",
)

_INVERSE = (0, 1, 2, 3, 4, 6, 5, 7)
_THUMBNAIL_PX = 32
_SIDE = 8  # cosine coefficients of the hash
_COMPARED_SIDE = 12  # and of the invariants
_DISTANCE = 10  # bits
_CORRELATION = 0.95  # blurred tiles of different places reach 0.947
_FLAT = 3.0  # standard deviation of a thumbnail's luma, grey levels: below, there is nothing to compare
_ROUNDING = 0.005  # of thumbnails in float16
_BLOCK = 256  # rows compared with all others at a time


@dataclass(frozen=True)
class Same:
    """Two thumbnails that show the same: their rows, correlation, bits that differ, and what was done to the first."""

    first: int
    second: int
    score: float
    distance: int
    movement: str


def thumbnail(luma: NDArray[np.uint8]) -> Floats:
    """Return a tile of 32 x 32 grey values with mean 0 and length 1, all 0 where it is flat."""
    small = cv2.resize(luma, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= small.mean()
    if small.std() < _FLAT:
        return np.zeros_like(small)
    return small / np.linalg.norm(small)  # type: ignore[no-any-return]


def turned(values: Thumbnails, symmetry: int) -> Thumbnails:
    """Return square arrays (..., S, S) moved by one of `SYMMETRIES`: the diagonal first, then the mirrors."""
    values = values.swapaxes(-1, -2) if symmetry & 4 else values
    values = values[..., ::-1, :] if symmetry & 2 else values
    return values[..., ::-1] if symmetry & 1 else values


def lowest(thumbnails: Thumbnails) -> Floats:
    """Return the lowest cosine coefficients of thumbnails (N, S, S), (N, 12, 12)."""
    side = _COMPARED_SIDE
    return np.stack([cv2.dct(tile.astype(np.float32))[:side, :side] for tile in thumbnails])


def hash_signs(low: Floats) -> Signs:
    """Return the hashes by cosine coefficients (N, 12, 12) under each symmetry, -1 or 1, (8, N, 63).

    They are the signs of the lowest 8 x 8 except the mean. Mirroring a tile changes the sign of every second one, and
    the diagonal swaps rows and columns, so one transform serves all 8.
    """
    low = low[:, :_SIDE, :_SIDE]
    alternating = np.where(np.arange(_SIDE) % 2, -1, 1).astype(np.float32)
    found = np.empty((len(SYMMETRIES), len(low), BITS), np.int8)
    for symmetry, signs in enumerate(found):
        moved = low.swapaxes(1, 2) if symmetry & 4 else low
        moved = moved * alternating[:, None] if symmetry & 2 else moved
        moved = moved * alternating if symmetry & 1 else moved
        signs[:] = np.where(moved.reshape(len(low), -1)[:, 1:] < 0, -1, 1)
    return found


def invariants(low: Floats) -> Floats:
    """Return what no symmetry changes of cosine coefficients (N, 12, 12), (N, 78).

    Two tiles are at least as far apart as their invariants, whatever the symmetry: absolute values, and the mean of two
    numbers times the root of 2, bring nothing further apart.
    """
    sizes = np.abs(low)
    rows, columns = np.triu_indices(low.shape[1])
    either = (sizes[:, rows, columns] + sizes[:, columns, rows]) / np.where(rows == columns, 2, np.sqrt(2))
    return np.asarray(either, np.float32)


def same_pictures(thumbnails: Thumbnails, *, desc: str | None = None) -> list[Same]:
    """Return the pairs of thumbnails (N, 32, 32) with like hashes and a high correlation, by row, by best symmetry."""
    full = np.flatnonzero((thumbnails != 0).any((1, 2)))
    if len(full) < 2:
        return []
    tiles = thumbnails[full]
    low = lowest(tiles)
    signs = hash_signs(low)
    best: dict[tuple[int, int], Same] = {}
    for a, b in _near(invariants(low), desc=desc):
        for symmetry, inverse in enumerate(_INVERSE):
            bits = (BITS - np.einsum("nd,nd->n", signs[0, a], signs[symmetry, b])) // 2
            alike = np.flatnonzero(bits <= _DISTANCE)
            score = (tiles[a[alike]].astype(np.float32) * turned(tiles[b[alike]], symmetry)).sum((1, 2))
            for k in np.flatnonzero(score >= _CORRELATION):
                key = int(full[a[alike[k]]]), int(full[b[alike[k]]])
                if key not in best or score[k] > best[key].score:
                    best[key] = Same(*key, min(1.0, float(score[k])), int(bits[alike[k]]), SYMMETRIES[inverse])
    return [best[key] for key in sorted(best)]


def _near(vectors: Floats, *, desc: str | None) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the rows i < j of vectors (N, D) that are near enough for a correlation, some thousands at a time."""
    length = (vectors**2).sum(1, keepdims=True) / 2
    one = np.hstack([vectors, -length, np.ones_like(length)])
    other = np.hstack([vectors, np.ones_like(length), -length])
    for rows in blocks(len(vectors), _BLOCK, desc=desc):
        i, j = np.nonzero(one[rows] @ other[rows.start :].T >= _CORRELATION - 1 - _ROUNDING)
        i, j = i[j > i] + rows.start, j[j > i] + rows.start
        for part in np.array_split(np.arange(len(i)), len(i) // 8192 + 1):
            yield i[part], j[part]
