"""How much a heatmap's box depends on its threshold, and how often peaks and boxes hit truth masks.

N tiles, S the side of a tile in pixels, T thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from sscl.evaluate.intervals import Groups, Sample, group_count
from sscl.evaluate.proportions import Proportion, proportions_among
from sscl.evaluate.verdicts import Mean, Outcome, verdict_of
from sscl.explain import boxes
from sscl.explain.map_checks import those_of
from sscl.explain.map_similarity import constant
from sscl.explain.records import BoxAccuracy, BoxSensitivity, HitRates, Spread

FloatArray = npt.NDArray[np.float64]

SAME_BOX = 0.5  # least mean overlap (IoU) of the boxes at the lowest and the highest threshold
BOX_THRESHOLDS = tuple(round(0.1 + 0.05 * step, 2) for step in range(11))
ACCURACY_THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 100))
OVERLAPS = (0.3, 0.5, 0.7)


def box_sensitivity(
    maps: Sequence[boxes.FloatArray], *, threshold: float, groups: Groups | None = None
) -> BoxSensitivity:
    """Return how size and place of the box change with its threshold.

    A box that covers nearly the whole tile is the same at most thresholds and says no place: it counts as changed.

    Args:
        maps: raw, (S, S) each. Those without evidence have no box, and the box of a constant map is always the whole
            tile, so both are left out.
        threshold: in use; the boxes at BOX_THRESHOLDS are compared with that at this one.
        groups: slide or patient of each tile, (N,); None = independent tiles.
    """
    area, shift, overlap, ends = [], [], [], []
    whole, kept = 0, []
    for tile, raw in enumerate(maps):
        reference = boxes.find_box(raw, threshold=threshold)
        if reference is None or constant(np.asarray(raw, dtype=np.float64)):
            continue
        kept.append(tile)
        found = [box for value in BOX_THRESHOLDS if (box := boxes.find_box(raw, threshold=value)) is not None]
        area.append([box.area_fraction for box in found])
        shift.append([math.dist(_centre(box), _centre(reference)) / raw.shape[-1] for box in found])
        overlap.append([boxes.box_iou(box.corners, reference.corners) for box in found])
        ends.append(boxes.box_iou(found[0].corners, found[-1].corners) if reference.localises else 0.0)
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
    low, high = BOX_THRESHOLDS[0], BOX_THRESHOLDS[-1]
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
            f"{said} ({areas.mean[0]:.0%} of the tile at threshold {low:g}, {areas.mean[-1]:.0%} at {high:g}; IoU of "
            f"the two boxes {between.measured}, passes above {SAME_BOX:g}{between.detects}; the centre moves by at "
            f"most {max(shifts.mean):.0%} of the tile's side)",
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


def box_overlaps(
    raw: boxes.FloatArray, mask: boxes.BoolArray, *, thresholds: Sequence[float] = ACCURACY_THRESHOLDS
) -> FloatArray:
    """Return the IoU of a map's box with the rectangle around its mask, (S, S) both, at each threshold; 0: no box."""
    truth = boxes.mask_box(mask)
    found = [boxes.find_box(raw, threshold=value) for value in thresholds]
    return np.array([0.0 if box is None else boxes.box_iou(box.corners, truth) for box in found])


def max_box_accuracy(
    overlaps: npt.ArrayLike, *, thresholds: Sequence[float] = ACCURACY_THRESHOLDS
) -> dict[str, BoxAccuracy]:
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
        found[f"{least:g}"] = BoxAccuracy(accuracy=float(fractions[best]), threshold=float(thresholds[best]))
    return found


def localisation_rates(
    maps: Iterable[boxes.FloatArray],
    masks: boxes.BoolArray,
    *,
    threshold: float,
    all_thresholds: bool,
    groups: Groups | None = None,
) -> HitRates:
    """Return how often peak and box hit the truth masks, over the tiles whose mask is not empty.

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
    peaks, boxed = (_share([getattr(hit, name) for hit in hits], groups) for name in ("peak_hit", "box_hit"))
    return HitRates(
        tiles=len(hits),
        groups=group_count(groups),
        peak_hit=peaks.value,
        peak_hit_interval=peaks.interval,
        box_hit=boxed.value,
        box_hit_interval=boxed.interval,
        mean_box_iou=float(np.mean([hit.box_iou for hit in hits])),
        max_box_accuracy=max_box_accuracy(overlaps) if all_thresholds else None,
    )


def _share(hits: Sequence[bool], groups: Groups | None) -> Proportion:
    """Return the share of hits of tiles that go by groups."""
    hit = np.array(hits, dtype=bool)
    sample = Sample.of(np.zeros(len(hit), dtype=np.int64), classes=1, groups=groups)
    found = proportions_among({"": (hit, np.ones_like(hit))}, sample)[""]
    assert found is not None  # some tile has a mask
    return found


def whole_tile_rates(masks: boxes.BoolArray, *, all_thresholds: bool, groups: Groups | None = None) -> HitRates:
    """Return the rates of a map without any structure: its box is the whole tile, its peak a random point.

    `peak_hit` is the mean fraction of the tile that the mask covers, so it has no interval. Large boxes overlap much
    of large masks, so a mean IoU below this one means little.

    Args: as for `localisation_rates`; the whole tile has no threshold, so that of its accuracy is None.
    """
    groups = those_of(groups, np.flatnonzero(masks.any((1, 2))).tolist())
    masks = masks[masks.any((1, 2))]
    height, width = masks.shape[1:]
    overlaps = np.array([boxes.box_iou((0, 0, width, height), boxes.mask_box(mask)) for mask in masks])
    hits = _share((overlaps >= 0.5).tolist(), groups)
    best = {f"{least:g}": BoxAccuracy(accuracy=float((overlaps >= least).mean()), threshold=None) for least in OVERLAPS}
    return HitRates(
        tiles=len(masks),
        groups=group_count(groups),
        peak_hit=float(masks.mean()),
        box_hit=hits.value,
        box_hit_interval=hits.interval,
        mean_box_iou=float(overlaps.mean()),
        max_box_accuracy=best if all_thresholds else None,
    )
