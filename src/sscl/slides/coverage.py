"""How much of each tile lies inside polygons of a class.

n tiles, K classes, m corners of a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LINES = 128  # that cross each tile
PRECISION = 1 / (2 * LINES)  # of a share, for each border that runs along a line
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Polygon:
    """An area of a class: its outline, then its holes, each (m + 1, 2) x, y in pixels of level 0, closed."""

    label: str
    rings: tuple[Numbers, ...]


def coverage_of(
    polygons: Sequence[Polygon], xy: NDArray[np.integer], *, side: float, classes: Sequence[str]
) -> NDArray[np.float32]:
    """Return the share of each tile that polygons of each class cover, (n, K), holes left out.

    What several polygons of a class cover counts once. A horizontal line is drawn through each of 128 equal bands of a
    tile, and its length inside is exact: the share is so to within 1/256 for each border that runs along a line.

    Args:
        xy: top-left corners of the tiles, (n, 2), pixels of level 0. side: of a tile, pixels of level 0.
        classes: K names; polygons of others are left out.
    """
    shares = np.zeros((len(xy), len(classes)), np.float32)
    tops, row_of = np.unique(xy[:, 1], return_inverse=True)
    members = np.split(np.argsort(row_of, kind="stable"), np.cumsum(np.bincount(row_of, minlength=len(tops)))[:-1])
    for column, label in enumerate(classes):
        edges = _edges([polygon for polygon in polygons if polygon.label == label])
        if not len(edges):
            continue
        low, high = edges[:, [2, 4]].min(1), edges[:, [2, 4]].max(1)
        for top, tiles in zip(tops.tolist(), members, strict=True):
            near = edges[(high > top) & (low < top + side)]
            if len(near):
                shares[tiles, column] = _row(near, xy[tiles, 0].astype(np.float64), top=top, side=side)
    return shares


def _edges(polygons: Sequence[Polygon]) -> Numbers:
    """Return the sides of all rings that are not horizontal: number of the polygon, x, y, x, y."""
    found = [np.zeros((0, 5))]
    for number, polygon in enumerate(polygons):
        for ring in polygon.rings:
            sides = np.hstack([np.full((len(ring) - 1, 1), float(number)), ring[:-1], ring[1:]])
            found.append(sides[sides[:, 2] != sides[:, 4]])
    return np.concatenate(found)


def _row(edges: Numbers, left: Numbers, *, top: float, side: float) -> Numbers:
    """Return the share of each tile of a row that is inside: `left` (n,) are their left borders."""
    step = side / LINES
    number, x0, y0, x1, y1 = edges.T
    # The first line at or below each end of a side: a side from y to y' crosses the lines y <= line < y'.
    first, last = (np.clip(np.ceil((y - top) / step - 0.5), 0, LINES).astype(np.int64) for y in (y0, y1))
    first, last = np.minimum(first, last), np.maximum(first, last)
    times = last - first
    if not times.any():
        return np.zeros(len(left))
    which = np.repeat(np.arange(len(edges)), times)
    line = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times) + first[which]
    at = x0[which] + (top + (line + 0.5) * step - y0[which]) * ((x1 - x0) / (y1 - y0))[which]
    # All lines one behind the other on one long line, so that one pass does for them all.
    start, end = min(float(at.min()), float(left.min())), float(left.max()) + side
    length = max(float(at.max()), end) - start + 1
    place = (at - start) + line * length
    order = np.lexsort((place, number[which]))
    change = np.empty(len(order), np.int64)
    change[order] = np.where(np.arange(len(order)) % 2 == 0, 1, -1)  # a line enters a polygon, and leaves it again
    order = np.argsort(place, kind="stable")
    place, depth = place[order], np.cumsum(change[order])
    filled = np.append(0.0, np.cumsum(np.diff(place) * (depth[:-1] > 0)))
    borders = (left - start)[:, None] + np.arange(LINES) * length
    covered = np.interp(borders + side, place, filled) - np.interp(borders, place, filled)
    return np.asarray(covered.mean(1) / side)
