"""Tiles of a slide back on one map: what lies under several tiles has their mean, and is counted.

n tiles, h rows and w columns of cells, K values of a tile.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_CELLS = 2**26  # of a map; the tiles of others can lie anywhere
_SLACK = 1  # pixels: a tile's end and the next one's begin are both rounded


@dataclass(frozen=True)
class Cells:
    """The rectangles that the borders of all tiles cut a slide into.

    Attributes:
        x_edges, y_edges: borders of columns (w + 1) and rows (h + 1), pixels of level 0.
        first, last: of each tile, the row and column of its first cell, and of the one after its last, (n, 2).
        counts: tiles over each cell, int32 (h, w).
    """

    x_edges: NDArray[np.int64]
    y_edges: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    counts: NDArray[np.int32]

    def mean(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the mean of a value of the tiles, (n,), over each cell, (h, w); NaN where there is no tile."""
        sums = _summed(self.first, self.last, values.astype(np.float64), shape=self.counts.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(self.counts > 0, sums / self.counts, np.nan)
        return found.astype(np.float32)


def cells_of(xy: NDArray[np.integer], footprint: float) -> Cells:
    """Return the cells of tiles.

    Args:
        xy: top-left corners, pixels of level 0, (n, 2). footprint: side of a tile, pixels of level 0.

    Raises:
        ValueError: they would be too many.
    """
    corners = np.asarray(xy, np.int64)
    ends = np.rint(corners + footprint).astype(np.int64)
    edges, firsts, lasts = [], [], []
    for axis in (0, 1):
        edge = _edges(corners[:, axis], ends[:, axis])
        edges.append(edge)
        firsts.append(np.searchsorted(edge, corners[:, axis] - _SLACK))
        lasts.append(np.searchsorted(edge, ends[:, axis] - _SLACK))
    if (len(edges[0]) - 1) * (len(edges[1]) - 1) > MOST_CELLS:
        raise ValueError(f"its tiles lie on no grid ({len(edges[0]):,} columns, {len(edges[1]):,} rows)")
    first, last = np.stack(firsts[::-1], axis=1), np.stack(lasts[::-1], axis=1)
    counts = _summed(first, last, np.ones(len(corners)), shape=(len(edges[1]) - 1, len(edges[0]) - 1))
    return Cells(edges[0], edges[1], first, last, counts.astype(np.int32))


def mean_map(
    maps: Iterable[tuple[tuple[int, int], NDArray[np.float32]]], *, height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Return the mean of the maps of tiles over each pixel of a region, (height, width), and how many lie there.

    A tile counts the more the farther a pixel is from its border, see `window`. Values are added up as they are: none
    is scaled by its tile. NaN where there is no tile.

    Args:
        maps: x and y of a tile's corner, pixels from that of the region, also outside of it; and its map, (S, S).
    """
    sums, weights = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    counts = np.zeros((height, width), np.uint16)
    for (left, top), values in maps:
        side = len(values)
        ys, xs = slice(max(top, 0), min(top + side, height)), slice(max(left, 0), min(left + side, width))
        if ys.stop <= ys.start or xs.stop <= xs.start:
            continue
        weight = window(side)
        part = slice(ys.start - top, ys.stop - top), slice(xs.start - left, xs.stop - left)
        sums[ys, xs] += weight[part] * values[part]
        weights[ys, xs] += weight[part]
        counts[ys, xs] += 1
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(counts > 0, sums / weights, np.float32(np.nan)), counts


@functools.cache
def window(side: int) -> NDArray[np.float32]:
    """Return how much each pixel of a tile counts, (S, S): Hann's window, near 0 at the border and 1 in the middle.

    A network sees less around a place at the border, and zeros beyond it. Tiles that overlap by half add up to 1
    everywhere, and one fades into the next.
    """
    along = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    return np.outer(along, along).astype(np.float32)


def _edges(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all borders along an axis; one that another is within a pixel of is left out, an end before a begin."""
    begins = np.unique(starts)
    kept = begins[np.diff(begins, prepend=begins[:1] - 2 * _SLACK) > _SLACK]
    others = np.unique(ends)
    at = np.searchsorted(kept, others)
    near = np.minimum(
        np.abs(others - kept[np.minimum(at, len(kept) - 1)]), np.abs(others - kept[np.maximum(at - 1, 0)])
    )
    others = others[near > _SLACK]
    others = others[np.diff(others, prepend=others[:1] - 2 * _SLACK) > _SLACK]
    return np.sort(np.concatenate([kept, others]))


def _summed(
    first: NDArray[np.int64], last: NDArray[np.int64], values: NDArray[np.float64], *, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return the sum of the values over each cell: each tile adds at two corners, and takes off at the others."""
    sums = np.zeros((shape[0] + 1, shape[1] + 1))
    for rows, columns, sign in ((first, first, 1), (first, last, -1), (last, first, -1), (last, last, 1)):
        np.add.at(sums, (rows[:, 0], columns[:, 1]), sign * values)
    found = sums.cumsum(0).cumsum(1)[:-1, :-1]
    return np.asarray(found)
