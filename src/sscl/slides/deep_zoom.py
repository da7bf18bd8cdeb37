"""Squares of a slide at every size that is half the next one, made when they are asked for (Deep Zoom).

Level 0 is the smallest, which fits into one square; the last is the slide's own level 0.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.places import printable
from sscl.slides.pixels import Readers
from sscl.slides.records import Overview, Slide, SlideError
from sscl.words import short

OVERLAP = 1  # pixels of a neighbour that a square has, too: no seams between them
_TOLERANCE = 1.02  # a level of the slide may be coarser by so much than what is wanted
_MOST_REDUCED = 4  # times that a level is read larger than it is shown; beyond, the slide in small is used
_SMALL_MPP = 8.0  # of that
_PIECE = 64  # pixels of the level read: no smaller piece is looked for where a square cannot be decoded


def sizes_of(width: int, height: int, *, square: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes of the levels of a picture, the smallest first."""
    found = [(width, height)]
    while max(found[-1]) > square:
        found.append((math.ceil(found[-1][0] / 2), math.ceil(found[-1][1] / 2)))
    return tuple(found[::-1])


def box_of(size: tuple[int, int], column: int, row: int, *, square: int) -> tuple[int, int, int, int] | None:
    """Return left, top, right, bottom of a square of a level of that size; None: there is none."""
    left, top = column * square, row * square
    if left >= size[0] or top >= size[1]:
        return None
    right, bottom = min(size[0], left + square + OVERLAP), min(size[1], top + square + OVERLAP)
    return max(0, left - OVERLAP), max(0, top - OVERLAP), right, bottom


class DeepZoom:
    """The squares of a slide.

    Args:
        square: their side, pixels, without what they have of their neighbours.
        say: takes a line on each part of a square that cannot be decoded, and is crossed out in it.
    """

    def __init__(
        self, slide: Slide, readers: Readers, *, square: int = 254, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.slide, self.square, self._say = slide, square, say
        self.sizes = sizes_of(slide.width, slide.height, square=square)
        self._readers, self._lock = readers, threading.Lock()
        self._small: Overview | None = None

    def pixels(self, level: int, column: int, row: int) -> NDArray[np.uint8] | None:
        """Return a square, RGB uint8 (h, w, 3); None: there is none.

        Raises:
            SlideError: it cannot be read.
        """
        if level >= len(self.sizes):
            return None
        box = box_of(self.sizes[level], column, row, square=self.square)
        if box is None:
            return None
        scale = float(2 ** (len(self.sizes) - 1 - level))
        fine_enough = [i for i, own in enumerate(self.slide.levels) if own.factor <= scale * _TOLERANCE]
        of = max(fine_enough, key=lambda i: self.slide.levels[i].factor)
        factor = self.slide.levels[of].factor
        if scale / factor > _MOST_REDUCED:
            small = self._overview()
            if factor < small.factor_x <= scale * _TOLERANCE:
                picture, ratio = small.rgb, (scale / small.factor_x, scale / small.factor_y)
                left, top, right, bottom = _spanned(box, *ratio, picture.shape[1], picture.shape[0])
                return _resized(picture[top:bottom, left:right], box)
        own = self.slide.levels[of]
        left, top, right, bottom = _spanned(box, scale / factor, scale / factor, own.width, own.height)
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        self._read(of, left, top, pixels)
        return _resized(pixels, box)

    def _read(self, level: int, x: int, y: int, out: NDArray[np.uint8]) -> None:
        """Write pixels of a level into `out`; of a part that cannot be decoded, the smallest pieces are crossed out."""
        try:
            self._readers.read(self.slide, level=level, x=x, y=y, out=out)
            return
        except (SlideError, MemoryError):
            raise
        except Exception as error:  # of openslide and the decoders below it: an error of this file
            why = short(str(error), most=200)
        height, width = out.shape[:2]
        if max(height, width) <= _PIECE:
            factor = self.slide.levels[level].factor
            where = f"x={round(x * factor)}, y={round(y * factor)}"
            self._say(f"{printable(self.slide.path)}: cannot be decoded at {where}: {why}")
            _cross(out)
            return
        middle_y, middle_x = (side // 2 if side > _PIECE else side for side in (height, width))
        for top, bottom in ((0, middle_y), (middle_y, height)):
            for left, right in ((0, middle_x), (middle_x, width)):
                if bottom > top and right > left:
                    part = np.empty((bottom - top, right - left, 3), np.uint8)
                    self._read(level, x + left, y + top, part)
                    out[top:bottom, left:right] = part

    def _overview(self) -> Overview:
        with self._lock:  # once, however many squares are asked for at the same time
            if self._small is None:
                self._small = self._readers.overview(self.slide, _SMALL_MPP)
            return self._small


def _cross(out: NDArray[np.uint8]) -> None:
    height, width = out.shape[:2]
    out[:] = 200
    for start, end in (((0, 0), (width - 1, height - 1)), ((width - 1, 0), (0, height - 1))):
        cv2.line(out, start, end, (0, 0, 0), 2)


def _spanned(
    box: tuple[int, int, int, int], ratio_x: float, ratio_y: float, width: int, height: int
) -> tuple[int, int, int, int]:
    """Return the whole pixels of a picture that a box spans, in pixels `ratio` times as large."""
    left, top = min(width - 1, round(box[0] * ratio_x)), min(height - 1, round(box[1] * ratio_y))
    return (
        left,
        top,
        max(left + 1, min(width, round(box[2] * ratio_x))),
        max(top + 1, min(height, round(box[3] * ratio_y))),
    )


def _resized(pixels: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    size = (box[2] - box[0], box[3] - box[1])
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
