"""The files of a predicted slide: its tiles as a table and for QuPath, its regions, its heatmap, its page."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sscl import writing
from sscl.answers import Predictions
from sscl.plots.slide import draw_slide
from sscl.plots.slide_cam import draw_cam
from sscl.predict.cam import RegionMap
from sscl.records import write_record
from sscl.report.slide_cam import ends_of, meaning
from sscl.report.slide_page import BASE_MPP, SlideContent, page_of
from sscl.report.slide_picture import thumbnail
from sscl.report.slide_record import CAM_FILE, FILE, PAGE, THUMBNAIL, PredictedSlide, SlideCam
from sscl.report.slide_strip import strip_rows
from sscl.slides.geojson import Region, write_regions, write_tiles
from sscl.slides.index import Grid
from sscl.slides.outlines import outlines
from sscl.slides.pixels import Readers
from sscl.slides.records import Overview, Scaling, Slide
from sscl.slides.stitch import Cells
from sscl.words import count

TILES, QUPATH_TILES, QUPATH_REGIONS, HEATMAP = "tiles.csv", "tiles.geojson.gz", "regions.geojson", "heatmap.png"
FILES = (TILES, QUPATH_TILES, QUPATH_REGIONS, HEATMAP, THUMBNAIL, PAGE, FILE)  # of a slide
CAM_PICTURE = "cam.png"
CAM_FILES = (CAM_PICTURE, CAM_FILE)  # and these, with a heatmap of a region
_DECIMALS = 6  # of a probability in tiles.csv
_MOST_SIDE, _MOST_PIXELS = 16_000, 100_000_000  # of that picture: browsers take no larger one


def base_of(slide: Slide, readers: Readers) -> Overview:
    """Return a slide at 4 µm per pixel, or coarser where it would be too large for a page.

    Raises:
        SlideError: it cannot be read.
    """
    assert slide.mpp is not None
    sides = np.array([slide.width, slide.height]) * slide.mpp
    most = (float(sides.max()) / _MOST_SIDE, float(np.sqrt(sides.prod() / _MOST_PIXELS)))
    return readers.overview(slide, max(BASE_MPP, slide.mpp, *most))


def pictures_of(
    slide: Slide, scaling: Scaling, grid: Grid, probabilities: NDArray[np.floating], readers: Readers
) -> dict[int, bytes]:
    """Return pictures of the tiles that a page shows one by one, by row, JPEG.

    Raises:
        SlideError: one cannot be read any more.
    """
    rows = np.array(strip_rows(as_in_table(probabilities), grid[:, :2], scaling.step), dtype=np.int64)
    tiles = np.empty((len(rows), scaling.size_px, scaling.size_px, 3), dtype=np.uint8)
    readers.tiles(slide, scaling, grid[rows, :2].astype(np.int64), tiles)
    found = {}
    for row, tile in zip(rows.tolist(), tiles, strict=True):
        data = io.BytesIO()
        Image.fromarray(tile).save(data, format="JPEG", quality=80)
        found[row] = data.getvalue()
    return found


def as_in_table(probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return probabilities as tiles.csv has them: `sscl slides view` makes the same page of it, with the same key."""
    return np.asarray(probabilities.round(_DECIMALS), np.float32)


def regions_of(
    cells: Cells, probabilities: NDArray[np.floating], classes: tuple[str, ...], *, threshold: float, mpp: float
) -> Iterator[Region]:
    """Yield the connected places of each class at which its probability, the mean of all tiles there, is high enough.

    Args:
        mpp: µm per pixel of level 0.
    """
    areas = np.diff(cells.y_edges)[:, None] * np.diff(cells.x_edges).astype(np.float64)
    for number, label in enumerate(classes):
        mean = cells.mean(probabilities[:, number])
        mask = np.nan_to_num(mean, nan=-1.0) >= threshold
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        area = np.bincount(labels.ravel(), areas.ravel(), count)
        weight = np.bincount(labels.ravel(), (areas * np.nan_to_num(mean)).ravel(), count)
        for part, polygons in enumerate(outlines(mask, cells.x_edges, cells.y_edges), start=1):
            told = {"area mm²": area[part] * mpp**2 / 1e6, "mean probability": weight[part] / area[part]}
            yield Region(label, polygons, told)


@dataclass(frozen=True, eq=False)
class SlideResult:
    """A predicted slide before its files are written.

    Attributes:
        record: slide.json, without its regions. grid: the tiles. answers: to them. cells: of their map.
        base: the slide in small. pictures: of some tiles, by row, JPEG. cam: the heatmap of a region; None: none.
    """

    slide: Slide
    record: PredictedSlide
    grid: Grid
    answers: Predictions
    cells: Cells
    base: Overview
    pictures: Mapping[int, bytes]
    cam: RegionMap | None


def write_slide(folder: Path, result: SlideResult, *, blind: bool) -> PredictedSlide:
    """Write all files of a slide into its folder, slide.json last, and return that: with its regions counted."""
    record, slide, answers, cells, grid = result.record, result.slide, result.answers, result.cells, result.grid
    probabilities = answers.probabilities
    colours = dict(zip(record.classes, record.colours, strict=True))
    writing.write_csv(folder / TILES, header_of(record.classes), _rows(grid, answers))
    measured = {f"probability {name}": probabilities[:, number] for number, name in enumerate(record.classes)}
    write_tiles(
        folder / QUPATH_TILES,
        slide,
        grid[:, :2],
        side=record.footprint,
        labels=[label if decided else None for label, decided in zip(answers.labels, answers.decided, strict=True)],
        measurements={**measured, "confidence": answers.confidence},
        colours=colours,
    )
    regions = list(regions_of(cells, probabilities, record.classes, threshold=record.threshold, mpp=record.mpp))
    write_regions(folder / QUPATH_REGIONS, slide, regions, colours=colours)
    counts = Counter(region.label for region in regions)
    record = record.model_copy(update={"regions": {name: counts[name] for name in record.classes}})
    overlap = f"; where tiles overlap (up to {record.most_over}), their mean" if record.most_over > 1 else ""
    draw_slide(
        folder / HEATMAP,
        result.base,
        cells,
        probabilities,
        name=slide.name,
        classes=record.classes,
        colours=record.colours,
        decide_from=record.decide_from,
        notes=[
            f"{len(grid):,} tiles of {record.size_px} px at {record.tile_mpp:.3g} µm/px{overlap}",
            "For research use, no diagnosis. Tissue of no class is given one, too.",
        ],
    )
    if result.cam is not None:
        write_cam(folder, record, result.cam)
    content = SlideContent(
        record=record,
        xy=grid[:, :2],
        coverage=grid[:, 2],
        probabilities=as_in_table(probabilities),
        decided=answers.decided,
        base=result.base.rgb,
        base_factor=(result.base.factor_x, result.base.factor_y),
        pictures=result.pictures,
        cam=None if result.cam is None else result.cam.values,
        blind=blind,
    )
    with writing.replacing(folder / THUMBNAIL) as unfinished:
        unfinished.write_bytes(thumbnail(result.base.rgb))
    writing.write_text(folder / PAGE, page_of(content))
    write_record(folder / FILE, record)
    return record


def write_cam(folder: Path, record: PredictedSlide, cam: RegionMap) -> None:
    """Write the heatmap of a region: the picture cam.png, and its numbers, cam.npz."""
    said = cam.record
    colours = dict(zip(record.classes, record.colours, strict=True))
    draw_cam(
        folder / CAM_PICTURE,
        cam.rgb,
        cam.values,
        name=record.name,
        title=f"{said.method} of {said.layer}: {said.explained}",
        ends=ends_of(said),
        colours=colours,
        scale=(said.scale_start, said.scale_end),
        unit=said.unit,
        mpp=said.mpp,
        notes=notes_of_cam(said),
    )
    np.savez_compressed(
        folder / CAM_FILE,
        map=cam.values.astype(np.float32),
        tiles=cam.counts,
        corner=np.array([said.x, said.y]),
        factor=np.array(said.factor),
        mpp=np.array(said.mpp),
    )


def notes_of_cam(said: SlideCam) -> list[str]:
    """Return the lines below the picture of a region."""
    damaged = f", {said.damaged} could not be read" if said.damaged else ""
    return [
        f"x {said.x:,}, y {said.y:,}, {said.width:,} x {said.height:,} px of full resolution; {said.mpp:.3g} µm/px; "
        f"a cell of a tile's map is {said.cell_um:.3g} µm",
        f"mean of {count(said.tiles, 'tile')}, up to {said.most_over} over a place{damaged}; a tile counts less "
        "towards its border, and none is scaled by itself",
        f"For research use, no diagnosis: {meaning(said.label)}.",
    ]


def header_of(classes: tuple[str, ...]) -> list[str]:
    """Return the columns of tiles.csv."""
    named = [f"probability_{name}" for name in classes]
    return ["x", "y", "coverage", "prediction", *named, "confidence", "decided", "reason"]


def _rows(grid: NDArray[np.int32], answers: Predictions) -> Iterator[list[object]]:
    parts = zip(
        grid.tolist(),
        answers.labels,
        answers.probabilities.tolist(),
        answers.confidence.tolist(),
        answers.decided.tolist(),
        answers.reasons,
        strict=True,
    )
    for (x, y, coverage), label, probabilities, confidence, decided, reason in parts:
        told = [f"{probability:.{_DECIMALS}f}" for probability in probabilities]
        share = coverage if coverage >= 0 else None
        yield [x, y, share, label, *told, f"{confidence:.6f}", "yes" if decided else "no", reason]
