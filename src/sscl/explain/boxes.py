"""What a raw map says in pixels: whether there is evidence at all, its box, and whether both hit a truth mask.

H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sscl.config.maps import BOX_THRESHOLD

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
Corners = tuple[int, int, int, int]  # x0, y0, x1, y1, half open: columns x0..x1-1, rows y0..y1-1

# Least peak, in logits per cell, that counts as evidence. On a 7 x 7 map everything below it together moves
# the logit by less than 0.005 and a probability by about a thousandth.
MIN_EVIDENCE = 1e-4
# A positive peak this small beside the largest value of either sign is the rounding of a sum over channels
# (float32: 6e-8 a term, some thousand terms).
ROUNDING = 1e-5
CONNECTIVITY = 8  # pixels that touch at a corner are connected
WHOLE_TILE = 0.8  # a box of more than this fraction of the tile says no place
# Columns of boxes.csv, see `box_cells`.
BOX_COLUMNS = (
    *("x0", "y0", "x1", "y1", "threshold", "connectivity", "components", "area_fraction", "raw_maximum"),
    *("localisation", "further_boxes"),
)
MOST_FURTHER = 8  # regions beside that of the peak, the strongest first


@dataclass(frozen=True)
class Box:
    """The rectangle around the connected region of a map that holds its peak, and what is needed to assess it.

    Attributes:
        x0, y0, x1, y1: pixels, half open: columns x0..x1-1, rows y0..y1-1.
        threshold: fraction of the maximum from which a pixel belongs to a region.
        components: number of connected regions above the threshold; the box is that of the one with the peak.
        area_fraction: area of the rectangle / area of the map.
        raw_maximum: largest value of the map before any scaling.
        further: rectangles around other regions, at most MOST_FURTHER, that with the highest value first; none where
            the box says no place.
        cell_px: side of a cell of the map, in the same pixels.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    threshold: float
    components: int
    area_fraction: float
    raw_maximum: float
    further: tuple[Corners, ...] = ()
    cell_px: float = field(default=1.0, compare=False)

    @property
    def corners(self) -> Corners:
        """x0, y0, x1, y1."""
        return self.x0, self.y0, self.x1, self.y1

    @property
    def all(self) -> tuple[Corners, ...]:
        """The corners of the box and of those around other regions."""
        return (self.corners, *self.further)

    @property
    def shown(self) -> tuple[Corners, ...]:
        """The further rectangles to draw: of no less area than a cell, and no bars, as a value just at the threshold
        gives: more than 2 pixels and at least half a cell thick."""
        sides = [(one, one[2] - one[0], one[3] - one[1]) for one in self.further]
        return tuple(
            one
            for one, width, height in sides
            if width * height >= self.cell_px**2 and min(width, height) >= max(3, self.cell_px / 2)
        )

    @property
    def localises(self) -> bool:
        """Whether the box is small enough to say where the evidence is."""
        return self.area_fraction <= WHOLE_TILE


@dataclass(frozen=True)
class Hit:
    """How well a map and its boxes hit a truth mask, see `localisation`."""

    peak_hit: bool
    box_iou: float
    boxes_iou: float

    @property
    def box_hit(self) -> bool:
        """Whether the box overlaps enough."""
        return self.box_iou >= 0.5


def has_evidence(raw: FloatArray) -> bool:
    """Return whether a raw map (H, W) supports its target at all.

    It does if its maximum is positive, at least MIN_EVIDENCE (logits per cell), and more than rounding beside the
    largest value of either sign.

    Raises:
        ValueError: the map is not a matrix, or holds a value that is not finite.
    """
    if raw.ndim != 2 or raw.size == 0:
        raise ValueError(f"map: got shape {raw.shape}, must be (height, width) and not empty")
    if not np.isfinite(raw).all():
        raise ValueError("map: holds NaN or infinite values; the model's weights or its input are broken")
    peak = float(raw.max())
    return peak >= MIN_EVIDENCE and peak > ROUNDING * float(np.abs(raw).max())


def normalise(raw: FloatArray) -> npt.NDArray[np.float32]:
    """Return the positive part of a raw map (H, W) over its maximum, in 0..1; all zeros without evidence.

    Never min-max: that turns a constant positive map into zeros and rounding noise into a confident peak.
    """
    if not has_evidence(raw):
        return np.zeros(raw.shape, dtype=np.float32)
    scaled: npt.NDArray[np.float32] = (np.maximum(raw, 0) / raw.max()).astype(np.float32)
    return scaled


def find_box(raw: FloatArray, *, threshold: float = BOX_THRESHOLD, cells: int | None = None) -> Box | None:
    """Return the rectangle around the region of a raw map (H, W) that holds its peak, or None without evidence.

    Regions are connected pixels of at least `threshold` of the maximum. (CAM's authors box the largest region, which
    on maps of many cells often misses the peak.) The threshold determines the size of the box, so it is kept in the
    result.

    Args:
        raw: one raw map, already enlarged to the tile, so that the box is in pixels of the tile.
        threshold: within 0..1, 0 excluded. CAM's convention is 0.2, the authors of Grad-CAM use 0.15; at 0.2 a third of
            the boxes on real colon tiles were the whole tile (docs/results/heatmaps.md), at 0.5 none.
        cells: a side of the map before it was enlarged, for `Box.shown`; None = each pixel is a cell.

    Raises:
        ValueError: the threshold is out of range, or the map is not finite.

    Source: Zhou et al., arXiv:1512.04150, section 3.2.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: got {threshold}, must be above 0 and at most 1 (0.5 is the default)")
    if not has_evidence(raw):
        return None
    regions, count = ndimage.label(raw >= threshold * raw.max(), structure=np.ones((3, 3)))
    places = ndimage.find_objects(regions)  # of regions 1, 2, ...: 0 is the background
    peak = int(regions.ravel()[raw.argmax()])
    rows, columns = places[peak - 1]
    area = (rows.stop - rows.start) * (columns.stop - columns.start) / raw.size
    others: list[int] = []
    if count > 1 and area <= WHOLE_TILE:
        highest = ndimage.maximum(raw, regions, np.arange(1, count + 1))
        others = [region for region in (np.argsort(-highest, kind="stable") + 1).tolist() if region != peak]
    return Box(
        x0=columns.start,
        y0=rows.start,
        x1=columns.stop,
        y1=rows.stop,
        threshold=threshold,
        components=count,
        area_fraction=area,
        raw_maximum=float(raw.max()),
        further=tuple(
            (across.start, down.start, across.stop, down.stop)
            for down, across in (places[region - 1] for region in others[:MOST_FURTHER])
        ),
        cell_px=1.0 if cells is None else max(raw.shape) / cells,
    )


def remark(box: Box | None) -> str:
    """Return what a reader must know of a box, in words; "" where there is nothing."""
    if box is None:
        return "no positive evidence, so no box"
    if not box.localises:
        return f"the box covers {box.area_fraction:.0%} of the tile: no localisation, not assessed"
    return ""


def remarks(found: Sequence[Box | None]) -> str:
    """Return how many of many boxes need a remark, in words: "2 without positive evidence, 3 with a box over ..."."""
    boxed = [box for box in found if box is not None]
    whole = sum(not box.localises for box in boxed)
    said = [f"{len(found) - len(boxed)} without positive evidence"]
    said += [f"{whole} with a box over {WHOLE_TILE:.0%} of the tile (no localisation, not assessed)"] if whole else []
    return ", ".join(said)


def box_cells(raw: FloatArray, box: Box | None, *, threshold: float) -> list[int | float | str | None]:
    """Return the BOX_COLUMNS of a map, (H, W); without evidence there is no box, and the raw maximum is kept."""
    if box is None:
        return [None, None, None, None, threshold, CONNECTIVITY, 0, None, float(raw.max()), "no evidence", ""]
    return [
        *(*box.corners, box.threshold, CONNECTIVITY, box.components, box.area_fraction, box.raw_maximum),
        *("yes" if box.localises else "not assessed", "; ".join(" ".join(map(str, one)) for one in box.further)),
    ]


def localisation(raw: FloatArray, box: Box | None, mask: BoolArray) -> Hit:
    """Return how well a map and its boxes hit a truth mask.

    `peak_hit`: the map's largest value lies on the mask (pointing game, without a margin). `box_iou`: intersection
    over union of the box and the smallest rectangle around the whole mask; `box_hit`: that is at least 0.5.
    `boxes_iou`: of the area in any box, further ones too, and the area in any rectangle around a connected part of the
    mask: a rectangle around several parts is mostly what lies between them. Without a box (no evidence) all are misses.
    These numbers depend on how much of the tile the mask covers: compare them
    with those of `centre_map`.

    Args:
        raw: one raw map, (H, W).
        box: of that map, from `find_box`.
        mask: truth, bool (H, W).

    Raises:
        ValueError: the shapes differ, or the mask is empty.

    Source: pointing game, Zhang et al., arXiv:1608.00507; box accuracy at IoU 0.5, Choe et al.,
    arXiv:2001.07437.
    """
    if raw.shape != mask.shape:
        raise ValueError(
            f"map and mask: got shapes {raw.shape} and {mask.shape}, must be equal (enlarge the map first)"
        )
    truth = mask_box(mask)
    if box is None:
        return Hit(peak_hit=False, box_iou=0.0, boxes_iou=0.0)
    return Hit(
        peak_hit=bool(mask[np.unravel_index(raw.argmax(), raw.shape)]),
        box_iou=box_iou(box.corners, truth),
        boxes_iou=boxes_iou(box.all, mask_parts(mask), shape=mask.shape),
    )


def mask_box(mask: BoolArray) -> Corners:
    """Return the smallest rectangle around a whole mask (H, W).

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("mask: has no true pixel, so there is nothing to hit; leave this tile out")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_parts(mask: BoolArray) -> list[Corners]:
    """Return the smallest rectangle around each connected part of a mask (H, W)."""
    parts, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return [(across.start, down.start, across.stop, down.stop) for down, across in ndimage.find_objects(parts)]


def boxes_iou(some: Sequence[Corners], others: Sequence[Corners], *, shape: tuple[int, ...]) -> float:
    """Return intersection over union of the areas (H, W) that two sets of rectangles cover, each taken together."""
    a, b = _covered(some, shape), _covered(others, shape)
    return float((a & b).sum() / max(int((a | b).sum()), 1))


def _covered(rectangles: Sequence[Corners], shape: tuple[int, ...]) -> BoolArray:
    found = np.zeros(shape, dtype=bool)
    for x0, y0, x1, y1 in rectangles:
        found[y0:y1, x0:x1] = True
    return found


def box_iou(a: Corners, b: Corners) -> float:
    """Return intersection over union of two rectangles."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def centre_map(size_px: int) -> npt.NDArray[np.float32]:
    """Return a map (size_px, size_px) that always points at the centre: the baseline for `localisation`.

    A Gaussian whose standard deviation is 0.3 of the side, peak about 1: its box at 0.5 is centred, 71% wide.
    """
    offset = (np.arange(size_px) - (size_px - 1) / 2) / (0.3 * size_px)
    return np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / 2).astype(np.float32)
