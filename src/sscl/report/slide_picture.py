"""The picture of a slide in its page: JPEG squares of several sizes, as viewers of slides load them.

Level k of m is the picture at half the size of level k + 1; the last is the picture itself.
"""

from __future__ import annotations

import base64
import io
import math
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sscl.slides.deep_zoom import OVERLAP, box_of, sizes_of

SQUARE = 510  # pixels of a square
QUALITIES = (80, 70, 60, 50, 40)
_THUMBNAIL = 160  # pixels along its longer side


class Squares(TypedDict):
    """The squares of a picture, and where they are: in the page, or at a server that makes them.

    Keys:
        width, height: of the picture. factor: pixels of level 0 that one of its pixels spans, x and y.
        square, overlap: of a square, pixels. levels: number of them.
        squares: JPEG as base64, the smallest level first, row by row; empty: at `address`.
        address: of the squares, before "LEVEL/COLUMN_ROW.jpg". pictures: of tiles, before "ROW.jpg".
    """

    width: int
    height: int
    factor: tuple[float, float]
    square: int
    overlap: int
    levels: int
    squares: list[str]
    address: str
    pictures: str


def in_squares(rgb: NDArray[np.uint8], factor: tuple[float, float], *, most_bytes: int) -> tuple[Squares, int]:
    """Return a picture, uint8 (h, w, 3), in squares whose base64 has at most `most_bytes` in all.

    At the first quality of QUALITIES at which it is small enough; where none is, at half the size, and so on. The
    second value says how many times smaller it was made.

    Args:
        factor: pixels of level 0 that one pixel spans, x and y.
    """
    picture, reduced = Image.fromarray(np.ascontiguousarray(rgb)), 1
    while True:
        levels = [picture]
        for size in sizes_of(*picture.size, square=SQUARE)[-2::-1]:
            levels.append(levels[-1].resize(size, Image.Resampling.BOX))
        levels.reverse()
        for quality in QUALITIES:
            squares = _encoded(levels, quality, most_bytes=most_bytes)
            if squares is None:
                continue
            width, height = picture.size
            return {
                "width": width,
                "height": height,
                "factor": (factor[0] * rgb.shape[1] / width, factor[1] * rgb.shape[0] / height),
                "square": SQUARE,
                "overlap": OVERLAP,
                "levels": len(levels),
                "squares": squares,
                "address": "",
                "pictures": "",
            }, reduced
        picture, reduced = levels[-2], reduced * 2


def thumbnail(rgb: NDArray[np.uint8]) -> bytes:
    """Return a picture, uint8 (h, w, 3), in small as JPEG."""
    picture, stream = Image.fromarray(np.ascontiguousarray(rgb)), io.BytesIO()
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    picture.save(stream, "JPEG", quality=75)
    return stream.getvalue()


def _encoded(levels: list[Image.Image], quality: int, *, most_bytes: int) -> list[str] | None:
    """Return the squares of all levels; None as soon as there are too many bytes."""
    squares: list[str] = []
    total = 0
    for level in levels[::-1]:
        of_level = []
        for row in range(math.ceil(level.height / SQUARE)):
            for column in range(math.ceil(level.width / SQUARE)):
                box = box_of(level.size, column, row, square=SQUARE)
                stream = io.BytesIO()
                level.crop(box).save(stream, "JPEG", quality=quality)
                of_level.append(base64.b64encode(stream.getvalue()).decode())
                total += len(of_level[-1])
        if total > most_bytes and max(level.size) > SQUARE:
            return None
        squares = of_level + squares
    return squares
