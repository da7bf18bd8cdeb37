"""Pixels out of a TIFF's encoded tiles, without openslide: read from the file by place, decoded, put together.

Where a tile is stands in the file's own directory, so that nothing but the file need be open.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.places import printable
from sscl.reading import why_unreadable
from sscl.slides.codecs import decoded
from sscl.slides.few import Few
from sscl.slides.records import EncodedTiles, Slide, SlideError

_CACHE_BYTES = 64 * 2**20  # of decoded tiles: two rows of a large slide, so that in order each is decoded once
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_LARGEST = 2**26  # bytes of an encoded tile
_LETTERS = {2: "H", 4: "I", 8: "Q"}  # of `struct`

Key = tuple[str, int, int, int]  # path and time of the file, level, tile


class EncodedFiles:
    """Reads levels of slides whose tiles are encoded as `EncodedTiles` says, from any number of threads."""

    def __init__(self, most: int) -> None:
        self._files: Few[int] = Few(most, opened=lambda path: os.open(path, _FLAGS), closed=os.close)
        self._cache = _Cache()

    @contextmanager
    def level(self, slide: Slide, level: int) -> Iterator[EncodedLevelReader]:
        """Give a level to read from, its file open."""
        with self._files.of(slide.path) as file:
            yield EncodedLevelReader(file, slide, level, self._cache)

    def close(self) -> None:
        """Close all files that nobody reads from, and forget the decoded tiles."""
        self._files.close()
        self._cache.clear()


class _Cache:
    """The tiles that were decoded last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Key, NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Key) -> NDArray[np.uint8] | None:
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
            return tile

    def keep(self, key: Key, tile: NDArray[np.uint8]) -> None:
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = tile
                self._bytes += tile.nbytes
            while self._bytes > _CACHE_BYTES:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        with self._lock:
            self._tiles.clear()
            self._bytes = 0


class EncodedLevelReader:
    """A level of a slide whose file is open."""

    def __init__(self, file: int, slide: Slide, level: int, cache: _Cache) -> None:
        how = slide.levels[level].encoded
        assert how is not None
        self._file, self._cache, self._how = file, cache, how
        self._width, self._height = slide.levels[level].width, slide.levels[level].height
        self._columns = -(-self._width // how.width)
        self._key = (slide.path, slide.mtime_ns, level)

    def read(self, x: int, y: int, out: NDArray[np.uint8]) -> None:
        """Write whole pixels into `out`, RGB uint8 (height, width, 3); white beyond the border.

        Args:
            x, y: of the top-left corner, pixels of the level.

        Raises:
            SlideError: the file cannot be read.
            Exception: a tile is damaged.
        """
        how, (height, width) = self._how, out.shape[:2]
        right, bottom = min(x + width, self._width), min(y + height, self._height)
        first_x, first_y = max(x, 0), max(y, 0)
        if first_x > x or first_y > y or right < x + width or bottom < y + height:
            out[:] = 255
        if right <= first_x or bottom <= first_y:
            return
        columns = range(first_x // how.width, (right - 1) // how.width + 1)
        for row in range(first_y // how.height, (bottom - 1) // how.height + 1):
            top = row * how.height
            from_y, to_y = max(top, first_y), min(top + how.height, bottom)
            try:
                tiles = self._tiles(row * self._columns + columns.start, len(columns))
            except OSError as error:
                if error.errno is None:  # of a decoder
                    raise
                path = Path(self._key[0])
                raise SlideError(f"{printable(str(path))}: {why_unreadable(path, error)}") from error
            for column, tile in zip(columns, tiles, strict=True):
                left = column * how.width
                from_x, to_x = max(left, first_x), min(left + how.width, right)
                part = out[from_y - y : to_y - y, from_x - x : to_x - x]
                cv2.cvtColor(tile[from_y - top : to_y - top, from_x - left : to_x - left], cv2.COLOR_RGBA2RGB, dst=part)

    def _tiles(self, first: int, number: int) -> list[NDArray[np.uint8]]:
        """Return decoded tiles that follow each other."""
        keys = [(*self._key, i) for i in range(first, first + number)]
        known = [self._cache.get(key) for key in keys]
        found = [tile for tile in known if tile is not None]
        if len(found) == number:
            return found
        found = []
        for key, place, tile in zip(keys, _places(self._file, self._how, first, number), known, strict=True):
            if tile is None:
                tile = decoded(_read(self._file, *place), self._how)
                self._cache.keep(key, tile)
            found.append(tile)
        return found


def read_tile(file: int, how: EncodedTiles, number: int) -> NDArray[np.uint8]:
    """Return the pixels of a tile by its number, from an open file, as `codecs.decoded` does.

    Raises:
        Exception: whatever the decoder says.
    """
    return decoded(_read(file, *_places(file, how, number, 1)[0]), how)


def _places(file: int, how: EncodedTiles, first: int, number: int) -> list[tuple[int, int]]:
    """Return where tiles begin in the file and how many bytes each has, as its directory says."""
    order = "<" if how.order == "little" else ">"
    tables = (
        struct.unpack(f"{order}{number}{_LETTERS[step]}", _read(file, at + first * step, number * step))
        for at, step in ((how.offsets_at, how.offset_bytes), (how.sizes_at, how.size_bytes))
    )
    return list(zip(*tables, strict=True))


def _read(file: int, at: int, size: int) -> bytes:
    if not 0 < size <= _LARGEST:
        raise ValueError(f"has {size} bytes")
    data = os.pread(file, size, at)
    if len(data) != size:
        raise ValueError("the file ends before it; it is truncated")
    return data
