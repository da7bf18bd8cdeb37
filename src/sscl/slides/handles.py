"""Slides that openslide has open: shared by threads, few at a time, and opened again after an error."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl.slides.libraries import openslide
from sscl.slides.records import Slide

_CACHE_BYTES = 64 * 2**20  # of decoded tiles, for all slides together; openslide's own would be 32 MiB for each
_MOST_SIDE = 4096  # pixels: beyond it openslide reads in parts, whose places it rounds


class _Handle:
    """An open slide, and how many threads read from it."""

    def __init__(self, path: str, cache: Any) -> None:
        self.slide = openslide().OpenSlide(path)
        self.slide.set_cache(cache)
        self.factors = self.slide.level_downsamples
        self.readers, self.dropped = 0, False


class Handles:
    """At most so many open slides of openslide, with one cache of decoded tiles.

    Args:
        most: files open at once; more only while as many threads read different slides.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Handle] = OrderedDict()
        self._cache: Any = None
        self._process = os.getpid()

    def read(self, slide: Slide, *, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Return whole pixels of a level, premultiplied BGRA uint8 (height, width, 4); x, y are pixels of that level.

        Raises:
            Exception: whatever openslide says; the slide is opened anew when next read, since openslide keeps failing
                after its first error.
        """
        found = np.zeros((height, width, 4), dtype=np.uint8)
        for top in range(0, height, _MOST_SIDE):
            for left in range(0, width, _MOST_SIDE):
                part = found[top : top + _MOST_SIDE, left : left + _MOST_SIDE]
                whole = part if part.flags.c_contiguous else np.zeros_like(part)
                with self._handle(slide.path) as handle:
                    self._fill(handle, whole, level=level, x=x + left, y=y + top)
                if whole is not part:
                    part[:] = whole
        return found

    @staticmethod
    def _fill(handle: _Handle, out: NDArray[np.uint8], *, level: int, x: int, y: int) -> None:
        lowlevel = openslide().lowlevel
        factor = handle.factors[level]
        buffer = np.ctypeslib.as_ctypes(out.reshape(-1).view(np.uint32))
        # A place is given in pixels of level 0, which openslide divides by its own factor. Where that is whole the
        # pixel is met exactly; else to half a pixel of level 0.
        lowlevel._read_region(
            handle.slide._osr, buffer, round(x * factor), round(y * factor), level, out.shape[1], out.shape[0]
        )

    @contextlib.contextmanager
    def _handle(self, path: str) -> Iterator[_Handle]:
        with self._lock:
            self._forget_parents()
            handle = self._open.get(path)
            if handle is not None:
                self._open.move_to_end(path)
                handle.readers += 1
        if handle is None:
            handle = self._opened(path)
        try:
            yield handle
        except Exception:
            with self._lock:
                handle.dropped = True
                if self._open.get(path) is handle:
                    del self._open[path]
            raise
        finally:
            with self._lock:
                handle.readers -= 1
                if handle.dropped and not handle.readers:
                    handle.slide.close()

    def _opened(self, path: str) -> _Handle:
        """Return the slide, opened by this thread or by another in the meantime."""
        if self._cache is None:
            self._cache = openslide().OpenSlideCache(_CACHE_BYTES)
        new = _Handle(path, self._cache)
        with self._lock:
            handle = self._open.setdefault(path, new)
            handle.readers += 1
            if handle is not new:
                new.slide.close()
            idle = [other for other, one in self._open.items() if not one.readers]
            for other in idle[: max(0, len(self._open) - self._most)]:
                self._open.pop(other).slide.close()
        return handle

    def _forget_parents(self) -> None:
        """Open all slides anew in a process that was forked: openslide's locks and file positions are the parent's."""
        if self._process != os.getpid():
            self._open, self._cache, self._process = OrderedDict(), None, os.getpid()

    def close(self) -> None:
        """Close what no thread reads from."""
        with self._lock:
            for path in [path for path, one in self._open.items() if not one.readers]:
                self._open.pop(path).slide.close()
