"""Outlines of connected cells of a grid, as polygons with holes whose corners are corners of cells.

h rows and w columns of cells, m corners of a ring.
"""

from __future__ import annotations

from collections import defaultdict

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Ring = NDArray[np.int64]  # (m + 1, 2): x, y; the last corner is the first again
Rings = tuple[Ring, ...]  # of one polygon: its outline, then its holes


def outlines(cells: NDArray[np.bool_], x_edges: ArrayLike, y_edges: ArrayLike) -> list[tuple[Rings, ...]]:
    """Return the regions of cells that are set, each as the polygons that it consists of.

    Cells that share a side or a corner are one region. Where parts of it meet in corners alone, each part is a polygon
    of its own, since an outline that touches itself is not valid. No corner lies on a straight line, none is twice in a
    ring; the outline goes round in the sense of positive area (x to the right, y as it is), holes in the other one.

    Args:
        cells: (h, w).
        x_edges, y_edges: w + 1 and h + 1 borders of the cells, pixels of level 0.
    """
    height, width = cells.shape
    across, down = np.asarray(x_edges, np.int64), np.asarray(y_edges, np.int64)
    assert (len(across), len(down)) == (width + 1, height + 1), "one border more than cells"
    mask = cells.astype(np.uint8)
    parts = np.asarray(cv2.connectedComponents(mask, connectivity=4)[1], np.int32)
    count, regions = cv2.connectedComponents(mask, connectivity=8)
    found: list[list[Rings]] = [[] for _ in range(count - 1)]
    corners = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
    for part, loops in _loops(cells, parts).items():
        rings = [corners[_turns(np.array(loop), width + 1)] for loop in loops]
        rings.sort(key=_area, reverse=True)  # the outline is the only one of positive area
        row, column = divmod(min(min(loop) for loop in loops), width + 1)  # its first cell, row by row
        assert parts[row, column] == part
        found[regions[row, column] - 1].append(tuple(rings))
    return [tuple(polygons) for polygons in found]


def _loops(cells: NDArray[np.bool_], parts: NDArray[np.int32]) -> dict[int, list[list[int]]]:
    """Return the borders of each part as loops of corner numbers, none of which is twice in a loop."""
    following: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for part, start, end in _sides(cells, parts):
        following[part][start].append(end)
    loops: dict[int, list[list[int]]] = {}
    for part, ends in following.items():
        loops[part] = []
        while ends:
            path: list[int] = []
            places: dict[int, int] = {}
            corner: int | None = next(iter(ends))
            while corner is not None:
                if corner in places:  # a loop is closed; what came before it may still go on
                    first = places[corner]
                    loops[part].append(path[first:])
                    for passed in path[first:]:
                        del places[passed]
                    del path[first:]
                if corner not in ends:
                    break
                places[corner] = len(path)
                path.append(corner)
                left = ends[corner]
                corner_next = left.pop()
                if not left:
                    del ends[corner]
                corner = corner_next
    return loops


def _sides(cells: NDArray[np.bool_], parts: NDArray[np.int32]) -> list[tuple[int, int, int]]:
    """Return part, first and last corner of each side of a cell behind which no cell is set, cells to the right."""
    padded = np.pad(cells, 1)
    width = cells.shape[1] + 1
    found = []
    # Where the neighbour is, and from which to which corner of the cell the side goes: (row, column) of each.
    for (down, right), start, end in (
        ((-1, 0), (0, 0), (0, 1)),
        ((0, 1), (0, 1), (1, 1)),
        ((1, 0), (1, 1), (1, 0)),
        ((0, -1), (1, 0), (0, 0)),
    ):
        beyond = padded[1 + down : padded.shape[0] - 1 + down, 1 + right : padded.shape[1] - 1 + right]
        rows, columns = np.nonzero(cells & ~beyond)
        first = (rows + start[0]) * width + columns + start[1]
        last = (rows + end[0]) * width + columns + end[1]
        found.append(np.stack([parts[rows, columns], first, last], axis=1))
    return [(part, start, end) for part, start, end in np.concatenate(found).tolist()]


def _turns(loop: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return the corners of a loop at which it turns, closed."""
    before, after = np.roll(loop, 1), np.roll(loop, -1)
    upright = np.abs(after - loop) == width  # the way out goes up or down
    turns = loop[upright != (np.abs(loop - before) == width)]
    return np.append(turns, turns[:1])


def _area(ring: Ring) -> int:
    """Return twice the signed area of a ring."""
    x, y = ring[:-1].T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
