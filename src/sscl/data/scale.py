"""At which scale tiles show tissue: µm per pixel at the side that they have here, and the sides of their files."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sscl.config import DataConfig
from sscl.data.images import size_of
from sscl.data.load import tile_file
from sscl.data.pathmnist import read_contents
from sscl.data.polyp import TILE_UM
from sscl.data.synthetic import is_synthetic
from sscl.data.tiles import Tiles

_LOOKED_AT = 64  # files whose header is read
SAME = 0.05  # relative difference up to which two scales count as one
NOMINAL = 0.25  # the same where one is only a magnification, or rounded, as makers of published encoders give it


class Scale(NamedTuple):
    """At which scale the tiles of a set show tissue; None, or empty: not known.

    Attributes:
        source_px: widths of the files, smallest and largest.
        mpp: µm per pixel of the tiles, at the side that they are resized to; the median.
        mpp_range: the lowest and the highest, where they are over 5% apart.
    """

    source_px: tuple[int, ...] = ()
    mpp: float | None = None
    mpp_range: tuple[float, ...] = ()

    @property
    def span(self) -> tuple[float, ...]:
        """The lowest and the highest µm per pixel."""
        return self.mpp_range or (() if self.mpp is None else (self.mpp, self.mpp))

    def __str__(self) -> str:
        """Return µm per pixel in words."""
        return f"{_shown(self.span)} µm per pixel" if self.span else "µm per pixel not known"

    def mixed(self) -> list[str]:
        """Return a sentence where the tiles of one set show tissue at more than one scale."""
        return [f"the tiles have {self}, over 5% apart: more than one scale in one set"] if self.mpp_range else []


class Trained(NamedTuple):
    """µm per pixel of the tiles that an encoder was trained on, lowest and highest; `within`: see SAME and NOMINAL."""

    low: float
    high: float
    within: float = SAME

    @property
    def scale(self) -> Scale:
        """The same as the scale of a set; its median is known where all are one."""
        return Scale(mpp=self.low) if self.low == self.high else Scale(mpp_range=self[:2])


def differ(one: float, other: float, *, within: float = SAME) -> bool:
    """Return whether two scales are further apart, whichever is the larger one."""
    return max(one, other) > min(one, other) * (1 + within)


def scale_of(data: DataConfig, tiles: Tiles, *, key: str = "data") -> Scale:
    """Return the scale of a set: what its section says, else that of its table and of up to 64 of its files.

    Drawn tiles all show the same width.

    Raises:
        ValueError: the section and the table differ by more than 5%; begins with the section's `key`.
    """
    sides = _file_sides(data, tiles)
    source_px = tuple(sorted({min(sides.values()), max(sides.values())})) if sides else ()
    found = Scale() if tiles.mpp is None else _measured(tiles.mpp, sides, size_px=data.size_px)
    if is_synthetic(data.source, tiles.ids):
        return Scale(source_px, data.mpp or TILE_UM / data.size_px)
    if data.mpp is None or found.mpp is None:
        return found._replace(source_px=source_px, mpp=data.mpp or found.mpp)
    if any(differ(data.mpp, value) for value in found.span):
        raise ValueError(
            f"{key}.mpp: got {data.mpp:g}, but by the column mpp of {data.root} and the sides of its files the tiles "
            f"have {found} at {data.size_px} px; correct one of them, or leave {key}.mpp out"
        )
    return Scale(source_px, data.mpp)


def scale_of_all(scales: Sequence[Scale], sizes: Sequence[int]) -> Scale:
    """Return the scale of several sets together, of these numbers of tiles; not known where that of one is not."""
    widths = [side for scale in scales for side in scale.source_px]
    source_px = tuple(sorted({min(widths), max(widths)})) if all(scale.source_px for scale in scales) else ()
    if not all(scale.span for scale in scales):
        return Scale(source_px)
    middle = _middle(np.repeat([scale.mpp for scale in scales], sizes).astype(np.float64))
    low, high = min(scale.span[0] for scale in scales), max(scale.span[1] for scale in scales)
    return Scale(source_px, middle.mpp, (low, high) if differ(low, high) else ())


def scale_of_files(mpp: NDArray[np.float64]) -> Scale:
    """Return the scale of tiles by µm per pixel of each, (N,), NaN = unknown."""
    return _middle(mpp[~np.isnan(mpp)])


def _file_sides(data: DataConfig, tiles: Tiles) -> dict[int, int]:
    """Return the widths of up to 64 files, and of as many whose µm per pixel is known, by row.

    Files that cannot be opened do not count.
    """
    if data.source == "pathmnist":
        return {0: read_contents(data.root).side}
    rows = _spread(np.arange(len(tiles)))
    if tiles.mpp is not None:
        rows = np.union1d(rows, _spread(np.flatnonzero(~np.isnan(tiles.mpp))))
    found: dict[int, int] = {}
    for row in rows.tolist():
        path = tile_file(data, tiles.ids[row])
        if path is None:
            return {}
        with contextlib.suppress(ValueError):
            width, height = size_of(str(path))
            found[row] = min(width, height) if data.fit == "crop" else width  # as decode_image counts
    return found


def _spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return up to 64 of the rows, evenly spread."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, _LOOKED_AT).astype(np.int64))] if len(rows) else rows


def _measured(mpp: NDArray[np.float64], sides: dict[int, int], *, size_px: int) -> Scale:
    """Return the scale by µm per pixel of the files, (N,), and the sides of some, by row."""
    if len(set(sides.values())) == 1:  # then all have that side
        return scale_of_files(mpp * (next(iter(sides.values())) / size_px))
    return scale_of_files(np.array([mpp[row] * side / size_px for row, side in sides.items()], dtype=np.float64))


def _middle(values: NDArray[np.float64]) -> Scale:
    if not len(values):
        return Scale()
    low, high = float(values.min()), float(values.max())
    middle = float(np.quantile(values, 0.5, method="inverted_cdf"))  # one that some tile has
    return Scale(mpp=middle, mpp_range=(low, high) if differ(low, high) else ())


def _shown(span: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in span))


def _outside(span: Sequence[float], low: float, high: float, within: float) -> bool:
    return span[0] * (1 + within) < low or span[-1] > high * (1 + within)


def scale_against(scale: Scale, trained: Trained | None, *, name: str, size_px: int) -> list[str]:
    """Return a sentence where tiles show tissue at another scale than an encoder was trained at.

    Args:
        scale: of the tiles at `size_px`. trained: of the encoder; None: not known. name: of the encoder.
    """
    if not scale.span or trained is None or not _outside(scale.span, trained.low, trained.high, trained.within):
        return []
    return [
        f"the tiles have {scale} at {size_px} px, those of {name} had {_shown(trained[:2])}: over "
        f"{trained.within:.0%} apart; its features may mean little at this scale"
    ]


def scale_warnings(sides: Collection[int], here: Scale, *, trained: Scale, size_px: int) -> list[str]:
    """Return why tissue may be shown at another scale than in training, a sentence each.

    Where µm per pixel of both are known, the sides of the files say nothing more.

    Args:
        sides: the widths that files have. here: the scale of the tiles.
        trained: that of the training tiles. size_px: the side that all are resized to.
    """
    if here.span and trained.span:
        if not _outside(here.span, trained.span[0], trained.span[-1], SAME):
            return []
        return [
            f"the tiles have {here} at {size_px} px, those trained on {_shown(trained.span)}: over 5% apart, so "
            "predictions may mean nothing"
        ]
    if not trained.source_px:
        return []
    low, high = trained.source_px[0], trained.source_px[-1]
    others = [side for side in sides if not low <= side <= high]
    if not others:
        return []
    was = f"{low}" if low == high else f"{low} to {high}"
    found = " to ".join(str(side) for side in sorted({min(others), max(others)}))
    which = "the files are" if len(others) == len(sides) else "some files are"
    return [
        f"{which} {found} px wide, those trained on {was} px; all are resized to {size_px} px: predictions mean "
        "nothing if the tissue is shown at another scale than in training"
    ]
