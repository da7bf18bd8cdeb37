"""Where the tiles of a slide are: a regular grid over the scanned area, of which those on tissue are taken."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.slides.overview import between
from sscl.slides.records import Overview, Scaling, Slide
from sscl.slides.tissue import Tissue

Floats = NDArray[np.float64]
_SLACK = 1e-6  # of sums of up to 10⁸ pixels, of which a small tile is the difference


def tissue_tiles(
    slide: Slide, tissue: Tissue, overview: Overview, scaling: Scaling, *, min_coverage: float, overlap: float
) -> NDArray[np.int32]:
    """Return the tiles on tissue, int32 (n, 3): x, y of the corner at level 0, coverage in percent (1 to 100).

    Tile i of a row begins round(i * step * (1 - overlap)) pixels from the scanned area's border; no steps are added up,
    so none is off by more than half a pixel. All end inside the scanned area. They are in order of y, then x.

    Args:
        min_coverage: share of a tile's area that must be tissue, 0 to 1; at 0 any at all is enough.
        overlap: share of its side that a tile shares with the next one, 0 to 0.9.
    """
    left, top, width, height = slide.bounds or (0, 0, slide.width, slide.height)
    xs = _origins(left, min(left + width, slide.width), scaling=scaling, slide=slide, overlap=overlap)
    ys = _origins(top, min(top + height, slide.height), scaling=scaling, slide=slide, overlap=overlap)
    shares = _coverage(tissue.mask, xs, ys, side=scaling.step, factors=(overview.factor_x, overview.factor_y))
    rows, columns = np.nonzero((shares > min_coverage - _SLACK) & (shares > _SLACK))
    percent = np.clip(np.rint(100 * shares[rows, columns]), 1, 100)
    return np.stack([xs[columns], ys[rows], percent], axis=1).astype(np.int32)


def _origins(start: int, end: int, *, scaling: Scaling, slide: Slide, overlap: float) -> Floats:
    """Return where tiles begin along one side, such that the pixels read for each end before the border."""
    factor = slide.levels[scaling.level].factor
    stride = scaling.step * (1 - overlap)
    origins = start + np.floor(np.arange(int((end - start) / stride) + 1) * stride + 0.5)
    ends = np.floor(origins / factor + 0.5) + scaling.side  # pixels of the level that is read
    return np.asarray(origins[ends <= np.floor(end / factor + 1e-6)], dtype=np.float64)


def _coverage(mask: NDArray[np.bool_], xs: Floats, ys: Floats, *, side: float, factors: tuple[float, float]) -> Floats:
    """Return the share of each square that is in the mask, (len(ys), len(xs)), by parts of its pixels.

    The integral of a mask of constant pixels is linear within each along x and y: interpolated, it is exact.
    """
    integral = np.asarray(cv2.integral(mask.astype(np.uint8)))
    for axis, (starts, factor) in enumerate(((ys, factors[1]), (xs, factors[0]))):
        low, high = (np.clip(at / factor, 0, integral.shape[axis] - 1) for at in (starts, starts + side))
        integral = between(integral, high, axis=axis) - between(integral, low, axis=axis)
    return np.asarray(integral * (factors[0] * factors[1] / side**2), dtype=np.float64)
