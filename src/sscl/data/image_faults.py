"""Why a file is no image that can be used, and what to do: the formats that are decoded, and what others are."""

from __future__ import annotations

import functools
import io
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from sscl.file_kinds import binary_kind, text_kind
from sscl.words import count

MOST_PIXELS = 2 * 89_478_485  # of one image: what Pillow allows, too
_COMPRESSIONS = {
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    34892: "lossy JPEG of DNG",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}


def not_an_image(data: bytes, error: Exception) -> str:
    """Return why Pillow does not open a file, and what to do."""
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\d+", str(error))
        return too_many_pixels(int(pixels[0]) if pixels else MOST_PIXELS)
    if reason := _reason(data):  # a picture of a format that Pillow knows
        damaged = re.search("truncat|fail|could not|beyond|corrupt|no marker", reason, re.IGNORECASE)
        to_do = "copy it again or remove it from the data set" if damaged else "save it as an 8-bit RGB PNG"
        return f"cannot be opened ({reason}); {to_do}"
    found = text_kind(data[:200]) or binary_kind(data[:8])
    if found is None and not data[:4096].strip(b"\0"):
        found = "begins with zeros", "copy it again or remove it from the data set"
    what, to_do = found or ("", "")
    return (
        f"is not a readable image{f' ({what})' if what else ''}; expected PNG, JPEG, TIFF, BMP or WebP"
        f"{f'; {to_do}' if to_do else ''}"
    )


def too_many_pixels(number: int) -> str:
    return f"has {number / 1e6:,.0f} million pixels, as whole slides have, and no tile; cut it into tiles"


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the formats that are decoded, as far as this Pillow knows them: those of `listing.SUFFIXES` and AVIF.

    Pillow goes by a file's content, not by its name, and would run other programs for some (Ghostscript for EPS).
    """
    Image.init()
    wanted = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "DIB", "WEBP", "JPEG2000", "GIF", "PPM", "AVIF")
    return tuple(name for name in wanted if name in Image.OPEN)


def _reason(data: bytes) -> str:
    """Return why the plugin for a file's format refuses it, which `Image.open` hides; empty if there is no plugin."""
    for kind in formats():
        factory, accepts = Image.OPEN[kind]
        try:
            accepted = accepts is not None and accepts(data[:16])
        except (IndexError, struct.error):  # of a file of a few bytes
            continue
        if isinstance(accepted, str):
            return accepted
        if not accepted:
            continue
        if kind == "TIFF" and (what := _tiff_reason(data)):
            return what
        try:
            factory(io.BytesIO(data), "")
        except Exception as error:  # whatever it is, it is the reason
            large = "Decompressed data too large" in str(error)  # a limit of Pillow against bombs
            return "its colour profile or a text in it is too large" if large else f"{kind}: {first_line(error)}"
    return ""


def _tiff_reason(data: bytes) -> str:
    """Return which feature of a TIFF Pillow lacks, by its tags; empty if they do not tell."""
    try:
        big = data[2:3] == b"\x2b" or data[3:4] == b"\x2b"  # BigTIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if big else 8])
        file = io.BytesIO(data)
        if tags.next >= len(data):
            return "truncated: the tags of the TIFF lie beyond its end"
        file.seek(tags.next)
        tags.load(file)
        compression = tags.get(259, 1)
        if compression not in TiffImagePlugin.COMPRESSION_INFO:
            return f"{_COMPRESSIONS.get(compression, f'compression {compression}')} in TIFF is not supported"
        samples = tags.get(277, 1)
        kind = tiff_kind(tags)
        return f"{kind} TIFF" if kind else f"TIFF of {count(samples, 'channel')} in an arrangement that Pillow lacks"
    except Exception:  # damaged tags; the plugin says how
        return ""


def not_decoded(error: Exception) -> str:
    """Return why Pillow does not decode an image that it opened, and what to do."""
    reason = first_line(error)
    if not isinstance(error, (OSError, SyntaxError, EOFError, IndexError, TypeError, struct.error)):
        return f"cannot be decoded ({reason}); save it as an 8-bit RGB PNG"
    plain = re.match("image file is truncated|broken data stream|unrecognized data stream", reason)
    return f"is truncated or damaged{'' if plain else f' ({reason})'}; copy it again or remove it from the data set"


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:150] if lines else type(error).__name__


def tiff_kind(tags: Mapping[int, Any]) -> str:
    """Return what a TIFF's samples are, "16-bit" or "32-bit float"; empty for whole numbers of 8 bits or fewer."""
    bits, formats = (np.atleast_1d(tags.get(tag, 1)) for tag in (258, 339))
    kind = {2: " signed", 3: " float", 5: " complex", 6: " complex"}.get(int(formats.max()), "")
    return f"{bits.max()}-bit{kind}" if kind or bits.max() > 8 else ""
