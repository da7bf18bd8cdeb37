"""A slide in small: means of level 0 over squares that do not depend on its pyramid.

h x w pixels of the overview.
"""

from __future__ import annotations

import math
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.places import printable
from sscl.slides.records import Level, Overview, Slide, SlideError
from sscl.words import short

_STRIP = 2**22  # pixels that are in memory at once
_MOST_SUMMED = 2**31 // 255  # pixels whose sum 32 bits hold
_BLOCK = 256  # side of the squares in which a strip is read that cannot be read whole
_TOLERANCE = 1.02  # a level may be coarser by so much than the overview


class Read(Protocol):
    """Reads whole pixels of a level, as `Readers.read` does."""

    def __call__(
        self, slide: Slide, *, level: int, x: int, y: int, out: NDArray[np.uint8]
    ) -> NDArray[np.uint8] | None: ...


def overview(slide: Slide, mpp: float, *, read: Read) -> Overview:
    """Return a whole slide at `mpp` µm per pixel, or at its own if that is coarser.

    It is made of the coarsest level that is fine enough, in strips. Squares that cannot be decoded are not known.

    Raises:
        SlideError: the slide's µm per pixel is not known, or most of it cannot be decoded.
    """
    if slide.mpp is None:
        raise SlideError(f"{printable(slide.path)}: its µm per pixel is not known")
    factor = max(1.0, mpp / slide.mpp)
    index = max(
        (i for i, level in enumerate(slide.levels) if level.factor <= factor * _TOLERANCE),
        key=lambda i: slide.levels[i].factor,
    )
    level = slide.levels[index]
    ratio = factor / level.factor
    width, height = math.ceil(slide.width / factor), math.ceil(slide.height / factor)
    columns = np.minimum(np.arange(width + 1) * ratio, level.width)
    rgb = np.full((height, width, 3), 255, dtype=np.uint8)
    known = np.zeros((height, width), dtype=np.bool_)
    rows = max(1, int(_STRIP / (ratio * level.width)))
    strips = _Strips(slide, index, read)
    for row in range(0, height, rows):
        lines = np.minimum(np.arange(row, min(height, row + rows) + 1) * ratio, level.height)
        top = math.floor(lines[0])
        pixels, opacity = strips.read(top, math.ceil(lines[-1]))
        area = np.diff(lines)[:, None] * np.diff(columns)
        box_means(pixels, lines - top, columns, out=rgb[row : row + rows])
        covered = area if opacity is None else box_sums(opacity[:, :, None], lines - top, columns)[:, :, 0] / 255
        known[row : row + rows] = covered >= ratio**2 / 2
    return Overview(
        rgb=rgb, known=known, factor_x=factor, factor_y=factor, mpp=factor * slide.mpp, damaged=strips.check()
    )


class _Strips:
    """Reads a level from side to side, and counts the squares of it that cannot be read."""

    def __init__(self, slide: Slide, index: int, read: Read) -> None:
        self._slide, self._index, self._read = slide, index, read
        self._level: Level = slide.levels[index]
        how = self._level.encoded
        self._step = (_BLOCK, _BLOCK) if how is None else (how.width, how.height)
        self._failed: set[tuple[int, int]] = set()  # x and y of squares; two strips may share one
        self._why = ""

    def read(self, top: int, bottom: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Return a strip's pixels, and how opaque each is (None: all are); what cannot be read is not, and white."""
        width = self._level.width
        pixels = np.empty((bottom - top, width, 3), dtype=np.uint8)
        try:
            return pixels, self._read(self._slide, level=self._index, x=0, y=top, out=pixels)
        except (SlideError, MemoryError):
            raise
        except Exception:  # of openslide or a decoder; where, is looked for
            pass
        pixels[:], opacity = 255, np.zeros(pixels.shape[:2], dtype=np.uint8)
        step_x, step_y = self._step
        for y in range(top // step_y * step_y, bottom, step_y):
            for x in range(0, width, step_x):
                ys, xs = slice(max(y, top) - top, min(y + step_y, bottom) - top), slice(x, min(x + step_x, width))
                part = np.empty((ys.stop - ys.start, xs.stop - xs.start, 3), dtype=np.uint8)
                try:
                    opaque = self._read(self._slide, level=self._index, x=x, y=ys.start + top, out=part)
                except (SlideError, MemoryError):
                    raise
                except Exception as error:
                    self._failed.add((x, y))
                    self._why = self._why or str(error)
                else:
                    pixels[ys, xs], opacity[ys, xs] = part, 255 if opaque is None else opaque
        return pixels, opacity

    def check(self) -> int:
        """Return how many squares cannot be read.

        Raises:
            SlideError: more than half of all.
        """
        across, down = -(-self._level.width // self._step[0]), -(-self._level.height // self._step[1])
        if len(self._failed) * 2 > across * down:
            raise SlideError(f"{printable(self._slide.path)}: cannot be decoded: {short(self._why, most=200)}")
        return len(self._failed)


def box_means(
    pixels: NDArray[np.uint8], lines: NDArray[np.float64], columns: NDArray[np.float64], *, out: NDArray[np.uint8]
) -> None:
    """Write means of pixels over boxes into `out`, (h, w, C), rounded; boxes of no area are left as they are.

    Args:
        pixels, lines, columns: see `box_sums`.
    """
    area = np.diff(lines)[:, None] * np.diff(columns)
    step = int(columns[1] - columns[0])
    # Most boxes are squares of whole pixels, side by side, where the ratio is whole: OpenCV has that in one pass.
    high, wide = (_whole(places, step) for places in (lines, columns))
    if high and wide:
        squares = pixels[: high * step, : wide * step]
        out[:high, :wide] = squares if step == 1 else cv2.resize(squares, (wide, high), interpolation=cv2.INTER_AREA)
    for ys, xs in ((slice(0, high), slice(wide, None)), (slice(high, None), slice(0, None))):
        inside = area[ys, xs] > 0
        if inside.any():
            between = lines[ys.start : None if ys.stop is None else ys.stop + 1], columns[xs.start :]
            out[ys, xs][inside] = np.rint(box_sums(pixels, *between)[inside] / area[ys, xs][inside][:, None])


def _whole(places: NDArray[np.float64], step: int) -> int:
    """Return how many boxes, from the first on, have sides of whole pixels, `step` of them, from 0 on."""
    differs = np.flatnonzero(places != step * np.arange(len(places)))
    return 0 if step == 0 else (int(differs[0]) if len(differs) else len(places)) - 1 if places[0] == 0 else 0


def box_sums(
    pixels: NDArray[np.uint8], lines: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return sums of pixels over boxes whose sides lie between pixels, which then count in part.

    Args:
        pixels: (H, W, C). lines, columns: ascending, (h + 1) and (w + 1) places, in pixels.

    Returns:
        (h, w, C)
    """
    depth = cv2.CV_32S if pixels.shape[0] * pixels.shape[1] <= _MOST_SUMMED else cv2.CV_64F
    table = cv2.integral(np.ascontiguousarray(pixels), sdepth=depth).reshape(
        pixels.shape[0] + 1, pixels.shape[1] + 1, pixels.shape[2]
    )  # sums over all above and to the left
    below = between(table, lines, axis=0)
    sums: NDArray[np.float64] = np.diff(np.diff(between(below, columns, axis=1), axis=0), axis=1)
    return sums


def between(table: NDArray[np.number], places: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """Return an integral at places between its own, along one axis: linear, as it is over a part of a pixel."""
    first = np.minimum(places.astype(np.int64), table.shape[axis] - 2)
    share = (places - first).reshape([-1 if i == axis else 1 for i in range(table.ndim)])
    found: NDArray[np.float64] = table.take(first, axis) * (1 - share) + table.take(first + 1, axis) * share
    return found
