"""Pixels of slides: finished tiles, and a slide in small.

B tiles, S = their side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.places import printable
from sscl.slides.encoded import EncodedFiles
from sscl.slides.handles import Handles
from sscl.slides.overview import overview
from sscl.slides.records import Overview, Scaling, Slide, SlideError
from sscl.words import short

_OPAQUE = 0xFF000000  # of four bytes as openslide writes them


class DamagedTile(SlideError):
    """A place of a slide cannot be decoded.

    Attributes:
        slide: its path. x, y: of the tile, pixels of level 0. why: what the decoder says.
    """

    def __init__(self, slide: Slide, x: int, y: int, why: str) -> None:
        super().__init__(f"{printable(slide.path)}: cannot be decoded at x={x}, y={y}: {why}; copy the slide again")
        self.slide, self.x, self.y, self.why = slide.path, x, y, why


class Readers:
    """Reads tiles and overviews of any number of slides, from any number of threads.

    Where a slide's tiles are JPEG they are read from the file and decoded here; all else goes through openslide. Both
    give the same pixels, of the same level. All decoders release the interpreter's lock. A process that is forked opens
    its files anew.

    Args:
        most: files that are open at once, of each kind.
    """

    def __init__(self, most: int = 64) -> None:
        self._handles = Handles(most)
        self._files = EncodedFiles(most)

    def tiles(self, slide: Slide, scaling: Scaling, xy: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Write tiles of a slide into `out`, uint8 (B, S, S, 3), RGB; where nothing was scanned they are white.

        They are read in the order of y, then x, whatever that of `xy` is: neighbours share what is decoded.

        Args:
            xy: (B, 2), top-left corners, pixels of level 0.

        Raises:
            DamagedTile: a tile cannot be decoded; those of other places can be read right afterwards.
            SlideError: the slide cannot be opened.
        """
        level = scaling.level
        of, side = slide.levels[level], scaling.side
        square = np.empty((side, side, 3), dtype=np.uint8) if scaling.resampled else None
        with self._level(slide, level, side) as read:
            for i in np.lexsort((xy[:, 0], xy[:, 1])).tolist():
                x, y = int(xy[i, 0]), int(xy[i, 1])
                try:
                    left = _place(x, side, factor=of.factor, level=of.width, whole=slide.width)
                    top = _place(y, side, factor=of.factor, level=of.height, whole=slide.height)
                    read(left, top, out[i] if square is None else square)
                except (SlideError, MemoryError):
                    raise
                except Exception as error:  # of openslide and the decoders below it: an error of this file
                    raise DamagedTile(slide, x, y, short(str(error), most=200)) from None
                if square is not None:
                    cv2.resize(square, out.shape[1:3], dst=out[i], interpolation=cv2.INTER_AREA)

    @contextmanager
    def _level(self, slide: Slide, level: int, side: int) -> Iterator[Callable[[int, int, NDArray[np.uint8]], object]]:
        """Give what reads squares of a level: from x and y of the corner, into an array."""
        if slide.levels[level].encoded is not None:
            with self._files.level(slide, level) as reader:
                yield reader.read
        else:
            part = np.empty((side, side, 4), dtype=np.uint8)  # kept: fresh memory is slow
            yield lambda x, y, out: self._through_openslide(slide, level, x, y, part, out)

    def overview(self, slide: Slide, mpp: float) -> Overview:
        """Return a whole slide in small (see `overview.overview`)."""
        return overview(slide, mpp, read=self.read)

    def close(self) -> None:
        """Close all files that nobody reads from."""
        self._handles.close()
        self._files.close()

    def read(self, slide: Slide, *, level: int, x: int, y: int, out: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """Write whole pixels of a level into `out`, RGB uint8 (height, width, 3), white where nothing was scanned.

        Args:
            x, y: of the top-left corner, pixels of that level.

        Returns:
            how opaque each pixel was, uint8 (height, width); None: all were, or nothing says so.

        Raises:
            Exception: whatever the decoders say.
        """
        if slide.levels[level].encoded is None:
            part = np.empty((*out.shape[:2], 4), dtype=np.uint8)
            return self._through_openslide(slide, level, x, y, part, out)
        with self._files.level(slide, level) as reader:
            reader.read(x, y, out)
        return None

    def _through_openslide(
        self, slide: Slide, level: int, x: int, y: int, part: NDArray[np.uint8], out: NDArray[np.uint8]
    ) -> NDArray[np.uint8] | None:
        self._handles.read(slide.path, level=level, x=x, y=y, out=part)
        cv2.cvtColor(part, cv2.COLOR_BGRA2RGB, dst=out)
        if part.view(np.uint32).min() >= _OPAQUE:
            return None
        opaque = part[:, :, 3:]
        np.minimum(out, opaque, out=out)  # its colours are premultiplied, unless a file calls what is no alpha so
        out += 255 - opaque
        return part[:, :, 3]


def _place(at: int, side: int, *, factor: float, level: int, whole: int) -> int:
    """Return the pixel of a level, along one axis, at which a square begins that begins at pixel `at` of level 0.

    A level's size may have been rounded down. A square that ends with level 0, to a pixel of the level, ends with it.
    """
    place = math.floor(at / factor + 0.5)
    inside = at + side * factor <= whole + factor / 2 + 0.5
    return min(place, level - side) if inside and side <= level else place
