"""One image file or opened image as 8-bit RGB pixels: what other viewers show, or a line that says why not.

Orientation: the tag of the file (EXIF or TIFF, also in PNG and WebP) is applied, whatever the format.
Colour: an embedded profile other than sRGB is converted to sRGB; a damaged one is ignored, as viewers do.
Depth: 8 bits or fewer; more are refused, because no scaling to 8 bits is the only one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from sscl.data.jpeg import JpegFile, damage_in
from sscl.file_kinds import binary_kind, text_kind
from sscl.words import count

Fit = Literal["refuse", "crop", "resize"]
Region = tuple[int, int, int, int]  # x, y, width, height in pixels
# What may happen to the pixels of an image before it is scaled, in words.
CHANGES = {
    "turned": "turned upright, as their orientation tag says",
    "converted": "converted to sRGB from the colour profile in them",
    "cropped": "cut to the square in their middle (fit=crop)",
    "squashed": "not square, and made so by resizing (fit=resize)",
}
_SAME_COLOUR = 4  # of 255: a profile that moves no colour further is sRGB, by whatever name
_COMPRESSIONS = {
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34892: "lossy JPEG of DNG",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image as a tile.

    Attributes:
        pixels: uint8 (size_px, size_px, 3). region: what of the upright image they show. changes: keys of CHANGES.
    """

    pixels: NDArray[np.uint8]
    region: Region
    changes: tuple[str, ...]


def describe_changes(changes: Mapping[str, int], *, of: int) -> list[str]:
    """Return how many of the images were changed, a phrase for each kind of change."""
    return [f"{changes[name]:,} of {count(of, 'image')} {CHANGES[name]}" for name in CHANGES if changes.get(name)]


@contextlib.contextmanager
def open_image(path: Path | str) -> Iterator[Image.Image]:
    """Give an image file's opened image, not yet decoded.

    Raises:
        ValueError: the file cannot be read, is empty or is no image; one line that names it.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):  # to open a FIFO would wait for its writer
            raise ValueError(f"{path}: is a {_kind_of(kind)}, not an image file; remove it from the data set")
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ValueError(f"{path}: {why_unreadable(path, error)}") from error
    if not data:
        raise ValueError(f"{path}: is empty (0 bytes); copy it again or remove it from the data set")
    try:
        image = Image.open(io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:  # plugins raise whatever they meet: SyntaxError, KeyError, RuntimeError, struct.error
        raise ValueError(f"{path}: {_not_an_image(data, error)}") from error
    with image:
        yield image


def decode_image(
    image: Image.Image, *, name: Path | str, size_px: int, exact_size_px: int | None = None, fit: Fit = "refuse"
) -> Decoded:
    """Return an opened image as a tile.

    Args:
        exact_size_px: the only size allowed; None = any square size.
        fit: of an image that is not square: refuse it, take the square in its middle (crop), or resize both sides to
            size_px, which squashes it (resize).

    Raises:
        ValueError: it cannot be used; one line that begins with `name`.
    """
    width, height = image.size
    if exact_size_px is not None and (width, height) != (exact_size_px, exact_size_px):
        raise ValueError(
            f"{name}: is {width}×{height} pixels, expected {exact_size_px}×{exact_size_px}; "
            "replace it with the original tile"
        )
    if width != height and fit == "refuse":
        raise ValueError(
            f"{name}: is {width}×{height} pixels; tiles must be square; crop it, or set fit=crop or fit=resize "
            "(data.fit)"
        )
    try:
        what = _too_deep(image)
        pages = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # a camera's JPEG with a preview
        rgb, changes = _as_rgb(image) if not what and pages == 1 else (None, [])
    except MemoryError:
        raise
    except _NotUsableError as error:
        raise ValueError(f"{name}: {error}") from None
    except Exception as error:  # OSError, and TypeError (TIFF), SyntaxError (PNG), RuntimeError (AVIF), ...
        raise ValueError(f"{name}: {_not_decoded(error)}") from error
    if what:
        raise ValueError(f"{name}: is {what}, which has no lossless 8-bit RGB form; save it as 8-bit RGB")
    if rgb is None:
        raise ValueError(f"{name}: has {pages} pages; save the tile as an image file of one page")
    width, height = rgb.size
    region = (0, 0, width, height)
    if width != height and fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        region = (left, top, side, side)
        rgb = rgb.crop((left, top, left + side, top + side))
        changes.append("cropped")
    elif width != height:
        changes.append("squashed")
    if rgb.size != (size_px, size_px):
        rgb = resized(rgb, size_px)
    return Decoded(np.asarray(rgb), region, tuple(changes))


def resized(image: Image.Image, size_px: int) -> Image.Image:
    """Return the image at size_px × size_px. PIL's filters widen with the scale, so shrinking is antialiased."""
    return image.resize((size_px, size_px), Image.Resampling.BICUBIC)


class _NotUsableError(Exception):
    """The image can be decoded, but not used."""


def _as_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Return the image as upright RGB in sRGB if no pixel loses anything by it, and what was changed.

    Grey, palette and fully opaque RGBA keep every value; transparency does not.
    """
    tags = getattr(image, "tag_v2", {})
    changes = []
    turned = tags.get(ExifTags.Base.Orientation, 1) in range(2, 9)  # Pillow itself turns a TIFF when it decodes it
    _load(image)
    if not turned and _orientation(image) in range(2, 9):
        image = ImageOps.exif_transpose(image)
        turned = True
    if turned:
        changes.append("turned")
    profile, is_grey = image.info.get("icc_profile"), image.mode in ("1", "L", "LA")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise _NotUsableError("has transparent pixels; save it as 8-bit RGB without transparency")
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    convert = _to_srgb(profile) if profile else None
    of_grey = convert is not None and convert.input_mode == "L"
    if convert is not None and (is_grey or not of_grey):  # a profile of grey says nothing of colours
        changes.append("converted")
        rgb = convert.apply(rgb.getchannel("R") if of_grey else rgb)
    return rgb, changes


def _load(image: Image.Image) -> None:
    """Decode the image; a JPEG file in memory is checked while it is.

    Raises:
        OSError: it is damaged; and what else Pillow raises.
    """
    checked = None
    if isinstance(image, ImageFile.ImageFile) and isinstance(image.fp, io.BytesIO):
        if image.format in ("JPEG", "MPO"):
            image.fp = checked = JpegFile(image.fp.getvalue())
        elif image.format == "TIFF":
            _check_strips(image.fp.getbuffer(), getattr(image, "tag_v2", {}), image.size)
    image.load()
    if checked is not None and checked.damage:
        raise OSError(checked.damage)


def _check_strips(data: memoryview, tags: Mapping[int, Any], size: tuple[int, int]) -> None:
    """Raise OSError if a strip or tile of a TIFF, packed by JPEG or deflate, is damaged; libtiff does not say so."""
    packed_by = tags.get(259)
    if packed_by not in (7, 8, 32946):
        return
    tables = bytes(tags.get(347, b""))[:-2] or b"\xff\xd8"  # without its end marker
    offsets, counts = tags.get(273, tags.get(324, ())), tags.get(279, tags.get(325, ()))
    for offset, number in zip(offsets, counts, strict=False):
        strip = data[offset : offset + number]
        if packed_by == 7 and (found := damage_in(tables + bytes(strip[2:]))):
            raise OSError(found)
        if packed_by != 7:
            inflater = zlib.decompressobj()
            try:  # its checksum is at the end
                inflater.decompress(strip, 16 * size[0] * size[1])
            except zlib.error as error:
                raise OSError(str(error)) from None


def _orientation(image: Image.Image) -> int:
    exif = image.info.get("exif") or b""
    elsewhere = {"Raw profile type exif", "XML:com.adobe.xmp", "xmp"} & image.info.keys()
    if not elsewhere and b"\x01\x12" not in exif and b"\x12\x01" not in exif:  # the tag's number, 274
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged tag, which no viewer heeds
        return 1
    return found if isinstance(found, int) else 1


@functools.lru_cache(maxsize=16)
def _to_srgb(profile: bytes) -> Any:
    """Return the conversion from an ICC profile of RGB or grey to sRGB; None if it is sRGB or cannot be read."""
    from PIL import ImageCms

    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L"}.get(source.profile.xcolor_space.strip())
        if mode is None:
            return None
        convert = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        steps = np.arange(0, 256, 15 if mode == "L" else 51, dtype=np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3) if mode == "RGB" else steps[None]
        there = np.asarray(convert.apply(Image.fromarray(grid))).astype(int)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    here = grid if mode == "RGB" else grid[..., None]
    return convert if np.abs(there - here).max() > _SAME_COLOUR else None


def _too_deep(image: Image.Image) -> str:
    """Return what is not 8-bit RGB or grey about an image, "16-bit RGB"; empty if nothing.

    By the file's own tags: Pillow opens some of 16 bits as 8-bit "RGB".
    """
    mode = "I;16" if image.mode.startswith("I;16") else image.mode
    grey = "RGB" if mode.startswith("RGB") else "grey"
    if image.format == "TIFF" and (what := _tiff_kind(getattr(image, "tag_v2", {}))):
        return f"{what} {'CMYK' if mode == 'CMYK' else grey}"
    deep = {"I;16": "16-bit grey", "I": "32-bit integer grey", "F": "32-bit float grey", "CMYK": "CMYK (print colours)"}
    if mode not in ("RGB", "L", "1", "P", "RGBA", "LA", "PA"):
        return deep.get(mode, f"in colour mode {mode}")
    for _, _, _, details in getattr(image, "tile", ()):
        raw = details if isinstance(details, str) else str(details[0]) if details else ""
        if ";16" in raw and raw != "BGR;16":  # a BMP of 5, 6 and 5 bits
            return f"16-bit {grey}"
        if image.format == "PPM" and isinstance(details, tuple) and any(n > 255 for n in details if isinstance(n, int)):
            return f"16-bit {grey}"
    bits = _jpeg_2000_bits(image) if image.format == "JPEG2000" else 8
    return f"{bits}-bit {grey}" if bits > 8 else ""


def _tiff_kind(tags: Mapping[int, Any]) -> str:
    """Return what a TIFF's samples are, "16-bit" or "32-bit float"; empty for whole numbers of 8 bits or fewer."""
    bits, formats = (np.atleast_1d(tags.get(tag, 1)) for tag in (258, 339))
    kind = {2: " signed", 3: " float", 5: " complex", 6: " complex"}.get(int(formats.max()), "")
    return f"{bits.max()}-bit{kind}" if kind or bits.max() > 8 else ""


def _jpeg_2000_bits(image: Image.Image) -> int:
    """Return the bits of a JPEG 2000 sample, from its SIZ segment (ISO/IEC 15444-1, A.5.1); 8 if it is not found."""
    file = image.fp if isinstance(image, ImageFile.ImageFile) else None
    data = file.getvalue() if isinstance(file, io.BytesIO) else b""
    at = data.find(b"\xff\x4f\xff\x51")
    return (data[at + 42] & 0x7F) + 1 if at >= 0 and at + 42 < len(data) else 8


def _kind_of(mode: int) -> str:
    """Return what something that is no regular file is."""
    for test, name in ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket")):
        if test(mode):
            return name
    return "device"


def why_unreadable(path: Path | str, error: OSError) -> str:
    """Return why a file cannot be opened, and what to do."""
    if error.errno == errno.ENOENT and os.path.islink(path):
        return f"is a link to {os.readlink(path)}, which does not exist; correct or remove the link"
    if error.errno == errno.ENOENT:
        return f"cannot be opened ({error.strerror})"
    allowed = error.errno in (errno.EACCES, errno.EPERM)
    what = "check its permissions" if allowed else "copy it again or remove it from the data set"
    return f"cannot be read ({error.strerror}); {what}"


def _not_an_image(data: bytes, error: Exception) -> str:
    """Return why Pillow does not open a file, and what to do."""
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\d+", str(error))
        size = f"{int(pixels[0]) / 1e6:,.0f} million" if pixels else "too many"
        return f"has {size} pixels, more than Pillow opens; cut it into tiles"
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


def _reason(data: bytes) -> str:
    """Return why the plugin for a file's format refuses it, which `Image.open` hides; empty if there is no plugin."""
    Image.init()
    for kind in Image.ID:
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
            return "its colour profile or a text in it is too large" if large else f"{kind}: {_first_line(error)}"
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
        kind = _tiff_kind(tags)
        return f"{kind} TIFF" if kind else f"TIFF of {count(samples, 'channel')} in an arrangement that Pillow lacks"
    except Exception:  # damaged tags; the plugin says how
        return ""


def _not_decoded(error: Exception) -> str:
    """Return why Pillow does not decode an image that it opened, and what to do."""
    reason = _first_line(error)
    if not isinstance(error, (OSError, SyntaxError, EOFError, IndexError, TypeError, struct.error)):
        return f"cannot be decoded ({reason}); save it as an 8-bit RGB PNG"
    plain = re.match("image file is truncated|broken data stream|unrecognized data stream", reason)
    return f"is truncated or damaged{'' if plain else f' ({reason})'}; copy it again or remove it from the data set"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:150] if lines else type(error).__name__
