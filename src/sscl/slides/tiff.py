"""The directory of a TIFF: its levels, and where the encoded tiles of each are."""

from __future__ import annotations

import base64
import logging
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl.slides.libraries import library
from sscl.slides.records import EncodedTiles
from sscl.words import count

_JPEG, _J2K_YCBCR, _J2K_RGB = 7, 33003, 33005
_RGB, _YCBCR = 2, 6
_OFFSETS, _SIZES = 324, 325  # tags of the tiles' places, and of their bytes
_LEAST_SIDE, _MOST_SIDE = 64, 4096  # of tiles that are read from the file
_BYTES = {3: 2, 4: 4, 16: 8}  # of a SHORT, a LONG and a LONG8


class DirectoryError(ValueError):
    """The directory is not whole, or says what cannot be."""


@dataclass(frozen=True)
class Page:
    """A tiled page of a TIFF.

    Attributes:
        width, height: pixels. encoded: how its tiles are decoded here; None: openslide has to, and `why`.
        samples: numbers of tiles to try: the one of the most bytes, one of many, one of the median.
        below: whether it hangs below the first page (SubIFDs).
    """

    width: int
    height: int
    encoded: EncodedTiles | None
    why: str
    samples: tuple[int, ...]
    below: bool


def tiled_pages(path: Path) -> list[Page]:
    """Return the tiled pages of a TIFF that may be levels of a slide, and those below the first page (SubIFDs).

    Raises:
        DirectoryError: a page does not say where all its tiles are, or has some beyond the file's end.
        Exception: whatever tifffile raises: it is no TIFF, or damaged.
    """
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of every tag that it does not like
    with library("tifffile").TiffFile(path) as file:
        pages = list(file.pages)
        if _goes_on(file, pages[-1]):
            raise DirectoryError("its directory goes on beyond its end")
        below = list(pages[0].pages or ()) if pages and pages[0].subifds else []
        return [
            *(_page(page, below=False) for page in pages if page.is_tiled),
            *(_page(page, below=True) for page in below if page.is_tiled),
        ]


def _goes_on(file: Any, last: Any) -> bool:
    """Return whether the last page that could be read names a further one."""
    form, handle = file.tiff, file.filehandle
    handle.seek(last.offset)
    (tags,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    handle.seek(last.offset + form.tagnosize + tags * form.tagsize)
    (following,) = struct.unpack(form.offsetformat, handle.read(form.offsetsize))
    return bool(following)


def _page(page: Any, *, below: bool) -> Page:
    sizes = np.asarray(page.databytecounts, dtype=np.int64)
    offsets = np.asarray(page.dataoffsets, dtype=np.int64)
    across = -(-int(page.imagewidth) // max(1, int(page.tilewidth)))
    down = -(-int(page.imagelength) // max(1, int(page.tilelength)))
    tiles = across * down * (1 if int(page.planarconfig) == 1 else int(page.samplesperpixel))
    if not len(sizes) or not len(sizes) == len(offsets) == tiles:
        raise DirectoryError(
            f"its directory names {min(len(sizes), len(offsets)):,} of the {tiles:,} tiles that {page.imagewidth:,} x "
            f"{page.imagelength:,} pixels take"
        )
    end, size = int((offsets + sizes)[sizes > 0].max(initial=0)), page.parent.filehandle.size
    if end > size:
        raise DirectoryError(f"it has {size:,} bytes, its tiles {end:,}")
    why = _why_not(page, sizes)
    return Page(
        width=int(page.imagewidth),
        height=int(page.imagelength),
        encoded=None if why else _encoded(page),
        why=why,
        samples=tuple(np.argsort(sizes, kind="stable")[[-1, -1 - len(sizes) // 10, len(sizes) // 2]].tolist()),
        below=below,
    )


def _why_not(page: Any, sizes: NDArray[np.int64]) -> str:
    """Return why a page's tiles are not decoded here; empty: they are."""
    compression, width, height = int(page.compression), int(page.tilewidth), int(page.tilelength)
    if compression not in (_JPEG, _J2K_YCBCR, _J2K_RGB):
        return "its tiles are not JPEG"
    if (page.samplesperpixel, page.bitspersample, int(page.planarconfig)) != (3, 8, 1) or (
        compression == _JPEG and int(page.photometric) not in (_RGB, _YCBCR)
    ):
        return "its pixels are not RGB of 8 bits"
    if min(width, height) < _LEAST_SIDE or max(width, height) > _MOST_SIDE:
        return f"its tiles are of {width} x {height} pixels"
    if not sizes.all():
        return f"{count(int((sizes == 0).sum()), 'tile')} left out by the scanner"
    return "" if {page.tags[tag].dtype for tag in (_OFFSETS, _SIZES)} <= set(_BYTES) else "its directory is unusual"


def _encoded(page: Any) -> EncodedTiles:
    """Return how a page's tiles are decoded."""
    compression, offsets, sizes = int(page.compression), page.tags[_OFFSETS], page.tags[_SIZES]
    jpeg = compression == _JPEG
    ycbcr = int(page.photometric) == _YCBCR if jpeg else compression == _J2K_YCBCR
    return EncodedTiles(
        width=int(page.tilewidth),
        height=int(page.tilelength),
        codec="jpeg" if jpeg else "jpeg2000",
        colours="ycbcr" if ycbcr else "rgb",
        tables=base64.b64encode(page.jpegtables or b"").decode() if jpeg else "",
        offsets_at=offsets.valueoffset,
        offset_bytes=_BYTES[offsets.dtype],
        sizes_at=sizes.valueoffset,
        size_bytes=_BYTES[sizes.dtype],
        order="little" if page.parent.byteorder == "<" else "big",
    )
