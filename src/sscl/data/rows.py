"""Rows of tile arrays that are read when needed: the pixels of sets larger than memory.

N rows in all, B rows at a time, H = W pixels.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sscl.data.digests import Digests, all_digests, read_footer


class Pixels(Protocol):
    """Tiles that are no array, uint8 (n, H, W, 3): they are made when they are read, as those of slides."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, H, W, 3)."""

    @property
    def damaged(self) -> Collection[int]:
        """The rows that were found damaged so far; others stand for them."""

    def count_damaged(self, rows: Sequence[int]) -> None:
        """Count rows as damaged that another process, or an earlier run, found so; raise where they are too many."""

    def read(self, rows: NDArray[np.int64], out: NDArray[np.uint8], *, places: NDArray[np.int64]) -> None:
        """Write row `rows[i]` to `out[places[i]]`."""

    def digests(self, rows: NDArray[np.int64]) -> Digests:
        """Return the digests of the tiles at `rows`: equal where the pixels come from the same place."""

    def notes(self) -> list[str]:
        """Return what a reader must know of the tiles that were read, a sentence each."""


class Rows:
    """Rows of one or several uint8 (n, H, W, 3) arrays or `Pixels`, concatenated without copying.

    It has the array features that the pixels of `Tiles` need: shape, dtype, ndim, nbytes, len, np.asarray, and
    `rows[row]`, `rows[slice]`, `rows[ints]`, each a new array of those pixels.

    Rows of a read-only memmap are read from its file, not through the mapping: pages of a mapping count as memory of
    the process once they were touched, and a page fault reads less than a tile, or far more.
    `scripts/benchmarks/data.py` measures both.

    Args:
        parts: arrays, `Rows` or `Pixels` of tiles of one size; at least one.

    Raises:
        ValueError: a part has another shape or dtype, or the sizes differ.
    """

    def __init__(self, parts: Sequence[Images | Pixels]) -> None:
        for part in parts:
            if isinstance(part, np.ndarray) and (part.ndim != 4 or part.shape[3] != 3 or part.dtype != np.uint8):
                raise ValueError(f"images: expected uint8 (N, H, W, 3), got {part.dtype} {part.shape}")
        sizes = list(dict.fromkeys(part.shape[1:3] for part in parts))
        if len(sizes) != 1:
            raise ValueError(f"images: expected tiles of one size, got (H, W) of {sizes}")
        self._arrays: list[_Array | Pixels] = []
        orders = [np.empty(0, dtype=np.int64)]
        for part in parts:
            first = sum(array.shape[0] for array in self._arrays)
            if isinstance(part, Rows):
                self._arrays += part._arrays
                orders.append(first + part._order)
            else:
                self._arrays.append(_Array(part) if isinstance(part, np.ndarray) else part)
                orders.append(np.arange(first, first + part.shape[0]))
        self._starts = np.cumsum([0] + [array.shape[0] for array in self._arrays])
        self._order: NDArray[np.int64] = np.concatenate(orders)  # (N,), rows of all arrays
        self._tile: tuple[int, int, int] = (*sizes[0], 3)

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, 3)."""
        return (len(self._order), *self._tile)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels, in memory or on disk."""
        return len(self._order) * int(np.prod(self._tile))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        chosen = np.asarray(self._order[key])
        out = np.empty((chosen.size, *self._tile), dtype=np.uint8)
        self._read(chosen.ravel(), out)
        return out.reshape(*chosen.shape, *self._tile)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("Rows cannot become an array without a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def select(self, rows: ArrayLike) -> Rows:
        """Return the rows at `rows` (ints), in that order, as rows of the same arrays."""
        chosen = object.__new__(Rows)
        chosen.__dict__.update(self.__dict__)
        chosen._order = self._order[np.asarray(rows, dtype=np.int64)]
        return chosen

    def take(self, rows: NDArray[np.int64], *, out: NDArray[np.uint8]) -> None:
        """Write the pixels at `rows`, int64 (B,), into `out`, uint8 (B, H, W, 3), C-contiguous.

        Raises:
            IndexError: a row is out of range.
            OSError: a file can no longer be read.
        """
        self._read(self._order[rows], out)

    @property
    def made(self) -> bool:
        """Whether pixels of some are made when they are read, so that their digests tell them, and not their pixels."""
        return not all(isinstance(array, _Array) for array in self._arrays)

    def notes(self) -> list[str]:
        """Return what a reader must know of the tiles that were read so far, a sentence each."""
        return [note for array in self._arrays if not isinstance(array, _Array) for note in array.notes()]

    def damaged(self) -> tuple[int, ...]:
        """Return which of these rows were found damaged so far."""
        starts = zip(self._starts[:-1].tolist(), self._arrays, strict=True)
        found = [first + row for first, part in starts if not isinstance(part, _Array) for row in part.damaged]
        return tuple(np.flatnonzero(np.isin(self._order, found)).tolist()) if found else ()

    def count_damaged(self, rows: Sequence[int]) -> None:
        """Count rows as damaged that another process, or an earlier run, found so.

        Raises:
            ValueError: they are too many of a slide.
        """
        for part, _, found in self._by_array(self._order[np.array(rows, dtype=np.int64)]):
            assert not isinstance(part, _Array)
            part.count_damaged(found.tolist())

    def digests(self) -> Digests:
        """Return the digest of each tile, (N,), see `digests.digests_of`: equal for equal pixels, wherever they are.

        Of a file of the cache they are those that were written with it; other pixels are read. Those of `Pixels` say
        where they come from.
        """
        found = np.empty(len(self), dtype=np.uint64)
        for array, places, rows in self._by_array(self._order):
            found[places] = array.digests(rows)
        return found

    def _read(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        for array, places, found in self._by_array(rows):
            array.read(found, out, places=places)

    def _by_array(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[_Array | Pixels, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield each array that has some of the rows of all arrays, where these are among `rows`, and its own rows."""
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(part_of):
            places = np.flatnonzero(part_of == part)
            yield self._arrays[part], places, rows[places] - self._starts[part]


Images: TypeAlias = NDArray[np.uint8] | Rows


def new_array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Return a new .npy file of uint8, mapped, to be written.

    Its room is reserved: else a full disk ends the process that writes with a signal, in place of an OSError here.
    """
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


class _Array:
    """An array of tiles, and its file if it is a read-only memmap."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.pixels = array.view(np.ndarray)
        self._file: int | None = None
        if not isinstance(array, np.memmap) or not array.flags.c_contiguous or not hasattr(os, "preadv"):
            return
        whole = array
        while isinstance(whole.base, np.memmap):  # a slice has its whole's offset
            whole = whole.base
        if whole.mode == "r" and whole.filename is not None:
            try:
                self._file = os.open(whole.filename, os.O_RDONLY)
            except FileNotFoundError:  # deleted since it was mapped; the mapping has its pixels still
                return
            weakref.finalize(self, os.close, self._file)
            self._name = whole.filename
            self._whole = whole
            self._offset = whole.offset + array.ctypes.data - whole.ctypes.data

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, H, W, 3)."""
        return tuple(self.pixels.shape)

    def digests(self, rows: NDArray[np.int64]) -> Digests:
        """Return the digests of the tiles at `rows`."""
        tile_bytes = int(np.prod(self.pixels.shape[1:]))
        if self._file is not None and self._whole.ndim == 4 and self._whole.shape[1:] == self.pixels.shape[1:]:
            end = self._whole.offset + self._whole.nbytes
            footer = read_footer(self._file, start=end, rows=len(self._whole))
            if footer is not None:
                return footer.digests[rows + (self._offset - self._whole.offset) // tile_bytes]

        def block(part: slice) -> NDArray[np.uint8]:
            chosen = rows[part]
            out = np.empty((len(chosen), *self.pixels.shape[1:]), dtype=np.uint8)
            self.read(chosen, out, places=np.arange(len(chosen)))
            return out

        return all_digests(block, rows=len(rows), row_bytes=tile_bytes)

    def read(self, rows: NDArray[np.int64], out: NDArray[np.uint8], *, places: NDArray[np.int64]) -> None:
        """Write row `rows[i]` to `out[places[i]]`."""
        if self._file is None:
            if len(places) == len(out):  # then they are 0, 1, ...; mode="raise" fills a buffer first
                np.take(self.pixels, rows, axis=0, out=out, mode="clip")
            else:
                out[places] = self.pixels[rows]
            return
        size = int(np.prod(out.shape[1:]))
        starts = (self._offset + rows * size).tolist()
        if hasattr(os, "posix_fadvise"):  # so that the disk gets all requests at once
            for start in starts:
                os.posix_fadvise(self._file, start, size, os.POSIX_FADV_WILLNEED)
        target = out.data.cast("B")
        for start, place in zip(starts, (places * size).tolist(), strict=True):
            try:
                read = os.preadv(self._file, [target[place : place + size]], start)
            except OSError as error:  # of a disk or a server that fails; the system does not know the name
                error.filename = str(self._name)
                raise
            if read != size:
                raise OSError(f"{self._name}: was truncated while in use; start again")
