"""The pixels of a cohort's tiles, read from the slides when they are asked for.

N tiles of S slides, B tiles at a time, H = W = size_px. What is read depends on the row alone: not on the other rows of
a batch, on threads, or on what was read before.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from sscl import ranks
from sscl.cores import cpu_cores
from sscl.places import printable
from sscl.slides.pixels import DamagedTile, Readers
from sscl.slides.places import Places
from sscl.slides.records import Scaling, Slide, SlideError
from sscl.words import count, listed

MOST_DAMAGED = 0.01  # of a slide's tiles
_MOST_THREADS = 16
_PIECES = 4  # of a batch for each thread: slides differ in how fast they are read
_HASHED_AT_ONCE = 2**20
_NAMED = 5  # slides with damaged tiles that are named


class SlidePixels:
    """The tiles of slides as `data.rows.Rows` takes them: uint8 (N, H, W, 3), read by threads.

    A damaged tile is an error, or with `replace` the slide's next tile that can be read stands for it: the same one
    whoever reads it, and from whichever batch.

    Args:
        slides: in the order of `places.names`, with how their tiles are read.
        readers: the open files. threads: None = a thread a core.
        replace: take the next tile for a damaged one, up to `MOST_DAMAGED` of a slide, or one tile.
    """

    def __init__(
        self,
        slides: Sequence[tuple[Slide, Scaling]],
        places: Places,
        *,
        readers: Readers | None = None,
        threads: int | None = None,
        replace: bool = False,
    ) -> None:
        assert len(slides) == len(places.names) > 0
        self.slides, self.places, self.replace = tuple(slides), places, replace
        self.size_px = slides[0][1].size_px
        self._readers = Readers() if readers is None else readers
        cores = max(1, cpu_cores() // ranks.on_this_machine())
        self._threads = min(cores, _MOST_THREADS) if threads is None else threads
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="slides") if self._threads > 1 else None
        self._lock = threading.Lock()
        self.damaged: set[int] = set()  # rows that were found so

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, 3)."""
        return (len(self.places), self.size_px, self.size_px, 3)

    def read(self, rows: NDArray[np.int64], out: NDArray[np.uint8], *, places: NDArray[np.int64]) -> None:
        """Write the tile at `rows[i]` to `out[places[i]]`, slide by slide and from top to bottom.

        Raises:
            SlideError: a tile is damaged, or too many of a slide are; a slide is gone.
        """
        x, y = self.places.xy[rows].T
        order = np.lexsort((x, y, self.places.slide_of(rows)))
        rows, places = rows[order], places[order]
        if self._pool is None:
            self._read_piece(rows, out, places)
            return
        pieces = np.array_split(np.arange(len(rows)), min(len(rows), _PIECES * self._threads))
        running = [self._pool.submit(self._read_piece, rows[part], out, places[part]) for part in pieces]
        for piece in running:
            piece.result()

    def digests(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return 64 bits of what each tile is made of, (B,): its slide's quickhash, how it is read, and its place.

        Equal where a slide is the same, wherever it lies and whatever it is called. No pixel is read.
        """
        keys = np.array([_key(slide, scaling) for slide, scaling in self.slides], dtype=np.uint64)
        found = np.empty(len(rows), dtype=np.uint64)
        for start in range(0, len(rows), _HASHED_AT_ONCE):
            some = rows[start : start + _HASHED_AT_ONCE]
            corner = self.places.xy[some].astype(np.uint32).astype(np.uint64)
            place = _mixed(corner[:, 0] << np.uint64(32) | corner[:, 1])
            found[start : start + len(some)] = _mixed(keys[self.places.slide_of(some)] ^ place)
        return found

    def notes(self) -> list[str]:
        """Return what a reader must know of the tiles that were read, a sentence each."""
        found = np.array(sorted(self.damaged), dtype=np.int64)
        if not len(found):
            return []
        numbers, often = np.unique(self.places.slide_of(found), return_counts=True)
        shown = [f"{self.places.names[i]}: {bad:,}" for i, bad in zip(numbers[:_NAMED], often, strict=False)]
        more = [f"{len(numbers) - _NAMED:,} more"] if len(numbers) > _NAMED else []
        return [
            f"{count(len(found), 'damaged tile')} of {count(len(numbers), 'slide')} ({listed([*shown, *more])}), the "
            f"first is {self.places.ids(found[:1])[0]}: the slide's next tile was taken instead"
        ]

    def _read_piece(self, rows: NDArray[np.int64], out: NDArray[np.uint8], places: NDArray[np.int64]) -> None:
        """Write tiles that are sorted by slide."""
        numbers = self.places.slide_of(rows)
        for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(numbers)) + 1):
            if not len(part):
                continue
            tiles = np.empty((len(part), self.size_px, self.size_px, 3), dtype=np.uint8)
            try:
                self._read_slide(rows[part], tiles)
            except DamagedTile:
                if not self.replace:
                    raise
                for i, row in enumerate(rows[part].tolist()):
                    self._read_or_next(row, tiles[i : i + 1])
            out[places[part]] = tiles

    def _read_slide(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        slide, scaling = self.slides[int(self.places.slide_of(rows[:1])[0])]
        self._readers.tiles(slide, scaling, self.places.xy[rows].astype(np.int64), out)

    def _read_or_next(self, row: int, out: NDArray[np.uint8]) -> None:
        """Write a tile, or the first after it in its slide that can be read; after the last comes the first."""
        number = int(self.places.slide_of(np.array([row]))[0])
        first, end = self.places.starts[number : number + 2].tolist()
        for tried in (*range(row, end), *range(first, row)):
            try:
                self._read_slide(np.array([tried]), out)
                return
            except DamagedTile as error:
                self.count_damaged([tried], why=error.why)
        raise AssertionError("a slide of damaged tiles was not refused")

    def count_damaged(self, rows: Iterable[int], *, why: str = "") -> None:
        """Count tiles as damaged, also those that another process found so.

        Raises:
            SlideError: they are too many of a slide.
        """
        with self._lock:
            self.damaged.update(rows)
            found = np.array(sorted(self.damaged), dtype=np.int64)
        numbers, often = np.unique(self.places.slide_of(found), return_counts=True)
        tiles = np.diff(self.places.starts)[numbers]
        for number, bad, of in zip(numbers.tolist(), often.tolist(), tiles.tolist(), strict=True):
            if bad > max(1, MOST_DAMAGED * of):
                x, y = self.places.xy[found[self.places.slide_of(found) == number][-1]]
                raise SlideError(
                    f"{printable(self.slides[number][0].path)}: {bad:,} of its {of:,} tiles are damaged, more than "
                    f"{MOST_DAMAGED:.0%} (such as x={x}, y={y}{why and f': {why}'}); copy the slide again, or move it "
                    "away, and run the same sscl slides tile again"
                )


def _key(slide: Slide, scaling: Scaling) -> int:
    """Return 64 bits that say which slide it is and how its tiles are read."""
    facts = repr((slide.quickhash, slide.size, slide.reader, scaling))
    return int.from_bytes(hashlib.sha256(facts.encode()).digest()[:8], "little")


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits that each depend on all of a value's: the finaliser of splitmix64 (Steele et al., OOPSLA 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return found
