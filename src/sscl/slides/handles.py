"""Pixels of slides through openslide: any format, whole pixels of a level where its factor allows it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl.slides.dicom import for_openslide
from sscl.slides.few import Few
from sscl.slides.libraries import openslide
from sscl.slides.records import SlideError

_CACHE_BYTES = 128 * 2**20  # of decoded tiles, for all slides together; openslide's own would be 32 MiB for each
_MOST_SIDE = 4096  # pixels: beyond it openslide reads in parts, whose places it rounds


@dataclass(frozen=True)
class _Handle:
    """A slide that openslide has open, and the factors that it takes its levels to have."""

    slide: Any
    factors: tuple[float, ...]


class Handles:
    """At most so many slides that openslide has open, with one cache of decoded tiles."""

    def __init__(self, most: int) -> None:
        self._cache: Any = None
        self._lock = threading.Lock()
        self._open: Few[_Handle] = Few(most, opened=self._opened, closed=lambda handle: handle.slide.close())

    def _opened(self, path: str) -> _Handle:
        library = openslide()
        slide = library.OpenSlide(for_openslide(path))
        with self._lock:
            if self._cache is None:
                self._cache = library.OpenSlideCache(_CACHE_BYTES)
            slide.set_cache(self._cache)
        return _Handle(slide, slide.level_downsamples)

    def read(self, path: str, *, level: int, x: int, y: int, out: NDArray[np.uint8]) -> None:
        """Write whole pixels of a level into `out`, premultiplied BGRA uint8 (height, width, 4).

        Args:
            path: of the slide. x, y: of the top-left corner, pixels of that level.

        Raises:
            Exception: whatever openslide says.
        """
        height, width = out.shape[:2]
        for top in range(0, height, _MOST_SIDE):
            for left in range(0, width, _MOST_SIDE):
                part = out[top : top + _MOST_SIDE, left : left + _MOST_SIDE]
                whole = part if part.flags.c_contiguous else np.empty(part.shape, dtype=np.uint8)
                self._read(path, whole, level=level, x=x + left, y=y + top)
                if whole is not part:
                    part[:] = whole

    def _read(self, path: str, out: NDArray[np.uint8], *, level: int, x: int, y: int) -> None:
        """Fill a contiguous part of at most 4,096 pixels a side.

        After its first error a handle of openslide fails for good, in all threads that share it: so what fails is read
        once more, through one that no other thread uses.
        """
        try:
            with self._open.of(path) as handle:
                _fill(handle, out, level=level, x=x, y=y)
        except SlideError:
            raise
        except Exception:
            with self._open.alone(path) as handle:
                _fill(handle, out, level=level, x=x, y=y)

    def close(self) -> None:
        """Close what no thread reads from."""
        self._open.close()


def _fill(handle: _Handle, out: NDArray[np.uint8], *, level: int, x: int, y: int) -> None:
    # A place is given in pixels of level 0, which openslide divides by its own factor. Where that is whole, the pixel
    # is met exactly; else to half a pixel of level 0.
    factor = handle.factors[level]
    buffer = np.ctypeslib.as_ctypes(out.reshape(-1).view(np.uint32))
    openslide().lowlevel._read_region(
        handle.slide._osr, buffer, round(x * factor), round(y * factor), level, out.shape[1], out.shape[0]
    )
