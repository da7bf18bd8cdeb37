"""Pyramidal slides from pixels: tiled Aperio SVS and generic TIFF with JPEG tiles, as openslide reads them.

Drawn slides are written by it, and tests make the slides of other scanners with its options.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sscl.writing import replacing

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB
Colour = Literal["ycbcr", "rgb"]
Codec = Literal["jpeg", "jpeg2000"]

_APERIO = "Aperio Image Library v12.0.15\r\n"
_MARKER, _SOI, _EOI = 0xFF, b"\xff\xd8", b"\xff\xd9"
_DHT, _SOS, _DQT, _APP0 = 0xC4, 0xDA, 0xDB, 0xE0


@dataclass(frozen=True)
class EncodedLevel:
    """A level of the pyramid as JPEG tiles.

    Attributes:
        width, height: pixels. tile_px: side of its tiles.
        tiles: row by row, each a whole JPEG of tile_px x tile_px; b"" is a tile that was not scanned.
        colour: "ycbcr" (chroma at half the resolution) or "rgb". codec: JPEG 2000 is of RGB, as Aperio's 33005.
    """

    width: int
    height: int
    tile_px: int
    tiles: Sequence[bytes]
    colour: Colour = "ycbcr"
    codec: Codec = "jpeg"


def encode_level(
    pixels: Pixels, *, tile_px: int = 256, quality: int = 80, colour: Colour = "ycbcr", codec: Codec = "jpeg"
) -> EncodedLevel:
    """Return a level's JPEG tiles; the last ones of a row and of a column repeat the border's pixels."""
    height, width = pixels.shape[:2]
    colour = "rgb" if codec == "jpeg2000" else colour
    tiles = []
    for y in range(0, height, tile_px):
        for x in range(0, width, tile_px):
            tile = pixels[y : y + tile_px, x : x + tile_px]
            missing = ((0, tile_px - tile.shape[0]), (0, tile_px - tile.shape[1]), (0, 0))
            if any(after for _, after in missing):
                tile = np.pad(tile, missing, mode="edge")
            tiles.append(encode_tile(tile, quality=quality, colour=colour, codec=codec))
    return EncodedLevel(width, height, tile_px, tiles, colour, codec)


def encode_tile(pixels: Pixels, *, quality: int = 80, colour: Colour = "ycbcr", codec: Codec = "jpeg") -> bytes:
    """Return pixels as a JPEG: of YCbCr with chroma at half the resolution, or of RGB as Aperio's own; or JPEG 2000."""
    if colour == "rgb" or codec == "jpeg2000":
        stream = io.BytesIO()
        if codec == "jpeg2000":
            Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=True, irreversible=True, quality_layers=[12])
        else:
            Image.fromarray(pixels).save(stream, "jpeg", quality=quality, keep_rgb=True)
        return stream.getvalue()
    flags = (cv2.IMWRITE_JPEG_QUALITY, quality)
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)[1].tobytes())


def reduced(pixels: Pixels, factor: int) -> Pixels:
    """Return the mean of every square of factor x factor pixels; what is left over at the right and below is cut."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    whole = pixels[: height * factor, : width * factor]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def write_slide(
    path: str | Path,
    pixels: Pixels,
    *,
    mpp: float | None = 0.5,
    factors: Sequence[int] = (4, 16),
    tile_px: int = 256,
    quality: int = 80,
    colour: Colour = "ycbcr",
    codec: Codec = "jpeg",
    tables: bool = False,
    subifds: bool = False,
    label: Pixels | None = None,
) -> None:
    """Write a slide of pixels with its pyramid.

    A level's factor is whole where the size divides by it; else the level is cut, and width and height give factors
    that are not quite whole and differ, as in Aperio's files (T6).

    Args:
        path: of the file. mpp: µm per pixel; None leaves it out. factors: of the levels above 0.
        tables, subifds, label: see `write_levels`.
    """
    levels = [
        encode_level(
            pixels if factor == 1 else reduced(pixels, factor),
            tile_px=tile_px,
            quality=quality,
            colour=colour,
            codec=codec,
        )
        for factor in (1, *factors)
    ]
    write_levels(path, levels, mpp=mpp, tables=tables, subifds=subifds, label=label)


def write_levels(
    path: str | Path,
    levels: Sequence[EncodedLevel],
    *,
    mpp: float | tuple[float, float] | None = 0.5,
    vendor: Literal["aperio", "generic"] | None = None,
    tables: bool = False,
    subifds: bool = False,
    label: Pixels | None = None,
) -> None:
    """Write a slide of ready JPEG tiles.

    Args:
        levels: the largest first. mpp: µm per pixel, or those of x and of y (a generic TIFF alone has two).
        vendor: None goes by the ending, .svs (Aperio) or another.
        tables: keep the tables of all tiles of a level once, in the tag JPEGTables, as scanners do.
        subifds: hang the smaller levels below the first page, as OME-TIFF does, rather than after it.
        label: picture of the glass slide's label, with what it says about the patient.
    """
    path = Path(path)
    vendor = vendor or ("aperio" if path.suffix.lower() == ".svs" else "generic")
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        tiff = _Tiff(file, big=sum(len(tile) for level in levels for tile in level.tiles) > 2**31)
        pages = []
        for place, level in enumerate(levels):
            tags = _level_tags(tiff, level, tables=tables, reduced=place > 0)
            if vendor == "aperio":
                tags[_DESCRIPTION] = (_ASCII, _aperio_text(levels[0], level, mpp))
            elif mpp is not None and not place:
                tags |= _resolution(mpp)
            pages.append(tags)
        if subifds:
            below = [tiff.add_page(tags, last=True) for tags in pages[1:]]
            pages[1:] = []
            pages[0][_SUBIFDS] = (tiff.offset_type, below)
        if label is not None:
            pages.append(_label_tags(tiff, label))
        for number, tags in enumerate(pages, 1):
            tiff.add_page(tags, last=number == len(pages), first=number == 1)


# TIFF: the tags of a page by number, each with the type of its values

_SHORT, _LONG, _RATIONAL, _ASCII, _UNDEFINED, _LONG8 = 3, 4, 5, 2, 7, 16
_FORMATS = {_SHORT: "H", _LONG: "I", _RATIONAL: "I", _LONG8: "Q"}
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_DESCRIPTION, _STRIP_OFFSETS, _SAMPLES, _ROWS, _STRIP_BYTES = 270, 273, 277, 278, 279
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_SUBIFDS, _JPEG_TABLES, _SUBSAMPLING = 330, 347, 530
_NONE, _JPEG, _APERIO_JPEG2000, _RGB, _YCBCR, _CENTIMETRE = 1, 7, 33005, 2, 6, 3

Tags = dict[int, tuple[int, Sequence[int] | bytes]]


class _Tiff:
    """A TIFF, or a BigTIFF, that is written front to back: data as they come, then the pages."""

    def __init__(self, file: BinaryIO, *, big: bool) -> None:
        self.file, self.big = file, big
        self.offset_type, self.offset = (_LONG8, "Q") if big else (_LONG, "I")
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if big else struct.pack("<2sHI", b"II", 42, 0))

    def add_data(self, data: bytes) -> int:
        """Write data; return where they begin: on an even byte."""
        at = self.file.tell()
        if at % 2:
            self.file.write(b"\0")
        self.file.write(data)
        return at + at % 2

    def add_page(self, tags: Tags, *, last: bool, first: bool = False) -> int:
        """Write a page and return where it begins; a first one is entered in the head, one that is not last is chained
        to what is written next."""
        at = self.file.tell() + self.file.tell() % 2
        count, inside = ("Q", 8) if self.big else ("H", 4)
        entry = f"<HH{self.offset}"
        head = struct.calcsize(f"<{count}") + len(tags) * (struct.calcsize(entry) + inside)
        values_at = at + head + struct.calcsize(f"<{self.offset}")
        entries, values = b"", b""
        for tag, (kind, content) in sorted(tags.items()):
            packed = (
                content if isinstance(content, bytes) else struct.pack(f"<{len(content)}{_FORMATS[kind]}", *content)
            )
            number = len(content) // (2 if kind == _RATIONAL else 1)
            entries += struct.pack(entry, tag, kind, number)
            if len(packed) > inside:
                entries += struct.pack(f"<{self.offset}", values_at + len(values))
                values += packed + b"\0" * (len(packed) % 2)
            else:
                entries += packed.ljust(inside, b"\0")
        following = 0 if last else values_at + len(values)
        page = struct.pack(f"<{count}", len(tags)) + entries + struct.pack(f"<{self.offset}", following) + values
        assert self.add_data(page) == at
        if first:
            self.file.seek(8 if self.big else 4)
            self.file.write(struct.pack(f"<{self.offset}", at))
            self.file.seek(0, os.SEEK_END)
        return at


def _level_tags(tiff: _Tiff, level: EncodedLevel, *, tables: bool, reduced: bool) -> Tags:
    """Write a level's tiles; return the tags of its page."""
    offsets = []
    sizes = []
    for tile in level.tiles:
        data = _without_tables(tile) if tables and tile else tile
        offsets.append(tiff.add_data(data) if data else 0)
        sizes.append(len(data))
    tags: Tags = {
        _SUBFILE: (_LONG, [int(reduced)]),
        _WIDTH: (_LONG, [level.width]),
        _HEIGHT: (_LONG, [level.height]),
        _BITS: (_SHORT, [8, 8, 8]),
        _COMPRESSION: (_SHORT, [_APERIO_JPEG2000 if level.codec == "jpeg2000" else _JPEG]),
        _PHOTOMETRIC: (_SHORT, [_RGB if level.colour == "rgb" else _YCBCR]),
        _SAMPLES: (_SHORT, [3]),
        _TILE_WIDTH: (_SHORT, [level.tile_px]),
        _TILE_HEIGHT: (_SHORT, [level.tile_px]),
        _TILE_OFFSETS: (tiff.offset_type, offsets),
        _TILE_BYTES: (_LONG, sizes),
    }
    if level.colour == "ycbcr":
        tags[_SUBSAMPLING] = (_SHORT, [2, 2])
    if tables:
        tags[_JPEG_TABLES] = (_UNDEFINED, _tables_of(next(filter(None, level.tiles))))
    return tags


def _label_tags(tiff: _Tiff, label: Pixels) -> Tags:
    """Write the picture of a label; return the tags of its page."""
    height, width = label.shape[:2]
    return {
        _SUBFILE: (_LONG, [1]),
        _WIDTH: (_LONG, [width]),
        _HEIGHT: (_LONG, [height]),
        _BITS: (_SHORT, [8, 8, 8]),
        _COMPRESSION: (_SHORT, [_NONE]),
        _PHOTOMETRIC: (_SHORT, [_RGB]),
        _DESCRIPTION: (_ASCII, f"{_APERIO}label {width}x{height}\0".encode()),
        _STRIP_OFFSETS: (tiff.offset_type, [tiff.add_data(np.ascontiguousarray(label).tobytes())]),
        _SAMPLES: (_SHORT, [3]),
        _ROWS: (_LONG, [height]),
        _STRIP_BYTES: (_LONG, [label.nbytes]),
    }


def _resolution(mpp: float | tuple[float, float]) -> Tags:
    x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    return {
        _X_RESOLUTION: (_RATIONAL, [round(1e8 / x), 10_000]),
        _Y_RESOLUTION: (_RATIONAL, [round(1e8 / y), 10_000]),
        _RESOLUTION_UNIT: (_SHORT, [_CENTIMETRE]),
    }


def _aperio_text(first: EncodedLevel, level: EncodedLevel, mpp: float | tuple[float, float] | None) -> bytes:
    """Return a page's description, from which openslide takes the vendor, the µm per pixel and the magnification."""
    size = f"{first.width}x{first.height} [0,0 {first.width}x{first.height}]"
    if level is not first:
        size += f" -> {level.width}x{level.height}"
    text = f"{_APERIO}{size} ({level.tile_px}x{level.tile_px}) JPEG/{level.colour.upper()}|ScanScope ID = DRAWN"
    if mpp is not None:
        x = mpp[0] if isinstance(mpp, tuple) else mpp
        text += f"|AppMag = {round(10 / x)}|MPP = {x:.6g}"
    return f"{text}\0".encode()


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the bytes of a JPEG's segments; the last one, of _SOS, runs to the end."""
    at = 2
    while True:
        assert jpeg[at] == _MARKER
        marker = jpeg[at + 1]
        end = len(jpeg) if marker == _SOS else at + 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
        yield marker, jpeg[at:end]
        if marker == _SOS:
            return
        at = end


def _tables_of(jpeg: bytes) -> bytes:
    """Return the tables of a JPEG, and nothing else, as the tag JPEGTables has them."""
    return _SOI + b"".join(part for marker, part in _segments(jpeg) if marker in (_DHT, _DQT)) + _EOI


def _without_tables(jpeg: bytes) -> bytes:
    return _SOI + b"".join(part for marker, part in _segments(jpeg) if marker not in (_DHT, _DQT, _APP0))
