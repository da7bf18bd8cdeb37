"""At which scale tiles show tissue: the sides of their files, and µm per pixel, as far as these are known."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from sscl.config import DataConfig
from sscl.data.images import size_of
from sscl.data.load import tile_file
from sscl.data.pathmnist import stored_size_px
from sscl.data.tiles import Tiles

_LOOKED_AT = 64  # files whose header is read
_OTHER_MPP = 0.25  # relative difference from which an encoder is used at another scale than its own
_SAME_MPP = 0.1  # relative difference up to which two scales count as one


class Scale(NamedTuple):
    """The widths of the files, smallest and largest, and the median of µm per pixel; empty or None: not known."""

    source_px: tuple[int, ...]
    mpp: float | None


def scale_of(data: DataConfig, tiles: Tiles) -> Scale:
    """Return the scale of a set, from the headers of up to 64 files spread over it and from the set's own table."""
    known = np.empty(0) if tiles.mpp is None else tiles.mpp[~np.isnan(tiles.mpp)]
    sides = _file_sides(data, tiles)
    return Scale(
        source_px=tuple(sorted({min(sides), max(sides)})) if sides else (),
        mpp=float(np.median(known)) if len(known) else None,
    )


def _file_sides(data: DataConfig, tiles: Tiles) -> set[int]:
    """Return the widths of up to 64 files; files that cannot be opened do not count."""
    if data.source == "pathmnist":
        return {stored_size_px(data.root)}
    found: set[int] = set()
    for row in np.unique(np.linspace(0, len(tiles) - 1, _LOOKED_AT).astype(np.int64)):
        path = tile_file(data, tiles.ids[row])
        with contextlib.suppress(ValueError):
            width, height = size_of(str(path))
            found.add(min(width, height) if data.fit == "crop" else width)  # as decode_image counts
    return found


def scale_against(scale: Scale, expected: tuple[float, float] | None, *, name: str, size_px: int) -> list[str]:
    """Return a sentence where tiles show tissue at another scale than an encoder was trained at.

    Args:
        scale: of the tiles' files. size_px: the side that they are resized to.
        expected: µm per pixel of the encoder's tiles, lowest and highest; None: not known.
        name: of the encoder.
    """
    if scale.mpp is None or expected is None:
        return []
    shown = [scale.mpp * side / size_px for side in scale.source_px or (size_px,)]
    low, high = expected
    if min(shown) <= high * (1 + _OTHER_MPP) and max(shown) >= low * (1 - _OTHER_MPP):
        return []
    ours = " to ".join(dict.fromkeys(f"{value:.3g}" for value in (min(shown), max(shown))))
    theirs = " to ".join(dict.fromkeys(f"{value:.3g}" for value in expected))
    return [
        f"the tiles have {ours} µm per pixel at {size_px} px, those of {name} had {theirs}: over 25% apart; "
        "its features may mean little at this scale"
    ]


def scale_warnings(sides: Collection[int], mpp: float | None, *, trained: Scale, size_px: int) -> list[str]:
    """Return why tissue may be shown at another scale than in training, a sentence each.

    Args:
        sides: the widths that files have. mpp: µm per pixel of the files, None = not known.
        trained: the scale of the training files. size_px: the side that all are resized to.
    """
    found = []
    if trained.source_px:
        low, high = trained.source_px[0], trained.source_px[-1]
        others = [side for side in sides if not low <= side <= high]
        if others:
            was = f"{low}" if low == high else f"{low} to {high}"
            here = " to ".join(str(side) for side in sorted({min(others), max(others)}))
            which = "the files are" if len(others) == len(sides) else "some files are"
            found.append(
                f"{which} {here} px wide, those trained on {was} px; all are resized to {size_px} px: predictions mean "
                "nothing if the tissue is shown at another scale than in training"
            )
    if mpp is not None and trained.mpp is not None and abs(mpp / trained.mpp - 1) > _SAME_MPP:
        found.append(f"the tiles have {mpp:g} µm per pixel, those trained on {trained.mpp:g}: another scale")
    return found
