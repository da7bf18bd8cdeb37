"""Heatmaps stitched over a region of a slide: the mean of overlapping tiles' raw maps.

One score is explained all over the region, in its own units, and no tile's map is scaled: a tile that hardly matters
looks so beside one that decides. n tiles, K classes, S = side of a tile; h x w pixels of the map, as large as a tile's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sscl.api import Model
from sscl.config import GradcamConfig, PredictConfig
from sscl.config.maps import MapConfig
from sscl.explain.cam import class_maps
from sscl.explain.choice import chosen_maps, of_model
from sscl.explain.kinds import METHODS, WHATEVER_CLASS, MapKind
from sscl.explain.records import CHECKED_BY, MapChecks
from sscl.explain.targets import Score, Target, describe_target
from sscl.models.checkpoint import run_of
from sscl.models.heads import Classifier
from sscl.places import printable
from sscl.predict.regions import (
    OVERLAP,
    Region,
    classified_in,
    clipped,
    frame_of,
    pixels_of,
    region_of,
    tiles_in,
    tiles_over,
)
from sscl.predict.tiles import batches_of
from sscl.progress import Bar
from sscl.records import read_record
from sscl.report.folders import settings_of
from sscl.report.slide_cam import meaning
from sscl.report.slide_record import SlideCam
from sscl.slides.index import Grid
from sscl.slides.pixels import Readers
from sscl.slides.places import Places
from sscl.slides.records import Scaling, Slide, SlideError
from sscl.slides.stitch import mean_map
from sscl.slides.stream import SlidePixels
from sscl.words import count

LARGEST_PX = 4096  # side of a region, pixels of the map
OWN_PX, OWN_TILES = 2048, 12  # side of one that is chosen here, whichever is less
SCALE_QUANTILE = 0.995  # of the absolute values, at the end of the colour scale
_AT_ONCE = 32  # tiles
_UNIT = "logits per cell"


@dataclass(frozen=True)
class Plan:
    """How the maps of all slides are made. cells: along a tile's side, in its map. note: whether they were checked."""

    target: Target
    kind: MapKind
    references: int
    cells: int
    region: Region | None
    note: str


@dataclass(frozen=True, eq=False)
class RegionMap:
    """The map of a region.

    Attributes:
        record: what slide.json says of it. values: float32 (h, w), NaN where no tile was explained.
        counts: tiles over each pixel, (h, w). rgb: the slide there, uint8 (h, w, 3).
    """

    record: SlideCam
    values: NDArray[np.float32]
    counts: NDArray[np.uint16]
    rgb: NDArray[np.uint8]


# --- before anything is predicted ---


def plan_of(model: Model, config: PredictConfig) -> Plan | None:
    """Return how the maps are made; None: none are wanted.

    Raises:
        ValueError: settings that mean nothing here, or that the model has no maps for, in one line.
    """
    maps = config.gradcam
    if config.cam is False:
        if maps != MapConfig():
            raise ValueError("gradcam: is about the heatmap of a region here; add cam=true, or leave gradcam out")
        return None
    try:
        target, kind = chosen_maps(maps, model.classes, model.classifier)
        _check_raw(maps, kind)
        blank = torch.zeros(1, 3, model.size_px, model.size_px, device=model.device)
        raw, _ = class_maps(model.classifier, blank, target=0, kind=kind)
    except ValueError as error:
        key = str(error).split(":")[0]
        raise ValueError(f"gradcam.{error}" if key in MapConfig.model_fields else str(error)) from error
    region = None if config.cam is True else Region(*config.cam)
    says = meaning(None if kind.method in WHATEVER_CLASS else "")
    note = f"{METHODS[kind.method]} of a region: {says}; {_checked(config.checkpoint, kind, model.classifier)}"
    return Plan(target, kind, maps.references, max(raw.shape[1:]), region, note)


def _check_raw(maps: MapConfig, kind: MapKind) -> None:
    """Raise ValueError where the values of two tiles could not be compared."""
    if maps.threshold != MapConfig().threshold:
        raise ValueError("threshold: is of boxes, and the heatmap of a region has none; leave it out")
    if kind.method == "eigencam":
        raise ValueError("method: eigencam's values depend on the tile alone, so no mean of tiles is one; take another")
    if len(kind.layers) > 1 and kind.fuse != "sum" and kind.method != "legrad":
        raise ValueError(f"fuse: {kind.fuse} scales the map of each tile by its peak; give one layer, or fuse=sum")


def _checked(checkpoint: str, kind: MapKind, classifier: Classifier) -> str:
    """Return what `sscl gradcam checks=true` found of the run's maps of this kind, in words."""
    run = run_of(checkpoint)
    for path in sorted(run.glob("gradcam*/checks.json")):
        try:
            own, found = settings_of(GradcamConfig, path.parent), read_record(MapChecks, path, made_by=CHECKED_BY)
        except (ValueError, OSError):
            continue  # `sscl report` says what is wrong with it
        made = of_model(MapKind(own.method, own.layer), classifier)  # its layers may go without saying
        if (made.method, made.layers) == (kind.method, kind.layers):
            checks = {
                "randomisation": found.randomisation,
                "deletion and insertion": found.deletion_insertion,
                "turned tiles": found.equivariance,
            }
            said = [f"{name} {check.outcome.value}" for name, check in checks.items()]
            return f"checks of such maps on {count(found.tiles, 'tile')}: {', '.join(said)} ({path})"
    return f"whether such maps can be believed was not checked: sscl gradcam {run} checks=true"


def check_region(given: Region, slides: Sequence[tuple[Slide, Scaling, Grid]]) -> None:
    """Raise ValueError where a region is not of these slides, or too large, or has no tile in it."""
    if len(slides) > 1:
        raise ValueError(f"cam: a region is of one slide, and there are {len(slides)}; give one, or cam=true")
    for slide, scaling, grid in slides:
        region, name = clipped(given, slide), printable(slide.name)
        if region is None:
            raise ValueError(
                f"cam: x={given.x}, y={given.y} lies outside {name}, which has {slide.width} x {slide.height} pixels"
            )
        most = int(LARGEST_PX * scaling.step / scaling.size_px)
        if max(region.width, region.height) > most:
            raise ValueError(
                f"cam: {region.width} x {region.height} pixels are too large, a side can have {most:,} at most in "
                f"{name} ({LARGEST_PX:,} at the classifier's µm per pixel)"
            )
        if not len(tiles_over(frame_of(region, scaling), slide, scaling.size_px, grid)):
            raise ValueError(f"cam: no tile of {name} lies in that region; the places of tiles are in tiles.csv")


# --- where, and of what ---


def explained(plan: Plan, model: Model, probabilities: NDArray[np.floating]) -> tuple[tuple[int, ...], str]:
    """Return the class whose logit is explained and those it is compared with, and that in words.

    A class that the settings name; else, of two classes, the positive one; else the most probable of the tiles.

    Args:
        probabilities: of the tiles of which it is asked, (n, K).
    """
    mean = probabilities.mean(0).astype(np.float64)
    first = plan.target.label
    if first is None and model.positive is not None and plan.target.score is Score.DIFFERENCE:
        first = model.classes.index(model.positive)
    if first is not None:
        mean[first] = 2.0  # before all others
    order = np.argsort(-mean, kind="stable").tolist()
    kind = replace(plan.kind, layers=())  # which stand beside the score, in the record
    others = plan.references if plan.target.score is Score.DIFFERENCE else 0
    return tuple(order[: 1 + others]), describe_target(plan.target, model.classes, mean, kind=kind)


def _weights(probabilities: NDArray[np.floating], threshold: float) -> NDArray[np.floating]:
    """Return the probabilities of a class where it is high enough for its regions; all, where it is nowhere."""
    high = np.where(probabilities >= threshold, probabilities, 0)
    return high if high.any() else probabilities


# --- the map ---


def region_map(
    plan: Plan,
    model: Model,
    config: PredictConfig,
    slide: Slide,
    scaling: Scaling,
    grid: Grid,
    probabilities: NDArray[np.floating],
    readers: Readers,
) -> RegionMap:
    """Return the map of a region of a slide.

    Args:
        grid, probabilities: of the tiles that were classified, (n, 3) and (n, K).

    Raises:
        SlideError: the slide cannot be read any more.
    """
    region = None if plan.region is None else clipped(plan.region, slide)
    asked = probabilities if region is None else probabilities[tiles_in(region, grid, scaling.step)]
    if not len(asked):
        raise SlideError(f"{printable(slide.path)}: no tile of the region cam={list(config.cam)} can be decoded")  # type: ignore[arg-type]
    named, words = explained(plan, model, asked)
    factor = scaling.step / scaling.size_px
    if region is None:
        side = min(OWN_PX, OWN_TILES * scaling.size_px) * factor
        weights = _weights(probabilities[:, named[0]], config.threshold)
        region = region_of(grid, weights, step=scaling.step, side=side)
    frame = frame_of(region, scaling)
    corners = tiles_over(frame, slide, scaling.size_px, grid)
    damaged = 0

    def maps() -> Iterator[tuple[tuple[int, int], NDArray[np.float32]]]:
        """Yield the corner of each tile on the map and its own map, (S, S); damaged tiles are left out."""
        nonlocal damaged
        places = Places.of([slide.name], [len(corners)], [frame.level(corners).astype(np.int32)])
        pixels = SlidePixels([(slide, scaling)], places, readers=readers)
        batches = batches_of(pixels, batch_size=min(config.batch_size, _AT_ONCE), device=model.device)
        with Bar(len(corners), desc="heatmap" if config.progress else None, unit="tile") as bar:
            for batch, found in model.stream_maps(batches, classes=named, kind=plan.kind):
                damaged += len(batch.faults)
                for row, own in zip(batch.rows.tolist(), found, strict=True):
                    yield (int(corners[row, 0]), int(corners[row, 1])), own
                bar.update(len(batch.rows) + len(batch.faults))

    values, counts = mean_map(maps() if len(corners) else (), height=frame.height, width=frame.width)
    values[~classified_in(frame, scaling.size_px, grid)] = np.nan
    found = values[np.isfinite(values)]
    if not len(found):
        raise SlideError(f"{printable(slide.path)}: none of the {count(len(corners), 'tile')} of cam can be decoded")
    end = float(np.quantile(np.abs(found), SCALE_QUANTILE))
    least = float(np.quantile(found, 1 - SCALE_QUANTILE))
    of_class = plan.kind.method not in WHATEVER_CLASS
    assert slide.mpp is not None
    record = SlideCam(
        x=region.x,
        y=region.y,
        width=region.width,
        height=region.height,
        given=plan.region is not None,
        explained=words,
        label=model.classes[named[0]] if of_class else None,
        against=tuple(model.classes[other] for other in named[1:]) if of_class else (),
        method=METHODS[plan.kind.method],
        layer=plan.kind.source,
        unit=_UNIT if plan.kind.in_logits else "",
        cell_um=scaling.size_px * scaling.mpp / plan.cells,
        tiles=len(corners) - damaged,
        overlap=OVERLAP,
        most_over=int(counts.max()),
        damaged=damaged,
        mpp=scaling.mpp,
        factor=factor,
        lowest=float(found.min()),
        highest=float(found.max()),
        scale_start=least if end / 2 < least < end else 0.0,
        scale_end=end,
    )
    return RegionMap(record, values, counts, pixels_of(frame, slide, scaling, readers))
