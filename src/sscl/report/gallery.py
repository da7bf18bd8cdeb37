"""The tiles of a report: which ones, their images, maps and boxes, small enough for one file.

N tiles, K classes, h x w cells of a map.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from sscl.data.images import Fit, Region, decode_image, open_image, resized
from sscl.data.mhist import ANNOTATORS
from sscl.data.tiles import TileStore
from sscl.evaluate.metrics import MANY_CLASSES, FloatArray, IntArray
from sscl.evaluate.predictions import TilePredictions
from sscl.explain.boxes import Box, find_box, normalise, remark, remarks
from sscl.explain.heatmaps import heatmaps
from sscl.explain.kinds import GRADCAM, MapKind
from sscl.explain.targets import Target
from sscl.models.heads import Classifier
from sscl.plots import cam as cam_plots
from sscl.report.blocks import sentence
from sscl.report.page.content import Gallery, GalleryTile

SIDE_PX = 224  # of a picture, at most
MOST_TILES = 5_000  # of a page, at most
PICTURE_BYTES = 20_000  # of a picture, at most: a thousand of them are 27 MB as text
PICTURES_BYTES = 30_000_000  # of all of them: of more than 1,500 tiles each has less
QUALITIES = (85, 78, 70, 60, 50, 40, 30, 20)
MAP_SIDE = 28  # of a map, at most; the last features of a 224 px tile have 7
ALPHA = 0.7  # opacity at the peak, as in `plots.cam.overlay`


@dataclass(frozen=True)
class Picture:
    """The image of a tile: RGB, (S, S), S at most SIDE_PX, and what of its file it shows, if it has one."""

    image: Image.Image
    region: Region | None


@dataclass(frozen=True)
class Heat:
    """The map of a tile.

    Attributes:
        raw: before ReLU and scaling, (h, w).
        maximum: of the map enlarged to the tile. box: there, in pixels of the tile; None without positive evidence.
        prediction: the most probable class.
    """

    raw: NDArray[np.float32]
    maximum: float
    box: Box | None
    prediction: int


def choose(found: TilePredictions, *, count: int, seed: int = 0) -> tuple[IntArray, str]:
    """Return the rows of at most `count` tiles, in their order, and a sentence on how they were chosen.

    All errors, the most confident first if there are too many; half of the rest are the least confident correct tiles,
    the other half is drawn from the correct ones by the seed. Classes (of errors, cells of the confusion matrix) take
    turns.
    """
    total, wanted = len(found.ids), count
    count = min(count, MOST_TILES)
    confidence = probabilities_of(found).max(1)
    if total <= count:
        return np.arange(total), f"all {total:,} tiles"
    wrong = np.flatnonzero(found.predictions != found.labels)
    right = np.flatnonzero(found.predictions == found.labels)
    cell = found.labels * len(found.classes) + found.predictions
    errors = _in_turn(wrong[np.argsort(-confidence[wrong], kind="stable")], cell)[:count]
    places = count - len(errors)
    unsure = _in_turn(right[np.argsort(confidence[right], kind="stable")], found.labels)[: (places + 1) // 2]
    others = np.setdiff1d(right, unsure)
    drawn = _in_turn(np.random.default_rng(seed).permutation(others), found.labels)[: places - len(unsure)]
    said = limit_in_words(wanted)
    said += f"all {len(errors):,} errors" if len(errors) == len(wrong) else f"{len(errors):,} of {len(wrong):,} errors"
    note = (
        f"{count:,} of {total:,} tiles: {said}, the {len(unsure):,} least confident and {len(drawn):,} random correct "
        "tiles, balanced over the classes; errors are over-represented"
    )
    return np.sort(np.concatenate([errors, unsure, drawn])), note


def limit_in_words(wanted: int) -> str:
    """Return a clause where more tiles are wanted than a page takes, else ""."""
    return f"at most {MOST_TILES:,}, so that the page opens within seconds; " if wanted > MOST_TILES else ""


def _in_turn(rows: IntArray, kind: IntArray) -> IntArray:
    """Return the rows so that kinds alternate, each kind in the order given. kind: of every tile."""
    order = np.argsort(kind[rows], kind="stable")
    ordered = kind[rows][order]
    times = np.empty(len(rows), dtype=np.int64)  # how many of its kind come before it
    times[order] = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return rows[np.argsort(times, kind="stable")]


def probabilities_of(found: TilePredictions) -> FloatArray:
    """Return the probabilities, (N, K)."""
    assert found.probabilities is not None  # read from a file, it has them
    return found.probabilities


def heats(
    model: Classifier,
    store: TileStore,
    rows: IntArray,
    *,
    target: Target,
    mean: torch.Tensor,
    std: torch.Tensor,
    threshold: float,
    kind: MapKind = GRADCAM,
    batch_size: int = 32,
    progress: str | None = None,
) -> Iterator[Heat]:
    """Yield the map of each tile at `rows` and its box, found on the map enlarged to the tile, as `sscl gradcam` does.

    Args:
        target, kind: see `cam.class_maps`. mean, std: (3,). threshold: of the box.
    """
    found = heatmaps(
        model,
        store,
        rows,
        target=target,
        mean=mean,
        std=std,
        kind=kind,
        batch_size=batch_size,
        progress=progress,
    )
    for heatmap in found:
        box = find_box(heatmap.enlarged, threshold=threshold, cells=max(heatmap.cells.shape))
        yield Heat(heatmap.cells, float(heatmap.enlarged.max()), box, heatmap.prediction)


def pictures_of_files(paths: Iterable[Path], *, fit: Fit = "refuse") -> Iterator[Picture]:
    """Yield the tiles of image files, as `decode_image` gives them, scaled to at most SIDE_PX.

    Raises:
        ValueError: a file that cannot be used, in one line.
    """
    for path in paths:
        with open_image(path) as image:
            side = min(image.size) if fit == "crop" else image.width
            tile = decode_image(image, name=path, size_px=min(side, SIDE_PX), fit=fit)
        yield Picture(Image.fromarray(tile.pixels), region=tile.region)


def pictures_of_pixels(images: Iterable[NDArray[np.uint8]]) -> Iterator[Picture]:
    """Yield the pictures of tiles, uint8 (S, S, 3) each, scaled to at most SIDE_PX."""
    for pixels in images:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        yield Picture(image if image.width <= SIDE_PX else resized(image, SIDE_PX), region=None)


def encode_picture(image: Image.Image, *, limit: int = PICTURE_BYTES) -> tuple[str, int]:
    """Return an RGB image as a data URI of a JPEG of at most `limit` bytes, and its quality.

    The first quality of QUALITIES at which it is small enough; where none is, at the last and half the side.
    """
    for quality in QUALITIES:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= limit:
            return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode(), quality
    return encode_picture(image.resize((max(1, image.width // 2), max(1, image.height // 2))), limit=limit)


def encode_map(raw: NDArray[np.float32]) -> str:
    """Return the positive part of a raw map, (h, w), scaled so that its maximum is 255, as base64 of h x w bytes.

    Empty without evidence. A map of more than MAP_SIDE cells a side is made smaller by means.
    """
    unit = normalise(raw)
    if not unit.any():
        return ""
    if max(unit.shape) > MAP_SIDE:
        unit = F.adaptive_avg_pool2d(torch.from_numpy(unit)[None], MAP_SIDE)[0].numpy()
        unit = unit / unit.max()
    return base64.b64encode(np.round(255 * unit).astype(np.uint8).tobytes()).decode()


def most_probable(probabilities: FloatArray, *, also: Iterable[int]) -> dict[int, float]:
    """Return the probabilities, (K,), by class; of many classes those of the most probable.

    Args:
        also: classes that are there in any case; a negative one is none.
    """
    labels = list(range(len(probabilities)))
    if len(labels) > MANY_CLASSES:
        kept = {*np.argsort(-probabilities)[:MANY_CLASSES].tolist(), *(int(label) for label in also if label >= 0)}
        labels = sorted(kept)
    return {label: round(float(probabilities[label]), 4) for label in labels}


def build(
    found: TilePredictions,
    rows: IntArray,
    *,
    pictures: Iterable[Picture],
    heats: Iterable[Heat],
    size_px: int,
    target: str,
    threshold: float,
    decided_from: float | None,
    notes: Sequence[str],
    blind: bool = False,
) -> Gallery:
    """Return the gallery of `sscl.report.page.render`.

    Args:
        found: the predictions of all tiles. rows: those to show.
        pictures, heats: of these, in their order.
        size_px: side of the tiles that the classifier saw, in whose pixels the boxes are.
        target: what the maps explain, in words. threshold: of the boxes.
        decided_from: confidence below which the classifier abstains; None = it never does.
        notes: what a reader must know, first how the tiles were chosen; each becomes a sentence.
        blind: whether the page opens in blind review.
    """
    probabilities = probabilities_of(found)
    two_with_votes = found.votes is not None and len(found.classes) == 2
    tiles: list[GalleryTile] = []
    found_boxes: list[Box | None] = []
    side = lowered = 0
    limit = min(PICTURE_BYTES, PICTURES_BYTES // max(1, len(rows)))
    for row, picture, heat in zip(rows.tolist(), pictures, heats, strict=True):
        uri, quality = encode_picture(picture.image, limit=limit)
        lowered += quality != QUALITIES[0]
        side = min(MAP_SIDE, max(heat.raw.shape))
        votes = int(found.votes[row]) if found.votes is not None and two_with_votes else None
        confidence = float(probabilities[row].max())
        tiles.append(
            {
                "id": found.ids[row],
                "label": int(found.labels[row]),
                "prediction": int(found.predictions[row]),
                "probabilities": most_probable(probabilities[row], also=(found.labels[row], found.predictions[row])),
                "loss": None if np.isnan(found.losses[row]) else round(float(found.losses[row]), 4),
                "agreement": None if votes is None else f"{max(votes, ANNOTATORS - votes)}/{ANNOTATORS}",
                "votes": votes,
                "group": None if found.groups is None else found.groups[row],
                "decided": None if decided_from is None else confidence >= decided_from,
                "image": uri,
                "map": "" if heat.box is None else encode_map(heat.raw),
                "maximum": round(heat.maximum, 4),
                "box": None if heat.box is None else list(heat.box.corners),
                "further": [] if heat.box is None else [list(corners) for corners in heat.box.shown],
                "localises": heat.box is not None and heat.box.localises,
                "remark": remark(heat.box),
                "region": None if picture.region is None else list(picture.region),
            }
        )
        found_boxes.append(heat.box)
    notes = list(notes)
    if any(map(remark, found_boxes)):
        notes.append(f"boxes: {remarks(found_boxes)}")
    if lowered:
        notes.append(f"{lowered:,} images are JPEGs of quality below {QUALITIES[0]}, to keep the page small")
    colours = cam_plots.heatmap_rgb(np.arange(256)[None] / 255)
    return {
        "classes": list(found.classes),
        "size_px": size_px,
        "map_side": side,
        "colours": base64.b64encode(colours.tobytes()).decode(),
        "alpha": ALPHA,
        "target": target,
        "threshold": threshold,
        "notes": [sentence(note) for note in notes],
        "blind": blind,
        "tiles": tiles,
    }
