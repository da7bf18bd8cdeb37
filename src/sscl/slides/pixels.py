"""Pixels of slides: finished tiles, and a slide in small.

B tiles, S = their side, H x W an overview.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.places import printable
from sscl.slides.handles import Handles
from sscl.slides.records import Level, Overview, Scaling, Slide, SlideError
from sscl.words import short

_STRIP_BYTES = 64 * 2**20  # of pixels that an overview has in memory at once
_NEAR = 0.05  # an overview's µm/px may differ from those asked for by so much, so that its pixels are whole means


class DamagedTile(SlideError):
    """A place of a slide cannot be decoded.

    Attributes:
        slide: its path. x, y: of the tile, pixels of level 0. why: what the decoder says.
    """

    def __init__(self, slide: Slide, x: int, y: int, why: str) -> None:
        super().__init__(f"{printable(slide.path)}: damaged at x={x}, y={y}: {why}; copy the slide again")
        self.slide, self.x, self.y, self.why = slide.path, x, y, why


class Readers:
    """Reads tiles and overviews of any number of slides, from any number of threads.

    Args:
        most: files that are open at once.
    """

    def __init__(self, most: int = 64) -> None:
        self._handles = Handles(most)

    def tiles(self, slide: Slide, scaling: Scaling, xy: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Write tiles of a slide into `out`, uint8 (B, S, S, 3), RGB; where nothing was scanned they are white.

        Args:
            xy: (B, 2), top-left corners, pixels of level 0. Sorted by y, then x, each encoded tile is decoded once.

        Raises:
            DamagedTile: a tile cannot be decoded; those of other places can be read right afterwards.
        """
        factor = slide.levels[scaling.level].factor
        for (x, y), tile in zip(xy.tolist(), out, strict=True):
            try:
                part = self._handles.read(
                    slide,
                    level=scaling.level,
                    x=math.floor(x / factor + 0.5),
                    y=math.floor(y / factor + 0.5),
                    width=scaling.side,
                    height=scaling.side,
                )
            except Exception as error:  # of openslide and the decoders below it: an error of this file
                raise DamagedTile(slide, x, y, short(str(error), most=200)) from None
            pixels = over_white(part)
            if scaling.resampled:
                cv2.resize(pixels, (scaling.size_px, scaling.size_px), dst=tile, interpolation=cv2.INTER_AREA)
            else:
                tile[:] = pixels

    def overview(self, slide: Slide, mpp: float) -> Overview:
        """Return a whole slide at about `mpp` µm per pixel (within 5% where the slide is fine enough).

        Each of its pixels is the mean of whole pixels of a level, so that it depends on neither memory nor threads.

        Raises:
            SlideError: the slide's µm per pixel is not known, or it cannot be decoded.
        """
        if slide.mpp is None:
            raise SlideError(f"{printable(slide.path)}: its µm per pixel is not known")
        index, times = overview_level(slide.levels, factor=mpp / slide.mpp)
        level = slide.levels[index]
        width, height = math.ceil(level.width / times), math.ceil(level.height / times)
        rgb = np.full((height, width, 3), 255, dtype=np.uint8)
        known = np.zeros((height, width), dtype=np.bool_)
        rows = max(1, min(_STRIP_BYTES // (8 * level.width * times), height))  # of the overview, in a strip
        for row in range(0, height, rows):
            top = row * times
            bottom = min(level.height, top + rows * times)
            try:
                part = self._handles.read(slide, level=index, x=0, y=top, width=level.width, height=bottom - top)
            except Exception as error:
                raise SlideError(f"{printable(slide.path)}: cannot be read: {short(str(error), most=200)}") from None
            rgb[row : row + rows] = reduced(over_white(part), times)
            known[row : row + rows] = reduced(part[:, :, 3], times) >= 128
        factor = times * level.factor
        return Overview(rgb=rgb, known=known, factor_x=factor, factor_y=factor, mpp=factor * slide.mpp)

    def close(self) -> None:
        """Close all files."""
        self._handles.close()


def overview_level(levels: tuple[Level, ...], *, factor: float) -> tuple[int, int]:
    """Return the level that an overview is made of, and how many of its pixels, in a row, make one of the overview's.

    The coarsest whose pixels, taken whole, come within 5% of the factor; if none does, the one that comes nearest.
    """
    choices = []
    for i, level in enumerate(levels):
        times = max(1, round(factor / level.factor))
        away = abs(times * level.factor / factor - 1)
        choices.append((max(away, _NEAR), -level.factor, i, times))
    _, _, index, times = min(choices)
    return index, times


def over_white(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return premultiplied BGRA over white, as RGB."""
    rgb: NDArray[np.uint8] = cv2.cvtColor(part, cv2.COLOR_BGRA2RGB)
    alpha = part[:, :, 3]
    if alpha.min() < 255:
        rgb += (255 - alpha)[:, :, None]
    return rgb


def reduced(pixels: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    """Return the means of squares of `times` pixels; those of the last row and column are of what is there."""
    if times == 1:
        return pixels
    height, width = pixels.shape[:2]
    out = np.empty((math.ceil(height / times), math.ceil(width / times), *pixels.shape[2:]), dtype=np.uint8)
    rows, columns = height // times, width // times
    for ys, inside_y in ((slice(0, rows), slice(0, rows * times)), (slice(rows, None), slice(rows * times, None))):
        for xs, inside_x in (
            (slice(0, columns), slice(0, columns * times)),
            (slice(columns, None), slice(columns * times, None)),
        ):
            part = out[ys, xs]
            if part.size:
                part[:] = cv2.resize(
                    pixels[inside_y, inside_x], (part.shape[1], part.shape[0]), interpolation=cv2.INTER_AREA
                ).reshape(part.shape)
    return out
