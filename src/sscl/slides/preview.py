"""Pictures to judge an index by: a slide in small with its tissue and its tiles, and many of them on one sheet."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sscl.fonts import font, lettering
from sscl.places import printable
from sscl.slides.index import Grid
from sscl.slides.records import Overview, Scaling, Slide
from sscl.slides.tissue import LEAST_PEN, Tissue
from sscl.words import count, shortened
from sscl.writing import replacing

LONGEST, _WIDEST_TEXT = 1024, 560  # pixels: a picture's longer side; the least width of the text below it
_TEXT_PX = 84  # height of the text below a picture
_OUTLINE = (0, 140, 90)
_LEAST_SPACING = 5  # pixels between lines of the grid, below which it is not drawn
_SHEET_PIXELS = 40_000_000
_CELL, _LEAST_CELL, _CAPTION_LINES = 360, 150, 4

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def preview(slide: Slide, scaling: Scaling | None, overview: Overview, tissue: Tissue | None, grid: Grid) -> bytes:
    """Return a JPEG of a slide: the tissue has a green outline, and what is in no tile is pale; below it the facts.

    Args:
        scaling: None: it is in no index. tissue: None: the tiles were given, not found.
    """
    size = _size(overview)
    scale = size[0] / (overview.rgb.shape[1] * overview.factor_x)  # pixels of the picture for one of level 0
    method = cv2.INTER_AREA if size[0] <= overview.rgb.shape[1] else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(overview.rgb, size, interpolation=method), dtype=np.uint8)
    if scaling is not None and len(grid):
        taken, lines = _tiles(grid, scaling.step, scale=scale, size=size)
        np.copyto(picture, 255 - (255 - picture) // 2, where=~taken[:, :, None])
        np.copyto(picture, picture // 2, where=lines[:, :, None])
    if tissue is not None and tissue.mask.any():
        mask = cv2.resize(tissue.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outline, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outline, -1, _OUTLINE, 1 if method == cv2.INTER_AREA else 2)
    sheet = Image.new("RGB", (max(size[0], _WIDEST_TEXT), size[1] + _TEXT_PX), "white")
    sheet.paste(Image.fromarray(picture), (0, 0))
    _write_below(sheet, size[1], _facts(slide, scaling, tissue, grid), microns=(slide.mpp or 0) / scale)
    return _jpeg(sheet)


def _size(overview: Overview) -> tuple[int, int]:
    """Return the picture's width and height; small slides are enlarged, at most eightfold."""
    height, width = overview.rgb.shape[:2]
    times = min(LONGEST / max(height, width), 8)
    return max(1, round(width * times)), max(1, round(height * times))


def _tiles(grid: Grid, step: float, *, scale: float, size: tuple[int, int]) -> tuple[Mask, Mask]:
    """Return which pixels of the picture are in a tile, and which on a tile's border; none where tiles are too small.

    Each tile adds 1 at two corners and takes 1 off at the others: the sums along x and y count the tiles over a pixel.
    """
    width, height = size
    corners = grid[:, :2].astype(np.float64)
    low = np.rint(corners * scale).astype(np.int64)
    high = np.rint((corners + step) * scale).astype(np.int64)
    x0, y0 = np.minimum(low, (width, height)).T
    x1, y1 = np.minimum(np.maximum(high, low + 1), (width, height)).T

    def summed(parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64], int]], axes: Sequence[int]) -> Mask:
        counts = np.zeros((height + 1, width + 1), dtype=np.int32)
        for y, x, sign in parts:
            np.add.at(counts, (y, x), sign)
        for axis in axes:
            np.cumsum(counts, axis=axis, out=counts)
        return np.asarray(counts[:height, :width] > 0, dtype=np.bool_)

    taken = summed([(y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)], (0, 1))
    columns = np.unique(x0)
    if len(columns) > 1 and np.diff(columns).min() < _LEAST_SPACING:
        return taken, np.zeros_like(taken)
    across = summed([(y0, x0, 1), (y0, x1, -1), (y1, x0, 1), (y1, x1, -1)], (1,))
    down = summed([(y0, x0, 1), (y1, x0, -1), (y0, x1, 1), (y1, x1, -1)], (0,))
    return taken, across | down


def _facts(slide: Slide, scaling: Scaling | None, tissue: Tissue | None, grid: Grid) -> list[str]:
    """Return what stands below the picture."""
    file = [slide.vendor, f"{slide.width:,} x {slide.height:,} px"]
    if slide.mpp is not None:
        sides = [f"{side * slide.mpp / 1000:.3g}" for side in (slide.width, slide.height)]
        file += [f"{' x '.join(sides)} mm", f"{slide.mpp:.4g} µm/px ({slide.mpp_from})"]
    found = []
    if scaling is not None:
        found.append(f"{count(len(grid), 'tile')} of {scaling.size_px} px at {scaling.mpp:.3g} µm/px")
    if tissue is not None:
        found.append(tissue.reason or f"{100 * tissue.share:.0f}% tissue")
        if tissue.pen_share > LEAST_PEN:
            found.append(f"{100 * tissue.pen_share:.1f}% pen, left out")
    return [printable(slide.name), " · ".join(file), " · ".join(found)]


def _write_below(sheet: Image.Image, top: int, facts: Sequence[str], *, microns: float) -> None:
    """Write facts below a picture, the first as a heading, and a scale bar at the right.

    Args:
        microns: that a pixel of the picture spans; 0: not known.
    """
    draw = ImageDraw.Draw(sheet)
    bar = round_length(0.2 * sheet.width * microns) if microns else 0
    left = sheet.width - 12 - (round(bar / microns) if bar else 0)
    for i, fact in enumerate(facts):
        room = (left if i == 0 else sheet.width) - 20
        draw_text(draw, (8, top + 8 + 25 * i), fact, size=16 if i == 0 else 13, width=room)
    if bar:
        label = f"{bar / 1000:g} mm" if bar >= 1000 else f"{bar:g} µm"
        draw.line((left, top + 8, sheet.width - 12, top + 8), fill="black", width=4)
        draw.text((sheet.width - 12, top + 13), label, fill="black", font=font(13), anchor="ra")


def round_length(most: float) -> float:
    """Return the longest of 1, 2, 5, 10, 20, 50, ... that is not longer.

    Examples:
        >>> round_length(733), round_length(2.4)
        (500.0, 2.0)
    """
    power = 10 ** math.floor(math.log10(most))
    return float(next(digit * power for digit in (5, 2, 1) if digit * power <= most * (1 + 1e-9)))


def contact_sheet(previews: Sequence[tuple[str, bytes | None]], path: Path) -> None:
    """Draw slides on one sheet, a JPEG file, each with its caption below.

    Args:
        previews: for each slide its caption, of which the first line is its name, and what `preview` made; None: there
            is none, and the rest of the caption stands in its place.
    """
    cell = int(min(_CELL, max(_LEAST_CELL, math.sqrt(_SHEET_PIXELS / max(len(previews), 1) / 1.3))))
    columns = min(max(1, math.ceil(math.sqrt(1.6 * len(previews)))), len(previews) or 1)
    line = max(11, cell // 26)  # pixels of a letter
    high = cell + _CAPTION_LINES * (line + 4) + 12
    sheet = Image.new("RGB", (columns * cell, max(1, math.ceil(len(previews) / columns)) * high), "white")
    for i, (caption, data) in enumerate(previews):
        left, top = i % columns * cell, i // columns * high
        name, *others = (printable(text) for text in caption.split("\n"))
        picture = None if data is None else _picture(data, (cell - 12, cell - 12))
        below = (left + 7, top + cell)
        if picture is None:
            ImageDraw.Draw(sheet).rectangle((left + 6, top + 6, left + cell - 7, top + cell - 7), fill="#ececec")
            room = (cell - 26) // (line + 4)
            _draw_lines(sheet, (left + 14, top + 14), others, size=line, width=cell - 28, most=room)
            others = []
        else:
            sheet.paste(picture, (left + (cell - picture.width) // 2, top + cell - 6 - picture.height))
        _draw_lines(sheet, below, [name, *others], size=line, width=cell - 14, most=_CAPTION_LINES)
    with replacing(path) as temporary:
        temporary.write_bytes(_jpeg(sheet))


def _picture(data: bytes, size: tuple[int, int]) -> Image.Image | None:
    """Return a preview without the text below it, no larger than `size`; None: the file is damaged."""
    try:
        with Image.open(io.BytesIO(data)) as whole:
            picture: Image.Image = whole.convert("RGB").crop((0, 0, whole.width, max(1, whole.height - _TEXT_PX)))
    except (OSError, ValueError):
        return None
    picture.thumbnail(size, Image.Resampling.LANCZOS)
    return picture


def _draw_lines(
    sheet: Image.Image, at: tuple[int, int], texts: Sequence[str], *, size: int, width: int, most: int
) -> None:
    """Write texts below each other, each in as many lines as it needs, at most so many in all."""
    lines = [line for text in texts for line in _lines(text, size=size, width=width)]
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    for row, line in enumerate(lines):
        draw_text(ImageDraw.Draw(sheet), (at[0], at[1] + row * (size + 4)), line, size=size, width=width)


def _lines(text: str, *, size: int, width: int) -> list[str]:
    """Return a text in lines of so many pixels; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def draw_text(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, *, size: int, width: int) -> None:
    """Write a line, shortened in its middle to the pixels there are."""
    text, file = lettering(text[:400])
    letters = min(len(text), 400)
    while letters > 8 and font(size, file).getlength(shortened(text, letters)) > width:
        letters -= max(1, letters // 20)
    draw.text(at, shortened(text, letters), fill="black", font=font(size, file))


def _jpeg(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=88)
    return data.getvalue()
