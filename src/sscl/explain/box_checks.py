"""How much a heatmap's box is the threshold's doing, and how often peak and box hit a truth mask.

N tiles, S the side of a tile in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sscl.evaluate import metrics
from sscl.explain import cam
from sscl.explain.map_similarity import constant

FloatArray = npt.NDArray[np.float64]

SAME_BOX = 0.5  # least mean overlap (IoU) of the boxes at the lowest and the highest threshold
BOX_THRESHOLDS = tuple(round(0.1 + 0.05 * step, 2) for step in range(11))
ACCURACY_THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 100))
OVERLAPS = (0.3, 0.5, 0.7)


def box_sensitivity(
    maps: Sequence[cam.FloatArray], *, threshold: float, thresholds: Sequence[float] = BOX_THRESHOLDS
) -> dict[str, Any]:
    """Return how size and place of the box change with its threshold.

    Args:
        maps: raw, (S, S) each; those without evidence have no box, constant ones no other than the tile: left out.
        threshold: what the others are compared with. thresholds: ascending.

    Returns:
        {`tiles`, `threshold`, `thresholds`, `area_fraction`, `centre_shift` (in sides of the tile), `iou` with the box
        at `threshold`: {`mean`, `sd`} of one number a threshold, `ends`: the mean IoU of the boxes at the lowest and
        the highest threshold, `passed`, `verdict`}.
    """
    area, shift, overlap, ends = [], [], [], []
    for raw in maps:
        reference = cam.find_box(raw, threshold=threshold)
        if reference is None or constant(np.asarray(raw, dtype=np.float64)):
            continue
        boxes = [box for value in thresholds if (box := cam.find_box(raw, threshold=value)) is not None]
        area.append([box.area_fraction for box in boxes])
        shift.append([math.dist(_centre(box), _centre(reference)) / raw.shape[-1] for box in boxes])
        overlap.append([cam.box_iou(box.corners, reference.corners) for box in boxes])
        ends.append(cam.box_iou(boxes[0].corners, boxes[-1].corners))
    facts = {"tiles": len(area), "threshold": threshold, "thresholds": list(thresholds)}
    if not area:
        nothing: dict[str, list[float]] = {"mean": [], "sd": []}
        empty = dict.fromkeys(("area_fraction", "centre_shift", "iou"), nothing)
        unknown = "cannot be judged: no map has evidence, or more of it in one place"
        return facts | empty | {"ends": None, "passed": None, "verdict": unknown}
    areas, shifts, ious = (_spread(np.array(values).T) for values in (area, shift, overlap))
    between = float(np.mean(ends))
    passed = between >= SAME_BOX
    word = "passes: much the same box" if passed else "FAILS: the threshold decides the box"
    low, high = thresholds[0], thresholds[-1]
    return facts | {
        "area_fraction": areas,
        "centre_shift": shifts,
        "iou": ious,
        "ends": between,
        "passed": passed,
        "verdict": (
            f"{word} (it holds {areas['mean'][0]:.0%} of the tile at {low:.0%} and {areas['mean'][-1]:.0%} at "
            f"{high:.0%}; their overlap is {between:.2f}, passes from {SAME_BOX:g}; against the box at {threshold:.0%} "
            f"its centre moves by {max(shifts['mean']):.0%} of the side at most)"
        ),
    }


def _centre(box: cam.Box) -> tuple[float, float]:
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def box_overlaps(
    raw: cam.FloatArray, mask: cam.BoolArray, *, thresholds: Sequence[float] = ACCURACY_THRESHOLDS
) -> FloatArray:
    """Return the IoU of a map's box with the rectangle around its mask, (S, S) both, at each threshold; 0: no box."""
    truth = cam.mask_box(mask)
    boxes = [cam.find_box(raw, threshold=value) for value in thresholds]
    return np.array([0.0 if box is None else cam.box_iou(box.corners, truth) for box in boxes])


def max_box_accuracy(
    overlaps: npt.ArrayLike, *, thresholds: Sequence[float] = ACCURACY_THRESHOLDS
) -> dict[str, dict[str, float]]:
    """Return {overlap: {`accuracy`, `threshold`}}: the share of boxes that overlap so much, at the best threshold.

    One threshold for all tiles. It is picked on these very tiles, so the number is what the maps could do at best.

    Args:
        overlaps: from `box_overlaps`, (N, thresholds).

    Source: MaxBoxAcc, Choe et al., arXiv:2001.07437, sec. 3.3, at the overlaps of MaxBoxAccV2.
    """
    table = np.asarray(overlaps, dtype=np.float64)
    found = {}
    for least in OVERLAPS:
        shares = (table >= least).mean(0)
        best = int(shares.argmax())
        found[f"{least:g}"] = {"accuracy": float(shares[best]), "threshold": float(thresholds[best])}
    return found


def localisation_rates(
    maps: Iterable[cam.FloatArray], masks: cam.BoolArray, *, threshold: float, all_thresholds: bool
) -> dict[str, Any]:
    """Return how often peak and box hit the truth masks, over the tiles whose mask is not empty.

    Args:
        maps: raw, (S, S) each. masks: truth, (N, S, S), one at least not empty. threshold: of the boxes.
        all_thresholds: also `max_box_accuracy`, how often the box would hit at the threshold that suits these best.

    Returns:
        {`tiles`, `peak_hit`, `box_hit`: shares of the tiles, `peak_hit_wilson`, `box_hit_wilson`: 95% each,
        `mean_box_iou`}; see `cam.localisation`.
    """
    hits, overlaps = [], []
    for raw, mask in zip(maps, masks, strict=True):
        if mask.any():
            hits.append(cam.localisation(raw, cam.find_box(raw, threshold=threshold), mask))
            overlaps += [box_overlaps(raw, mask)] if all_thresholds else []
    rates: dict[str, Any] = {"tiles": len(hits)}
    for key in ("peak_hit", "box_hit"):
        count = sum(hit[key] for hit in hits)
        rates |= {key: count / len(hits), f"{key}_wilson": metrics.wilson_interval(count, len(hits))}
    rates["mean_box_iou"] = float(np.mean([hit["box_iou"] for hit in hits]))
    return rates | ({"max_box_accuracy": max_box_accuracy(overlaps)} if all_thresholds else {})


def whole_tile_rates(masks: cam.BoolArray, *, all_thresholds: bool) -> dict[str, Any]:
    """Return what a map without any form has: its box is the whole tile, its peak a point drawn at random.

    `peak_hit` is the mean share of the tile that the mask covers, so it has no interval; large boxes overlap much of
    large masks, so a mean IoU means little below this one.

    Args, Returns: as of `localisation_rates`; the whole tile has no threshold, so that of its accuracy is None.
    """
    masks = masks[masks.any((1, 2))]
    height, width = masks.shape[1:]
    overlaps = np.array([cam.box_iou((0, 0, width, height), cam.mask_box(mask)) for mask in masks])
    count = int((overlaps >= 0.5).sum())
    rates: dict[str, Any] = {
        "tiles": len(masks),
        "peak_hit": float(masks.mean()),
        "box_hit": count / len(masks),
        "box_hit_wilson": metrics.wilson_interval(count, len(masks)),
        "mean_box_iou": float(overlaps.mean()),
    }
    if all_thresholds:
        shares = {f"{least:g}": float((overlaps >= least).mean()) for least in OVERLAPS}
        rates["max_box_accuracy"] = {least: {"accuracy": of, "threshold": None} for least, of in shares.items()}
    return rates


def _spread(values: FloatArray) -> dict[str, list[float]]:
    """Return the mean and the standard deviation over tiles of values (thresholds, N)."""
    sd = values.std(1, ddof=1) if values.shape[1] > 1 else np.zeros(len(values))
    return {"mean": values.mean(1).tolist(), "sd": sd.tolist()}
