"""What a classifier says of a slide, drawn over it in small: a colour a class, the stronger the more probable.

n tiles, K classes, h rows and w columns of cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sscl.fonts import font
from sscl.places import printable
from sscl.plots.base import LINE_COLOURS, writing
from sscl.slides.preview import draw_text, round_length
from sscl.slides.records import Overview
from sscl.slides.stitch import Cells

_LONGEST, _WIDEST_TEXT, _MOST_ENLARGED = 1600, 720, 8  # pixels of the picture, and of the text below it; times
_FAINT, _STRONG = 0.2, 0.75  # opacity of a class at its lowest and highest probability
_UNDECIDED = (70, 70, 70)
_STRIPE = 8  # pixels from stripe to stripe where it is undecided
_LISTED = 8  # classes below the picture
_LINE = 24  # pixels of a line of text

Floats = NDArray[np.floating]
Bytes = NDArray[np.uint8]


def class_colours(number: int) -> tuple[tuple[int, int, int], ...]:
    """Return red, green and blue of each of so many classes, 0-255; the first six are told apart by all eyes."""
    plain = [tuple(bytes.fromhex(colour[1:])) for colour in LINE_COLOURS[:-1]]
    rings = [1.0, 0.6, 0.35]  # darker, then lighter again
    found = []
    for i in range(number):
        shade = rings[i // len(plain) % len(rings)]
        r, g, b = (round(part * shade) for part in plain[i % len(plain)])
        found.append((r, g, b))
    return tuple(found)


def best_class(cells: Cells, probabilities: Floats) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the most probable class of each cell and its probability, the mean of its tiles; (h, w), NaN: no tile."""
    best = np.zeros(cells.counts.shape, np.int64)
    highest = cells.mean(probabilities[:, 0])
    for number in range(1, probabilities.shape[1]):
        mean = cells.mean(probabilities[:, number])
        np.copyto(best, number, where=mean > highest)
        np.fmax(highest, mean, out=highest)
    return best, highest


def draw_slide(
    path: Path,
    overview: Overview,
    cells: Cells,
    probabilities: Floats,
    *,
    name: str,
    classes: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    decide_from: float | None,
    notes: Sequence[str],
) -> None:
    """Draw the most probable class of each place over the slide, with a scale bar and a legend below.

    The slide begins at the picture's top-left corner; one pixel of it spans the same of the slide both ways.

    Args:
        probabilities: of the tiles, (n, K). decide_from: confidence below which a place is undecided; None: none is.
        name: of the slide. notes: lines below the legend.
    """
    height, width = overview.rgb.shape[:2]
    times = min(_LONGEST / max(height, width), _MOST_ENLARGED)
    size = (max(1, round(width * times)), max(1, round(height * times)))
    method = cv2.INTER_AREA if times <= 1 else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(overview.rgb, size, interpolation=method), dtype=np.uint8)
    scale = size[0] / (width * overview.factor_x)  # pixels of the picture for one of level 0
    best, highest = best_class(cells, probabilities)
    _blend(picture, cells, best, highest, scale=scale, colours=colours, decide_from=decide_from)
    shown = [int(number) for number in np.unique(best[cells.counts > 0])]
    shown = sorted(shown, key=lambda number: -int((best[cells.counts > 0] == number).sum()))[:_LISTED]
    if len(classes) <= _LISTED:
        shown = list(range(len(classes)))
    rows = len(shown) + (decide_from is not None)
    below = 14 + _LINE * (1 + rows + len(notes))
    sheet = Image.new("RGB", (max(size[0], _WIDEST_TEXT), size[1] + below), "white")
    sheet.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(sheet)
    top = size[1] + 8
    microns = overview.mpp / times
    scale_bar(draw, sheet.width, top, microns=microns)
    draw_text(draw, (8, top), printable(name), size=16, width=sheet.width - 300)
    for row, number in enumerate(shown, start=1):
        at = top + row * _LINE
        _gradient(sheet, (8, at + 3), colours[number])
        label = f"{printable(classes[number])}: {1 / len(classes):.2g} to 1"
        draw_text(draw, (120, at), label, size=13, width=sheet.width - 130)
    if decide_from is not None:
        at = top + rows * _LINE
        patch = np.full((15, 100, 3), 235, np.uint8)
        patch[_stripes(patch.shape[:2])] = _UNDECIDED
        sheet.paste(Image.fromarray(patch), (8, at + 3))
        draw_text(draw, (120, at), f"undecided: below {decide_from:.3f}", size=13, width=sheet.width - 130)
    for row, note in enumerate(notes, start=rows + 1):
        draw_text(draw, (8, top + row * _LINE), note, size=13, width=sheet.width - 16)
    with writing(path) as temporary:
        sheet.save(temporary, format="PNG", compress_level=1)


def _blend(
    picture: Bytes,
    cells: Cells,
    best: NDArray[np.int64],
    highest: NDArray[np.float32],
    *,
    scale: float,
    colours: Sequence[tuple[int, int, int]],
    decide_from: float | None,
) -> None:
    """Lay the cells over a picture."""
    lowest = 1 / len(colours)
    strength = _FAINT + (_STRONG - _FAINT) * np.clip((highest - lowest) / (1 - lowest), 0, 1)
    opacity = np.where(cells.counts > 0, strength, 0).astype(np.float32)
    known = (cells.counts > 0).astype(np.uint8)
    undecided = known * (highest < decide_from) if decide_from is not None else np.zeros_like(known)
    high, wide = picture.shape[:2]
    ys, xs = (np.clip(np.rint(edges * scale).astype(int), 0, most) for edges, most in _edges(cells, high, wide))
    rows, columns = np.repeat(np.arange(len(ys) - 1), np.diff(ys)), np.repeat(np.arange(len(xs) - 1), np.diff(xs))
    part = picture[ys[0] : ys[-1], xs[0] : xs[-1]]
    stripes = _stripes(part.shape[:2])
    table = np.array(colours, np.float32)
    for start in range(0, len(rows), 256):  # strips: a picture of floats is four times as large
        at = rows[start : start + 256]
        colour = table[best[at][:, columns]]
        alpha = opacity[at][:, columns]
        open_ = undecided[at][:, columns] > 0
        alpha = np.where(open_, np.where(stripes[start : start + 256], 0.8, 0.0), alpha)[..., None]
        colour = np.where(open_[..., None], np.array(_UNDECIDED, np.float32), colour)
        under = part[start : start + 256]
        under[:] = np.rint(under * (1 - alpha) + colour * alpha)


def _edges(cells: Cells, high: int, wide: int) -> list[tuple[NDArray[np.int64], int]]:
    return [(cells.y_edges, high), (cells.x_edges, wide)]


def _stripes(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((rows + columns) % _STRIPE < 2, dtype=np.bool_)


def _gradient(sheet: Image.Image, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    alpha = np.linspace(_FAINT, _STRONG, 100)[None, :, None]
    strip = np.rint(255 * (1 - alpha) + np.array(colour) * alpha).astype(np.uint8)
    sheet.paste(Image.fromarray(np.repeat(strip, 15, axis=0)), at)


def scale_bar(draw: ImageDraw.ImageDraw, right: int, top: int, *, microns: float) -> None:
    """Draw a scale bar that ends at x = right - 12. microns: of a pixel."""
    bar = round_length(260 * microns)
    left = right - 12 - round(bar / microns)
    draw.line((left, top + 4, right - 12, top + 4), fill="black", width=4)
    label = f"{bar / 1000:g} mm" if bar >= 1000 else f"{bar:g} µm"
    draw.text((right - 12, top + 10), label, fill="black", font=font(13), anchor="ra")
