"""The heatmap of a region of a slide beside the region itself; h x w pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sscl.fonts import font
from sscl.places import printable
from sscl.plots.base import writing
from sscl.plots.slide import scale_bar
from sscl.slides.preview import draw_text

STRONGEST = 0.9  # opacity at the end of the colour scale
PALER = 0.75  # the grey, so that colours show on dark tissue
_LONGEST, _LEAST_WIDTH, _MOST_ENLARGED = 1000, 460, 8  # pixels of a panel; times
_GAP, _LINE = 8, 27
_HEAD, _TEXT, _SMALL = 20, 16, 15  # sizes of letters
_BAR = (360, 20)  # of the colour scale
_FOR, _AGAINST = (213, 94, 0), (0, 114, 178)  # where no class has the colour; told apart by all eyes

Colour = tuple[int, int, int]
Bytes = NDArray[np.uint8]


def end_colours(ends: tuple[str | None, str | None], colours: Mapping[str, Colour]) -> tuple[Colour, Colour]:
    """Return the colours of what speaks for a class, and of what speaks against it.

    Args:
        ends: the class, and the one that it is compared with; None: none, or several. colours: of the classes.
    """
    first = colours.get(ends[0], _FOR) if ends[0] is not None else _FOR
    second = colours.get(ends[1]) if ends[1] is not None else None
    return first, second or (_AGAINST if first != _AGAINST else _FOR)


def draw_cam(
    path: Path,
    rgb: Bytes,
    values: NDArray[np.float32],
    *,
    name: str,
    title: str,
    ends: tuple[str | None, str | None],
    colours: Mapping[str, Colour],
    scale: tuple[float, float],
    unit: str,
    mpp: float,
    notes: Sequence[str],
) -> None:
    """Draw a region and its heatmap over grey, with one colour scale in units of the map, and a scale bar.

    Args:
        rgb: the region, (h, w, 3). values: its map, (h, w), NaN where there is none.
        name: of the slide. title: what the map is of. ends, colours: see `end_colours`.
        scale: values without colour, and from which colours stay the same. unit: of the values; empty: none.
        mpp: µm per pixel. notes: lines below the legend.
    """
    height, width = rgb.shape[:2]
    times = min(_LONGEST / max(height, width), _MOST_ENLARGED)
    size = (max(1, round(width * times)), max(1, round(height * times)))
    method = cv2.INTER_AREA if times <= 1 else cv2.INTER_CUBIC
    plain = np.asarray(cv2.resize(rgb, size, interpolation=method), dtype=np.uint8)
    share = np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), np.float32)
    positive, negative = end_colours(ends, colours)
    share = (share - scale[0]) / max(scale[1] - scale[0], 1e-12)
    drawn = blended(plain, share if scale[0] == 0 else share.clip(0), positive, negative)
    wide = size[0] > 1.6 * size[1]
    across, down = (1, 2) if wide else (2, 1)
    sheet_width = max(across * size[0] + (across - 1) * _GAP, 2 * _LEAST_WIDTH)
    bottom = down * size[1] + (down - 1) * _GAP
    sheet = Image.new("RGB", (sheet_width, bottom + 20 + _LINE * (4 + len(notes))), "white")
    sheet.paste(Image.fromarray(plain), (0, 0))
    sheet.paste(Image.fromarray(drawn), ((0, size[1] + _GAP) if wide else (size[0] + _GAP, 0)))
    draw = ImageDraw.Draw(sheet)
    top = bottom + 8
    scale_bar(draw, sheet.width, top, microns=mpp / times)
    draw_text(draw, (8, top), printable(name), size=_HEAD, width=sheet.width - 300)
    draw_text(draw, (8, top + _LINE), printable(title), size=_TEXT, width=sheet.width - 300)
    reach = float(np.nanmin(values)), float(np.nanmax(values))
    _legend(sheet, draw, (8, top + 2 * _LINE + 6), ends, (positive, negative), scale, reach, unit)
    for row, note in enumerate(notes):
        draw_text(draw, (8, top + (4 + row) * _LINE + 8), note, size=_SMALL, width=sheet.width - 16)
    with writing(path) as temporary:
        sheet.save(temporary, format="PNG", compress_level=1)


def blended(rgb: Bytes, share: NDArray[np.float32], positive: Colour, negative: Colour) -> Bytes:
    """Return a picture in grey with a map over it, the stronger the farther from 0; share: of the scale, NaN: none."""
    grey = 255 - PALER * (255 - cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None])
    known = np.nan_to_num(np.clip(share, -1, 1))
    opacity = STRONGEST * np.abs(known)[..., None]
    colour = np.where(known[..., None] >= 0, np.array(positive, np.float32), np.array(negative, np.float32))
    return np.asarray(np.rint(grey * (1 - opacity) + colour * opacity), dtype=np.uint8)


def _legend(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    ends: tuple[str | None, str | None],
    colours: tuple[Colour, Colour],
    scale: tuple[float, float],
    reach: tuple[float, float],
    unit: str,
) -> None:
    """Draw the colour scale with its numbers, and what its ends stand for. reach: lowest and highest value."""
    left, top = at
    wide, high = _BAR
    signed = reach[0] < 0
    left += 0 if signed else 24  # for half of a number
    share = np.linspace(-1 if signed else 0, 1, wide, dtype=np.float32)[None].repeat(high, 0)
    bar = blended(np.full((high, wide, 3), 235, np.uint8), share, *colours)
    if signed:
        against = "against it" if ends[1] is None else f"for {printable(ends[1])}"
        draw_text(draw, (left, top), against, size=_TEXT, width=180)
        left += min(180, round(font(_TEXT).getlength(against))) + 8
    sheet.paste(Image.fromarray(bar), (left, top))
    if ends[0] is not None:
        draw_text(draw, (left + wide + 8, top), f"for {printable(ends[0])}", size=_TEXT, width=240)
    start, end = scale
    beyond = ("≤ " if reach[0] < -end else "", "≥ " if reach[1] > end else "")
    ticks = {0: f"{beyond[0]}{-end:.2g}", wide // 2: "0"} if signed else {0: f"{start:.3g}"}
    for place, label in {**ticks, wide - 1: f"{beyond[1]}{end:.{3 if start else 2}g}"}.items():
        draw.line((left + place, top + high, left + place, top + high + 4), fill="black")
        draw.text((left + place, top + high + 5), label, fill="black", font=font(_SMALL), anchor="ma")
    draw.text((left + wide + 40, top + high + 5), unit or "without a unit", fill="black", font=font(_SMALL))
