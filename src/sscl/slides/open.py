"""What a slide is: its facts, or in one line why it is none that can be used."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

from sscl.file_kinds import binary_kind, text_kind
from sscl.places import missing, printable
from sscl.reading import check_name, kind_of, why_unreadable
from sscl.slides import dicom
from sscl.slides.libraries import library, openslide
from sscl.slides.micrometres import pixel_size
from sscl.slides.pyramid import Pyramid, pyramid
from sscl.slides.records import Slide, SlideError
from sscl.slides.tiff import tiled_pages
from sscl.words import short

_READ = (".svs", ".tif", ".tiff", ".btf", ".tf8", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".dcm")
# Slides, too, of which openslide reads none, or not all: it is said of each, rather than nothing.
_OTHERS = (".czi", ".isyntax", ".i2syntax", ".kfb", ".sdpc", ".mdsx", ".tmap", ".vsi", ".zvi", ".qptiff")
SUFFIXES = frozenset((*_READ, *_OTHERS))
_MAGIC = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DIGEST_BYTES = 2**16
_MOST_SIDE = 2**21  # pixels; the widest scans have a sixth of it
_TILES = "for a folder of tiles use data.source=folder"


def is_slide(path: Path) -> bool:
    """Return whether something looks like a slide by its name; of a folder, whether it is a DICOM slide's."""
    return dicom.is_dicom_slide(path) if path.is_dir() else path.suffix.lower() in SUFFIXES


def open_slide(path: Path, *, name: str, mpp: float | None = None, mpp_from: str = "given") -> Slide:
    """Return what a slide's file says of it.

    The pictures of its label and of the whole glass are not looked at, and of its properties none is kept but its µm
    per pixel.

    Args:
        path: the file, or the folder of a DICOM slide.
        mpp: µm per pixel that a user gives; it wins over the file's. mpp_from: where it is given.

    Raises:
        SlideError: it is no slide, is damaged, or its pixels are not square; one line.
        ValueError: openslide is not installed.
    """
    shown = printable(str(path))
    file = _file_of(path)
    openslide_ = openslide()
    try:
        with contextlib.closing(openslide_.OpenSlide(str(file))) as handle:
            return _facts(handle, path, name=name, mpp=mpp, mpp_from=mpp_from)
    except SlideError:
        raise
    except openslide_.OpenSlideUnsupportedFormatError:
        raise SlideError(f"{shown}: {_what_else(file)}") from None
    except Exception as error:  # whatever its libraries raise is an error of this file
        raise SlideError(f"{shown}: openslide says: {short(str(error), most=200)}") from None


def _file_of(path: Path) -> Path:
    """Return the file that openslide is given.

    Raises:
        SlideError: there is none.
    """
    shown = printable(str(path))
    try:
        check_name(path)
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise SlideError(f"{shown}: its name is not in UTF-8; rename it") from None
    except ValueError as error:
        raise SlideError(str(error)) from None
    try:
        stat = path.stat()
        if path.is_dir():
            return Path(dicom.for_openslide(str(path)))
    except FileNotFoundError as error:
        why = f"{shown}: {why_unreadable(path, error)}" if path.is_symlink() else missing(path, "slide")
        raise SlideError(why) from None
    except OSError as error:
        raise SlideError(f"{shown}: {why_unreadable(path, error)}") from None
    kind = kind_of(stat.st_mode)
    if kind is not None:
        raise SlideError(f"{shown}: is a {kind}, not a slide")
    if not stat.st_size:
        raise SlideError(f"{shown}: is empty (0 bytes); copy it again")
    return path


def _what_else(path: Path) -> str:
    """Return what a file is that openslide does not know."""
    try:
        with path.open("rb") as file:
            start = file.read(200)
    except OSError as error:
        return why_unreadable(path, error)
    if not start.strip(b"\0"):
        return "begins with zeros; copy it again"
    if start[:4] in _TIFF:
        return _what_tiff(path)
    for mark, image in _MAGIC.items():
        if start.startswith(mark):
            return f"is a plain image ({image}), not a slide; {_TILES}"
    found = text_kind(start) or binary_kind(start[:8])
    if found is not None:
        return f"is {found[0]}, not a slide; {found[1]}"
    suffix = path.suffix.lower()
    version = openslide().__library_version__
    if suffix in _OTHERS:
        return f"openslide {version} does not read {suffix}; export it as OME-TIFF with JPEG tiles, or as DICOM"
    return f"is no slide that openslide {version} knows; if it should be one, copy it again"


def _what_tiff(path: Path) -> str:
    try:
        tiled = tiled_pages(path)
        with library("tifffile").TiffFile(path) as file:
            first = file.pages[0]
            width, height = first.imagewidth, first.imagelength
    except Exception as error:  # of tifffile, whose reason is the file's
        return f"is a truncated or damaged TIFF ({short(str(error), most=150)}); copy it again"
    if tiled:
        return "is a tiled TIFF that openslide does not read; export it as a pyramid of JPEG tiles"
    return f"is a plain image (TIFF of {width:,} x {height:,} pixels without tiles), not a slide; {_TILES}"


def _facts(handle: Any, path: Path, *, name: str, mpp: float | None, mpp_from: str) -> Slide:
    properties, shown = handle.properties, printable(str(path))
    width, height = handle.dimensions
    vendor = properties.get("openslide.vendor", "")
    if max(width, height) > _MOST_SIDE or min(width, height) < 1:
        raise SlideError(f"{shown}: says that it has {width:,} x {height:,} pixels, which no scan has; copy it again")
    if path.is_dir():
        dicom.check_one_series(path, properties.get("dicom.SeriesInstanceUID", ""))
    if mpp is None:
        mpp, mpp_from = pixel_size(properties, vendor=vendor, shown=shown)
    size, mtime_ns = _size(path)
    found: Pyramid = pyramid(handle, path, vendor=vendor)
    return Slide(
        path=os.path.abspath(path),
        name=name,
        width=width,
        height=height,
        mpp=mpp,
        mpp_from=mpp_from,
        bounds=_bounds(properties, width=width, height=height),
        levels=found.levels,
        reader=found.reader,
        vendor=vendor,
        quickhash=properties.get("openslide.quickhash-1") or _digest(path),
        size=size,
        mtime_ns=mtime_ns,
        icc="openslide.icc-size" in properties,
        notes=found.notes,
    )


def _size(path: Path) -> tuple[int, int]:
    """Return a slide's bytes and when it was changed last; of a folder, those of all its files."""
    stats = [file.stat() for file in dicom.files_of(path)] if path.is_dir() else [path.stat()]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


def _bounds(properties: Any, *, width: int, height: int) -> tuple[int, int, int, int] | None:
    try:
        x, y, w, h = (int(properties[f"openslide.bounds-{part}"]) for part in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return None
    return (x, y, w, h) if 0 <= x < x + w <= width and 0 <= y < y + h <= height else None


def _digest(path: Path) -> str:
    """Return a digest of a file's size and of its first and last bytes; of a folder's first file."""
    with open(dicom.for_openslide(str(path)), "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        found = hashlib.sha256(b"%d " % size + file.read(_DIGEST_BYTES))
        file.seek(max(0, size - _DIGEST_BYTES))
        found.update(file.read(_DIGEST_BYTES))
    return found.hexdigest()
