"""Pixels out of a TIFF's encoded tiles, without openslide: read from the file by place, decoded, put together.

Where a tile is stands in the file's own directory, so that nothing but the file need be open. S is a square's side.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sscl.slides.codecs import decoded
from sscl.slides.few import Few
from sscl.slides.records import EncodedTiles, Slide

_CACHE_BYTES = 64 * 2**20  # of decoded tiles: two rows of a large slide, so that in order each is decoded once
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_LARGEST = 2**26  # bytes of an encoded tile

Key = tuple[str, int, int, int]  # path and time of the file, level, tile


class EncodedFiles:
    """Reads levels of slides whose tiles are encoded as `EncodedTiles` says, from any number of threads.

    Args:
        most: files open at once.
    """

    def __init__(self, most: int) -> None:
        self._files: Few[int] = Few(most, opened=lambda path: os.open(path, _FLAGS), closed=os.close)
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Key, NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0

    def read(self, slide: Slide, *, level: int, x: int, y: int, out: NDArray[np.uint8]) -> None:
        """Write whole pixels of a level into `out`, RGB uint8 (height, width, 3); white beyond the border.

        Args:
            x, y: of the top-left corner, pixels of that level.

        Raises:
            Exception: a tile is damaged, or the file cannot be read.
        """
        of, height, width = slide.levels[level], *out.shape[:2]
        how = of.encoded
        assert how is not None
        right, bottom = min(x + width, of.width), min(y + height, of.height)
        if x < 0 or y < 0 or right < x + width or bottom < y + height:
            out[:] = 255
        if right <= max(x, 0) or bottom <= max(y, 0):
            return
        columns = range(max(x, 0) // how.width, (right - 1) // how.width + 1)
        for row in range(max(y, 0) // how.height, (bottom - 1) // how.height + 1):
            top = row * how.height
            into_y = slice(max(top, y, 0) - y, min(top + how.height, bottom) - y)
            from_y = slice(into_y.start + y - top, into_y.stop + y - top)
            for column, tile in zip(columns, self._row(slide, level, row, columns), strict=True):
                left = column * how.width
                into_x = slice(max(left, x, 0) - x, min(left + how.width, right) - x)
                out[into_y, into_x] = tile[from_y, into_x.start + x - left : into_x.stop + x - left]

    def _row(self, slide: Slide, level: int, row: int, columns: range) -> Iterator[NDArray[np.uint8]]:
        """Yield the decoded tiles of a row."""
        of = slide.levels[level]
        assert of.encoded is not None
        first = row * -(-of.width // of.encoded.width)
        keys = [(slide.path, slide.mtime_ns, level, first + column) for column in columns]
        with self._lock:
            known = [self._tiles.get(key) for key in keys]
            for key, tile in zip(keys, known, strict=True):
                if tile is not None:
                    self._tiles.move_to_end(key)
        if all(tile is not None for tile in known):
            yield from (tile for tile in known if tile is not None)
            return
        with self._files.of(slide.path) as file:
            numbers = range(keys[0][3], keys[-1][3] + 1)
            for key, tile, place in zip(keys, known, _places(file, of.encoded, numbers), strict=True):
                yield tile if tile is not None else self._keep(key, decoded(_read(file, *place), of.encoded))

    def _keep(self, key: Key, tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = tile
                self._bytes += tile.nbytes
            while self._bytes > _CACHE_BYTES:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes
        return tile

    def close(self) -> None:
        """Close all files that nobody reads from, and forget the decoded tiles."""
        self._files.close()
        with self._lock:
            self._tiles.clear()
            self._bytes = 0


def read_tile(file: int, how: EncodedTiles, number: int) -> NDArray[np.uint8]:
    """Return the pixels of a tile by its number, from an open file.

    Raises:
        Exception: whatever the decoder says.
    """
    return decoded(_read(file, *next(_places(file, how, range(number, number + 1)))), how)


def _places(file: int, how: EncodedTiles, numbers: range) -> Iterator[tuple[int, int]]:
    """Return where tiles begin in the file and how many bytes each has, as its directory says."""

    def table(at: int, step: int) -> list[int]:
        data = _read(file, at + numbers.start * step, len(numbers) * step)
        return [int.from_bytes(data[i : i + step], how.order) for i in range(0, len(data), step)]

    return zip(table(how.offsets_at, how.offset_bytes), table(how.sizes_at, how.size_bytes), strict=True)


def _read(file: int, at: int, size: int) -> bytes:
    if not 0 < size <= _LARGEST:
        raise ValueError(f"has {size} bytes")
    data = os.pread(file, size, at)
    if len(data) != size:
        raise ValueError("the file ends before it; it is truncated")
    return data
