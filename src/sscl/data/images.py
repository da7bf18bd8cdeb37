"""One image file or opened image as 8-bit RGB pixels: what other viewers show, or a line that says why not.

Orientation: the tag of the file (EXIF or TIFF, also in PNG and WebP) is applied, whatever the format.
Colour: an embedded profile other than sRGB is converted to sRGB; a damaged one is ignored, as viewers do.
Depth: 8 bits or fewer; more are refused, because no scaling to 8 bits is the only one.
"""

from __future__ import annotations

import contextlib
import functools
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps

from sscl.data.image_faults import (
    MOST_PIXELS,
    first_line,
    formats,
    not_an_image,
    not_decoded,
    tiff_kind,
    too_many_pixels,
)
from sscl.data.jpeg import JpegFile, damage_in
from sscl.memory import raise_if_short
from sscl.reading import opened, read_bytes, why_unreadable
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
_MOST_SIDE_PX = 65_535  # as in JPEG
_MOST_BYTES = 2**30  # of its file: more than that many pixels take without compression
_SAME_COLOUR = 4  # of 255: a profile that moves no colour further is sRGB, by whatever name


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
        data = read_bytes(path, at_most=_MOST_BYTES, expected="an image file; remove it from the data set")
    except OSError as error:
        raise_if_short(error)
        raise ValueError(f"{path}: {why_unreadable(path, error)}") from error
    except MemoryError:
        raise ValueError(f"{path}: does not fit into the memory that is free; cut it into tiles") from None
    if not data:
        raise ValueError(f"{path}: is empty (0 bytes); copy it again or remove it from the data set")
    try:
        image = Image.open(io.BytesIO(data), formats=formats())
    except Exception as error:  # plugins raise whatever they meet: SyntaxError, KeyError, RuntimeError, struct.error
        raise ValueError(f"{path}: {not_an_image(data, error)}") from error
    with image:
        yield image


def size_of(path: Path | str) -> tuple[int, int]:
    """Return the width and height of an image file in pixels; no more than its header is read.

    Raises:
        ValueError: it is no image; one line that names it.
    """
    try:
        with opened(path, expected="an image file") as file, Image.open(file, formats=formats()) as image:
            return int(image.width), int(image.height)
    except Exception as error:  # see `open_image`
        raise_if_short(error)
        raise ValueError(f"{path}: cannot be opened ({first_line(error)}); copy it again") from error


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
        return _decoded(image, size_px=size_px, fit=fit)
    except _NotUsableError as error:
        raise ValueError(f"{name}: {error}") from None
    except MemoryError:
        raise ValueError(
            f"{name}: its {width}×{height} pixels do not fit into the memory that is free; cut it into tiles"
        ) from None
    except Exception as error:  # OSError, and TypeError (TIFF), SyntaxError (PNG), RuntimeError (AVIF), ...
        raise ValueError(f"{name}: {not_decoded(error)}") from error


def _decoded(image: Image.Image, *, size_px: int, fit: Fit) -> Decoded:
    """Return an opened image as a tile; raises _NotUsableError, or whatever a decoder raises."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise _NotUsableError(too_many_pixels(width * height))
    if max(width, height) > _MOST_SIDE_PX:  # to resize it, Pillow would ask for 32 bytes for each pixel of a side
        raise _NotUsableError(f"is {width:,}×{height:,} pixels, as whole slides are, and no tile; cut it into tiles")
    if min(width, height) < 1:
        raise _NotUsableError(f"has no pixels ({width}×{height})")
    if what := _too_deep(image):
        raise _NotUsableError(f"is {what}, which has no lossless 8-bit RGB form; save it as 8-bit RGB")
    # To count the pages would read a file of millions of them; an MPO is a camera's JPEG with a preview.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise _NotUsableError("has more than one page; save the tile as an image file of one page")
    rgb, changes = _as_rgb(image)
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


RESIZED = "8-bit RGB, both sides by Pillow's Resampling.BICUBIC, which antialiases; torch's and OpenCV's differ"


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
            if checked.seen:
                raise OSError(checked.seen)
        elif image.format == "TIFF":
            tags = getattr(image, "tag_v2", {})
            if tags.get(322, 1) * tags.get(323, 1) > MOST_PIXELS:  # libtiff asks for the memory of a whole tile
                raise OSError("its tiles have too many pixels")
            _check_strips(image.fp.getbuffer(), tags, image.size)
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
    if image.format == "TIFF" and (what := tiff_kind(getattr(image, "tag_v2", {}))):
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


def _jpeg_2000_bits(image: Image.Image) -> int:
    """Return the bits of a JPEG 2000 sample, from its SIZ segment (ISO/IEC 15444-1, A.5.1); 8 if it is not found."""
    file = image.fp if isinstance(image, ImageFile.ImageFile) else None
    data = file.getvalue() if isinstance(file, io.BytesIO) else b""
    at = data.find(b"\xff\x4f\xff\x51")
    return (data[at + 42] & 0x7F) + 1 if at >= 0 and at + 42 < len(data) else 8
