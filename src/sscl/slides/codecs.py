"""Encoded tiles of slides to pixels, strictly: what is left over or missing is an error."""

from __future__ import annotations

import base64
import functools
import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sscl.slides.records import EncodedTiles

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _RESTARTS = 0xDA, 0xDD
_APPLICATION = frozenset([0xE0, 0xEE])  # JFIF and Adobe say what the colours are; the TIFF decides that
_FRAMES, _PROGRESSIVE = frozenset([0xC0, 0xC1]), 0xC2
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # followed by one byte, 0 for RGB, 1 for YCbCr
_HELD_BACK = 8  # bytes at the end: a decoder that is done without them has left data over
_READ_AHEAD = bytes(8)  # libjpeg wants that many before it decodes the last bits


def decoded(data: bytes, how: EncodedTiles) -> NDArray[np.uint8]:
    """Return a tile's pixels, uint8 (height, width, 4): RGB and a fourth that says nothing.

    Raises:
        ValueError: the data is damaged, or of another size.
        Exception: whatever else a decoder raises.
    """
    return _jpeg(data, how) if how.codec == "jpeg" else _jpeg2000(data, how)


def _jpeg(data: bytes, how: EncodedTiles) -> NDArray[np.uint8]:
    """Return the pixels of a JPEG of one scan.

    libjpeg makes some picture of damaged data, and warns. After a hole it goes on with wrong blocks, so that in the end
    there is data left over, or too little: both show if the last bytes come in a second part, without the end marker,
    at which it would fill up what is missing.
    """
    whole = _stream(data, how)
    pixels = np.empty((how.height, how.width, 4), dtype=np.uint8)
    size = (how.width, how.height)
    picture = Image.frombuffer("RGBX", size, pixels, "raw", "RGBX", 0, 1)  # shares the array's memory
    decoder = Image._getdecoder("RGBX", "jpeg", ("RGBX", ""))
    decoder.setimage(picture.im, (0, 0, *size))
    used, fault = decoder.decode(whole[:-_HELD_BACK])
    if used < 0 and not fault:
        raise ValueError("data is left over when the picture is full")
    if not fault:
        used, fault = decoder.decode(whole[used:] + _READ_AHEAD)
    if fault:
        raise ValueError("broken JPEG data")
    if used >= 0:
        raise ValueError("the data ends before the picture is full")
    return pixels


def _stream(data: bytes, how: EncodedTiles) -> bytes:
    """Return a tile as a JPEG with all its tables, its colours as the TIFF says, and no end marker.

    Raises:
        ValueError: its head is damaged, or it is of another size.
    """
    end = data.rfind(_EOI)
    if data[:2] != _SOI or end < 0:
        raise ValueError("is no whole JPEG")
    kept, at = _prefix(how), 2
    while at + 4 <= end:
        if data[at] != 0xFF:
            break
        marker, after = data[at + 1], at + 2 + (data[at + 2] << 8) + data[at + 3]
        if marker == _SOS:
            return kept + data[at:end]
        if marker == _PROGRESSIVE:
            raise ValueError("is a progressive JPEG")
        if marker in _FRAMES:
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            if (width, height, data[at + 9]) != (how.width, how.height, 3):
                raise ValueError(f"is {width} x {height}, not {how.width} x {how.height}")
        if marker == _RESTARTS and data[at + 4 : at + 6] != b"\0\0":
            raise ValueError("has restart markers, behind which damage goes unnoticed")
        if marker not in _APPLICATION:
            kept += data[at:after]
        at = after
    raise ValueError("its head is damaged")


@functools.lru_cache(maxsize=256)
def _prefix(how: EncodedTiles) -> bytes:
    """Return what stands before each tile's own JPEG."""
    tables = base64.b64decode(how.tables)
    return _SOI + _ADOBE + (b"\1" if how.colours == "ycbcr" else b"\0") + tables.removeprefix(_SOI).removesuffix(_EOI)


def _jpeg2000(data: bytes, how: EncodedTiles) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=["JPEG2000"]) as picture:
        if picture.size != (how.width, how.height) or picture.mode != "RGB":
            raise ValueError(
                f"is {picture.width} x {picture.height} {picture.mode}, not {how.width} x {how.height} RGB"
            )
        pixels = np.asarray(picture)
    if how.colours == "ycbcr":  # Pillow does not know, and takes it for RGB
        y, blue, red = (pixels[:, :, i].astype(np.int32) for i in range(3))
        blue, red, half = blue - 128, red - 128, 1 << 15
        channels = (
            y + ((91881 * red + half) >> 16),  # 1.402, 0.34414, 0.71414 and 1.772 in units of 2**-16, as in libjpeg
            y + ((-22554 * blue - 46802 * red + half) >> 16),
            y + ((116130 * blue + half) >> 16),
        )
        pixels = np.clip(np.stack(channels, axis=2), 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA), dtype=np.uint8)
