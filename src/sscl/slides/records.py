"""What is known of a slide, and how its tiles are read.

Coordinates are pixels of level 0 everywhere, x before y, of a top-left corner, from the file's own origin (that of
openslide). Only GeoJSON and the page count from the corner of the scanned area instead (`Slide.bounds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sscl.records import Record


class SlideError(ValueError):
    """A slide cannot be used: the message is one line that begins with its path and says why and what to do."""


class EncodedTiles(Record):
    """Where a TIFF has the encoded tiles of a level, and how they are decoded.

    Attributes:
        width, height: of a tile, pixels.
        codec: of its data. colours: what they are of.
        tables: what the JPEGs of all tiles share (JPEGTables), base64; empty: nothing.
        offsets_at, sizes_at: where the numbers that say each tile's place and size begin in the file.
        offset_bytes, size_bytes: of such a number. order: of its bytes.
    """

    width: int
    height: int
    codec: Literal["jpeg", "jpeg2000"]
    colours: Literal["rgb", "ycbcr"]
    tables: str
    offsets_at: int
    offset_bytes: int
    sizes_at: int
    size_bytes: int
    order: Literal["little", "big"]


class Level(Record):
    """A level of the pyramid: its size in pixels, and how many pixels of level 0 one of its pixels spans.

    Attributes:
        factor: whole where it is within 1.5 pixels of the level's size of being whole.
        exact: whether any of its pixels can be read as they are. openslide takes 4.0019 for 4 where a level's size was
            rounded, and then reads between pixels.
        encoded: where its tiles are, if they are read without openslide.
    """

    width: int
    height: int
    factor: float
    exact: bool
    encoded: EncodedTiles | None = None


class Slide(Record):
    """A slide's facts, as the index keeps them.

    Attributes:
        path: of the file, or of the folder of a DICOM slide; absolute.
        name: of the slide in its index: its path below the folder that was given, with "/" and its ending.
        width, height: of level 0, pixels.
        mpp: µm per pixel of level 0; None: neither the file nor the user says.
        mpp_from: where it is from, as in "aperio.MPP" or "slides_csv"; without mpp, what the file says that does not
            count, as in "tiff.XResolution says 352.8"; empty: nothing.
        bounds: x, y, width, height of the scanned area in pixels of level 0; None: the file does not say.
        levels: from level 0 down.
        reader: "jpeg" (encoded tiles, read from the file), "jpeg2000" (so where openslide reads between pixels of a
            level, else through openslide), or "openslide".
        vendor: as openslide names it.
        quickhash: openslide's, or a digest of the file's first and last bytes where it has none.
        size, mtime_ns: of the file (of a folder: all its files, and the newest).
        icc: whether the file has a colour profile; it is not applied.
        notes: what a user should know of how it is read, each a phrase.
    """

    path: str
    name: str
    width: int
    height: int
    mpp: float | None
    mpp_from: str
    bounds: tuple[int, int, int, int] | None
    levels: tuple[Level, ...]
    reader: str
    vendor: str
    quickhash: str
    size: int
    mtime_ns: int
    icc: bool = False
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """The path as a path."""
        return Path(self.path)


@dataclass(frozen=True)
class Scaling:
    """How tiles of a µm per pixel are read from a slide.

    Attributes:
        mpp: µm per pixel of the finished tile. size_px: its side.
        level: that is read. side: of the square that is read, whole pixels of that level.
        step: from tile to tile where they do not overlap, pixels of level 0; not rounded.
        resampled: whether `side` differs from `size_px`, so that the square is resized (area).
    """

    mpp: float
    size_px: int
    level: int
    side: int
    step: float
    resampled: bool


@dataclass(frozen=True)
class Overview:
    """A slide in small, as the tissue mask needs it.

    Pixel (row, column) is the mean of level 0 from (column * factor_x, row * factor_y) to where the next begins; the
    last of a row or column may reach beyond the slide's border, and is the mean of the part inside.

    Attributes:
        rgb: uint8 (h, w, 3). known: bool (h, w), whether most of the pixel was scanned and is opaque.
        factor_x, factor_y: pixels of level 0 that one of its pixels spans; not whole.
        mpp: µm per pixel.
        damaged: how many squares of the level it was made of could not be decoded; they are not known.
    """

    rgb: NDArray[np.uint8]
    known: NDArray[np.bool_]
    factor_x: float
    factor_y: float
    mpp: float
    damaged: int = 0
