"""Slides or patients of many tiles: each name once, and its number for every tile.

N tiles, G groups. An array of names takes 4 bytes a letter and tile; 10⁶ tiles with names of 40 letters take 160 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray


class Grouped(Sequence[str]):
    """The group of each tile, as an array of names would say it; indexed by an array it is again of this kind.

    Args:
        names: of the groups, str (G,), all different; some may have no tile.
        numbers: int32 (N,), the place of each tile's group in `names`.
    """

    ndim = 1

    def __init__(self, names: NDArray[np.str_], numbers: NDArray[np.int32]) -> None:
        self.names, self.numbers = names, numbers

    @property
    def shape(self) -> tuple[int]:
        """(N,)."""
        return (len(self.numbers),)

    @property
    def dtype(self) -> np.dtype[np.str_]:
        """Of the names."""
        return self.names.dtype

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> str: ...
    @overload
    def __getitem__(self, key: Any) -> Grouped: ...
    def __getitem__(self, key: Any) -> str | Grouped:
        chosen = self.numbers[key]
        return Grouped(self.names, chosen) if isinstance(chosen, np.ndarray) else str(self.names[chosen])

    def __iter__(self) -> Iterator[str]:
        names = self.names.tolist()
        return (names[number] for number in self.numbers.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("groups cannot become an array of names without a copy")
        return self.names[self.numbers].astype(dtype or self.dtype, copy=False)

    def tolist(self) -> list[str]:
        """Return the name of each tile's group; strings of one group are one object."""
        return list(self)


Groups: TypeAlias = NDArray[np.str_] | Grouped


def numbered(groups: Groups) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Return the groups that have tiles, sorted, (G,), and the place of each tile's among them, (N,)."""
    if not isinstance(groups, Grouped):
        names, numbers = np.unique(groups, return_inverse=True)
        return names, numbers.astype(np.int64, copy=False)
    used = np.unique(groups.numbers)
    order = np.argsort(groups.names[used])
    place = np.empty(len(groups.names), dtype=np.int64)
    place[used[order]] = np.arange(len(used))
    return groups.names[used[order]], place[groups.numbers]
