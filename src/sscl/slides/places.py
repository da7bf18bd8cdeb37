"""Where the tiles of slides lie, and their ids: computed, as a cohort has 10⁸ of them.

N tiles in all, S slides. A tile's id is NAME/x_y: the slide's name and the tile's corner, pixels of level 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = TypeVar("Kind", bound=np.generic)

_AT_ONCE = 2**16  # ids that are made at a time


@dataclass(frozen=True, eq=False)
class Places:
    """Where the tiles of some slides lie, slide by slide.

    Attributes:
        names: of the slides, (S,), all different.
        starts: first tile of each slide, and N, int64 (S + 1,).
        xy: int32 (N, 2), the corner of each tile, pixels of level 0; all different in a slide.
        quickhashes: of the slides, (S,): equal where one is a copy of another.
    """

    names: tuple[str, ...]
    starts: NDArray[np.int64]
    xy: NDArray[np.int32]
    quickhashes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        tiles: Sequence[int],
        grids: Iterable[NDArray[np.int32]],
        *,
        quickhashes: Sequence[str] = (),
    ) -> Places:
        """Return the places of the tiles of some slides.

        Args:
            names: of the slides. tiles: how many each has.
            grids: int32 (n, 2) or more columns, x and y first. They are copied one by one, as each is a mapped file
                that stays open while it lives.

        Raises:
            ValueError: a place comes twice.
        """
        starts = np.cumsum([0, *tiles], dtype=np.int64)
        xy = np.empty((int(starts[-1]), 2), dtype=np.int32)
        for name, start, end, grid in zip(names, starts[:-1], starts[1:], grids, strict=True):
            xy[start:end] = grid[:, :2]
            corner = xy[start:end].astype(np.int64)
            if len(np.unique(corner[:, 1] << 32 | corner[:, 0])) != len(corner):
                raise ValueError(f"{name}: has two tiles at one place; index it again")
        return cls(tuple(names), starts, xy, tuple(quickhashes))

    def __len__(self) -> int:
        return len(self.xy)

    def slide_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slide of the tiles at `rows`, (B,), as its place in `names`."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def of_slides(self, values: NDArray[Kind]) -> NDArray[Kind]:
        """Return for each tile the value of its slide, (S,) -> (N,)."""
        return np.repeat(values, np.diff(self.starts))

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the ids of the tiles at `rows`."""
        slides, corners = self.slide_of(rows).tolist(), self.xy[rows].tolist()
        return [f"{self.names[slide]}/{x}_{y}" for slide, (x, y) in zip(slides, corners, strict=True)]


class ComputedIds(Sequence[str]):
    """Ids that are made when they are asked for, by `at`."""

    def at(self, row: int) -> str:
        """Return the id at a row, from 0 on."""
        raise NotImplementedError

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[str, ...]: ...
    def __getitem__(self, key: int | slice) -> str | tuple[str, ...]:
        rows = range(len(self))[key]
        return self.at(rows) if isinstance(rows, int) else tuple(map(self.at, rows))


class TileIds(ComputedIds):
    """The ids of the tiles at `rows`, int64 (N,), of some places."""

    def __init__(self, places: Places, rows: NDArray[np.int64]) -> None:
        self.places, self.rows = places, rows

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, row: int) -> str:
        """Return the id at a row."""
        return self.places.ids(self.rows[row : row + 1])[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self.places.ids(self.rows[start : start + _AT_ONCE])

    def take(self, rows: ArrayLike) -> TileIds:
        """Return the ids at `rows` (ints), in that order."""
        return TileIds(self.places, self.rows[np.asarray(rows, dtype=np.int64)])

    def parts(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int32]]:
        """Return what the ids are made of: slides that have tiles, (S,), which of them each tile is of, its corner."""
        used, numbers = np.unique(self.slides, return_inverse=True)
        return [self.places.names[slide] for slide in used.tolist()], numbers, self.places.xy[self.rows]

    @property
    def slides(self) -> NDArray[np.int64]:
        """The slide of each tile, (N,), as its place in `places.names`."""
        return self.places.slide_of(self.rows)
