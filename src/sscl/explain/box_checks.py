"""How much a heatmap's box depends on its threshold, and how often peaks and boxes hit truth masks.

N tiles, S the side of a tile in pixels, T thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sscl.evaluate.intervals import FEWEST, Groups, Interval, Sample, group_count
from sscl.evaluate.proportions import Proportion, proportions_among
from sscl.evaluate.verdicts import Mean, Outcome, verdict_of
from sscl.explain import boxes
from sscl.explain.map_checks import those_of
from sscl.explain.map_similarity import constant
from sscl.explain.records import BoxAccuracy, BoxSensitivity, Gain, HitRates, Spread

FloatArray = npt.NDArray[np.float64]

SAME_BOX = 0.5  # least mean overlap (IoU) of the boxes at a lower and a higher threshold
# As a fraction of the threshold in use. At 0.4 and 0.6 the boxes of one Gaussian spot overlap by 0.56, at 0.1 and 0.6
# by 0.22: over a range that wide no map of one spot would keep its box.
LOWER, HIGHER = 0.8, 1.2
BOX_THRESHOLDS = tuple(round(0.1 + 0.05 * step, 2) for step in range(11))
ACCURACY_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
OVERLAPS = (0.3, 0.5, 0.7)


def box_sensitivity(
    maps: Sequence[boxes.FloatArray], *, threshold: float, groups: Groups | None = None
) -> BoxSensitivity:
    """Return how size and place of the box change with its threshold: a fifth lower, a fifth higher.

    A box that covers nearly the whole tile is the same at most thresholds and says no place: it counts as changed.

    Args:
        maps: raw, (S, S) each. Those without evidence have no box, and the box of a constant map is always the whole
            tile, so both are left out.
        threshold: in use; the boxes at BOX_THRESHOLDS are compared with that at this one.
        groups: slide or patient of each tile, (N,); None = independent tiles.
    """
    area, shift, overlap, ends = [], [], [], []
    whole, kept = 0, []
    low, high = LOWER * threshold, min(HIGHER * threshold, 1.0)
    for tile, raw in enumerate(maps):
        reference = boxes.find_box(raw, threshold=threshold)
        if reference is None or constant(np.asarray(raw, dtype=np.float64)):
            continue
        kept.append(tile)
        found = [box for value in BOX_THRESHOLDS if (box := boxes.find_box(raw, threshold=value)) is not None]
        area.append([box.area_fraction for box in found])
        shift.append([math.dist(_centre(box), _centre(reference)) / raw.shape[-1] for box in found])
        overlap.append([boxes.box_iou(box.corners, reference.corners) for box in found])
        wide, tight = (boxes.find_box(raw, threshold=value) or reference for value in (low, high))
        ends.append(boxes.box_iou(wide.corners, tight.corners) if reference.localises else 0.0)
        whole += not reference.localises
    if not area:
        return BoxSensitivity(
            tiles=0,
            outcome=Outcome.NOT_ASSESSED,
            verdict=verdict_of(Outcome.NOT_ASSESSED, "no map has evidence that differs from place to place"),
            threshold=threshold,
            thresholds=BOX_THRESHOLDS,
        )
    areas, shifts, ious = (Spread.over_tiles(np.array(values).T) for values in (area, shift, overlap))
    between = Mean.of(ends, groups=those_of(groups, kept))
    outcome = between.above(SAME_BOX)
    said = {
        Outcome.PASSED: "the box stays much the same",
        Outcome.FAILED: "the box depends on the threshold",
        Outcome.INCONCLUSIVE: "the box may or may not depend on the threshold",
    }[outcome]
    if whole:
        where = f"over {boxes.WHOLE_TILE:.0%} of the tile in {whole} of {len(ends)} at threshold {threshold:g}"
        if 2 * whole > len(ends) and outcome is Outcome.FAILED:
            said = f"no localisation: the box covers {where}"
        else:
            said += f"; it covers {where}, which counts as changed"
    return BoxSensitivity(
        tiles=len(area),
        outcome=outcome,
        verdict=verdict_of(
            outcome,
            f"{said} (IoU of the boxes at thresholds {low:g} and {high:g} {between.measured}, passes above "
            f"{SAME_BOX:g}{between.detects}; {areas.mean[0]:.0%} of the tile at {BOX_THRESHOLDS[0]:g}, "
            f"{areas.mean[-1]:.0%} at {BOX_THRESHOLDS[-1]:g})",
        ),
        threshold=threshold,
        thresholds=BOX_THRESHOLDS,
        area_fraction=areas,
        centre_shift=shifts,
        iou=ious,
        whole_tile=whole,
        ends=between.value,
    )


def _centre(box: boxes.Box) -> tuple[float, float]:
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def box_overlaps(raw: boxes.FloatArray, mask: boxes.BoolArray) -> FloatArray:
    """Return the IoU of a map's box, (S, S), with the rectangle around its mask at each of ACCURACY_THRESHOLDS.

    0 where there is no box.
    """
    truth = boxes.mask_box(mask)
    found = [boxes.find_box(raw, threshold=value) for value in ACCURACY_THRESHOLDS]
    return np.array([0.0 if box is None else boxes.box_iou(box.corners, truth) for box in found])


def max_box_accuracy(overlaps: npt.ArrayLike) -> dict[str, BoxAccuracy]:
    """Return for each least IoU the fraction of boxes that overlap that much, at the best threshold.

    One threshold for all tiles. It is chosen on these very tiles, so the number is the best that the maps could do.

    Args:
        overlaps: from `box_overlaps`, (N, T).

    Source: MaxBoxAcc, Choe et al., arXiv:2001.07437, sec. 3.3, at the overlaps of MaxBoxAccV2.
    """
    table = np.asarray(overlaps, dtype=np.float64)
    found = {}
    for least in OVERLAPS:
        fractions = (table >= least).mean(0)
        best = int(fractions.argmax())
        found[f"{least:g}"] = BoxAccuracy(accuracy=float(fractions[best]), threshold=ACCURACY_THRESHOLDS[best])
    return found


class Hits(NamedTuple):
    """Hit rates, and the boxes IoU of each tile whose mask is not empty, from which a gain is taken."""

    rates: HitRates
    overlaps: FloatArray


def localisation_rates(
    maps: Iterable[boxes.FloatArray],
    masks: boxes.BoolArray,
    *,
    threshold: float,
    all_thresholds: bool,
    groups: Groups | None = None,
) -> Hits:
    """Return how often peak and boxes hit the truth masks, over the tiles whose mask is not empty.

    Args:
        maps: raw, (S, S) each. masks: truth, (N, S, S), at least one not empty. threshold: of the boxes.
        all_thresholds: also return `max_box_accuracy`: how often the boxes would hit at the best threshold.
        groups: slide or patient of each tile, (N,); None = independent tiles.
    """
    hits, overlaps = [], []
    for raw, mask in zip(maps, masks, strict=True):
        if mask.any():
            hits.append(boxes.localisation(raw, boxes.find_box(raw, threshold=threshold), mask))
            overlaps += [box_overlaps(raw, mask)] if all_thresholds else []
    groups = those_of(groups, np.flatnonzero(masks.any((1, 2))).tolist())
    peaks = _share([hit.peak_hit for hit in hits], groups)
    return _hits(hits, groups, peaks, best=max_box_accuracy(overlaps) if all_thresholds else None)


def _hits(
    hits: Sequence[boxes.Hit], groups: Groups | None, peaks: Proportion | float, *, best: dict[str, BoxAccuracy] | None
) -> Hits:
    """Return the rates of tiles that go by groups; peaks: the share that hits, or the share expected."""
    boxed = _share([hit.box_hit for hit in hits], groups)
    overlaps = np.array([hit.boxes_iou for hit in hits])
    together = Mean.of(overlaps, groups=groups)
    rates = HitRates(
        tiles=len(hits),
        groups=group_count(groups),
        peak_hit=peaks if isinstance(peaks, float) else peaks.value,
        peak_hit_interval=None if isinstance(peaks, float) else peaks.interval,
        box_hit=boxed.value,
        box_hit_interval=boxed.interval,
        mean_box_iou=float(np.mean([hit.box_iou for hit in hits])),
        mean_boxes_iou=together.value,
        mean_boxes_iou_interval=_ends(together),
        max_box_accuracy=best,
    )
    return Hits(rates, overlaps)


def gain(ours: FloatArray, theirs: FloatArray, *, groups: Groups | None) -> Gain:
    """Return by how much boxes IoUs exceed others of the same tiles, (N,) each. groups: of these tiles."""
    found = Mean.of(ours - theirs, groups=groups, bounds=(-1, 1))
    return Gain(mean=found.value, interval=_ends(found))


def _ends(mean: Mean) -> Interval | None:
    """Return a mean's interval; None of too few groups, as for proportions."""
    return None if mean.groups is not None and mean.groups < FEWEST else mean.ends


def _share(hits: Sequence[bool], groups: Groups | None) -> Proportion:
    """Return the share of hits of tiles that go by groups."""
    hit = np.array(hits, dtype=bool)
    sample = Sample.of(np.zeros(len(hit), dtype=np.int64), classes=1, groups=groups)
    found = proportions_among({"": (hit, np.ones_like(hit))}, sample)[""]
    assert found is not None  # some tile has a mask
    return found


def whole_tile_rates(masks: boxes.BoolArray, *, all_thresholds: bool, groups: Groups | None = None) -> Hits:
    """Return the rates of a map without any structure: its box is the whole tile, its peak a random point.

    `peak_hit` is the mean fraction of the tile that the mask covers, so it has no interval. Large boxes overlap much
    of large masks, so a mean IoU below this one means little.

    Args: as for `localisation_rates`; the whole tile has no threshold, so that of its accuracy is None.
    """
    groups = those_of(groups, np.flatnonzero(masks.any((1, 2))).tolist())
    masks = masks[masks.any((1, 2))]
    height, width = masks.shape[1:]
    everything = (0, 0, width, height)
    hits = [
        boxes.Hit(
            peak_hit=False,
            box_iou=boxes.box_iou(everything, boxes.mask_box(mask)),
            boxes_iou=boxes.boxes_iou([everything], boxes.mask_parts(mask), shape=mask.shape),
        )
        for mask in masks
    ]
    overlaps = np.array([hit.box_iou for hit in hits])
    best = {f"{least:g}": BoxAccuracy(accuracy=float((overlaps >= least).mean()), threshold=None) for least in OVERLAPS}
    return _hits(hits, groups, float(masks.mean()), best=best if all_thresholds else None)
