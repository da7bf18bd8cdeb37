"""Regions of slides: which one, its pixels at the scale of tiles, and the tiles that overlap over it.

n tiles, h x w pixels of a region, as large as a tile's.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.slides.index import Grid
from sscl.slides.pixels import DamagedTile, Readers
from sscl.slides.records import Scaling, Slide

OVERLAP = 0.5  # of a tile's side with the next one's
LEAST_CLASSIFIED = 0.5  # share of a tile that must lie under tiles that were classified


@dataclass(frozen=True)
class Region:
    """A rectangle of a slide, pixels of level 0."""

    x: int
    y: int
    width: int
    height: int


def clipped(region: Region, slide: Slide) -> Region | None:
    """Return the part of a region that lies in the slide; None: there is none."""
    width, height = min(region.width, slide.width - region.x), min(region.height, slide.height - region.y)
    return Region(region.x, region.y, width, height) if min(width, height) > 0 else None


def region_of(grid: Grid, weights: NDArray[np.floating], *, step: float, side: float) -> Region:
    """Return the square of at most `side` that has the greatest sum of weights, cut to the tiles in it.

    Args:
        grid: of the tiles, (n, 2) or more columns. weights: of each, (n,). step: side of a tile; all pixels of level 0.
    """
    corners = grid[:, :2].astype(np.int64)
    start = corners.min(0)
    bins = ((corners - start + 1) / step).astype(np.int64)[:, ::-1]  # corners on a grid are rounded
    sums = np.zeros(tuple(bins.max(0) + 1))
    np.add.at(sums, tuple(bins.T), weights.astype(np.float64))
    rows, columns = (min(max(1, int((side + 1) / step)), most) for most in sums.shape)
    whole = cv2.integral(sums)
    found = whole[rows:, columns:] - whole[:-rows, columns:] - whole[rows:, :-columns] + whole[:-rows, :-columns]
    best = np.argwhere(found >= found.max() - 1e-9)
    at = best[np.abs(best - best.mean(0)).sum(1).argmin()]  # of several, the one amid them
    inside = corners[((bins >= at) & (bins < at + (rows, columns))).all(1)]
    low, high = inside.min(0), np.ceil(inside.max(0) + step).astype(np.int64)
    return Region(*low.tolist(), *(high - low).tolist())


def tiles_in(region: Region, grid: Grid, step: float) -> NDArray[np.bool_]:
    """Return which tiles have a part in a region."""
    corner, size = np.array([region.x, region.y]), np.array([region.width, region.height])
    at = grid[:, :2] - corner
    return np.asarray(((at < size) & (at + step > 0)).all(1))


@dataclass(frozen=True)
class Frame:
    """Pixels of the map: where they lie on the slide. corner: x, y at level 0. factor: level 0 that each spans."""

    corner: tuple[int, int]
    factor: float
    width: int
    height: int

    def level(self, at: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return pixels of level 0 of x, y on the map, (n, 2)."""
        return np.asarray(np.floor(np.array(self.corner) + at * self.factor + 0.5), dtype=np.int64)


def frame_of(region: Region, scaling: Scaling) -> Frame:
    """Return the pixels of a region's map, which are as large as those of a tile."""
    factor = scaling.step / scaling.size_px
    width, height = (max(1, round(side / factor)) for side in (region.width, region.height))
    return Frame((region.x, region.y), factor, width, height)


def tiles_over(frame: Frame, slide: Slide, size_px: int, classified: Grid) -> NDArray[np.int64]:
    """Return corners of overlapping tiles over a region, pixels of its map, (n, 2), half on classified tiles or more.

    They begin before the region and end behind it, so that a place at its border is under as many as one amid it; all
    lie in the scanned area, the last ones at its border. Where they leave a part of a classified tile bare, that tile
    is one of them, too.

    Args:
        size_px: side of a tile. classified: tiles that were, (n, 2) or more columns, pixels of level 0.
    """
    stride = round(size_px * (1 - OVERLAP))
    left, top, wide, high = slide.bounds or (0, 0, slide.width, slide.height)
    axes = []
    for start, end, corner, side in zip(
        (left, top), (left + wide, top + high), frame.corner, (frame.width, frame.height), strict=True
    ):
        first, last = np.ceil((start - corner) / frame.factor), np.floor((end - corner) / frame.factor) - size_px
        at = np.arange(stride - size_px, side, stride)
        at = np.unique(np.clip(at, first, max(first, last))).astype(np.int64)
        axes.append(at[(at + size_px > 0) & (at < side)])  # others were moved away from a region that ends elsewhere
    corners = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    own = corners_on(frame, classified)
    table = cv2.integral(_marked(frame, own, size_px, margin=size_px))
    x, y = (corners + size_px).T
    x1, y1 = np.minimum(x + size_px, table.shape[1] - 1), np.minimum(y + size_px, table.shape[0] - 1)
    share = (table[y1, x1] - table[y, x1] - table[y1, x] + table[y, x]) / size_px**2
    corners = corners[share >= LEAST_CLASSIFIED]
    bare = cv2.integral(1 - _marked(frame, corners, size_px))
    (x, y), (x1, y1) = (np.clip(at, 0, (frame.width, frame.height)).T for at in (own, own + size_px))
    corners = np.concatenate([corners, own[bare[y1, x1] - bare[y, x1] - bare[y1, x] + bare[y, x] > 0]])
    _, first = np.unique(frame.level(corners), axis=0, return_index=True)
    return np.asarray(corners[first])


def corners_on(frame: Frame, grid: Grid) -> NDArray[np.int64]:
    """Return the corners of tiles as pixels of the map, (n, 2)."""
    return np.asarray(np.rint((grid[:, :2] - np.array(frame.corner)) / frame.factor), dtype=np.int64)


def classified_in(frame: Frame, size_px: int, classified: Grid) -> NDArray[np.bool_]:
    """Return where a classified tile lies, bool (h, w)."""
    return _marked(frame, corners_on(frame, classified), size_px) > 0


def _marked(frame: Frame, corners: NDArray[np.int64], size_px: int, *, margin: int = 0) -> NDArray[np.uint8]:
    """Return 1 where a tile lies, uint8 (h, w), with so many pixels more on each side."""
    mask = np.zeros((frame.height + 2 * margin, frame.width + 2 * margin), np.uint8)
    corners = corners + margin
    near = ((corners + size_px > 0) & (corners < mask.shape[::-1])).all(1)
    for x, y in corners[near].tolist():
        mask[max(y, 0) : y + size_px, max(x, 0) : x + size_px] = 1
    return mask


def pixels_of(frame: Frame, slide: Slide, scaling: Scaling, readers: Readers) -> NDArray[np.uint8]:
    """Return the slide's pixels over a region, uint8 (h, w, 3); what cannot be decoded is white.

    Raises:
        SlideError: the slide cannot be opened.
    """
    side = scaling.size_px
    picture = np.full((frame.height, frame.width, 3), 255, np.uint8)
    tile = np.empty((1, side, side, 3), np.uint8)
    for top in range(0, frame.height, side):
        for left in range(0, frame.width, side):
            try:
                readers.tiles(slide, scaling, frame.level(np.array([[left, top]])), tile)
            except DamagedTile:
                continue
            part = picture[top : top + side, left : left + side]
            part[:] = tile[0, : part.shape[0], : part.shape[1]]
    return picture
