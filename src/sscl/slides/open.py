"""What a slide is: its facts, or in one line why it is none that can be used."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sscl.file_kinds import binary_kind, text_kind
from sscl.places import missing, printable
from sscl.reading import kind_of, why_unreadable
from sscl.slides.libraries import openslide
from sscl.slides.records import Level, Slide, SlideError
from sscl.slides.scaling import LEAST_MPP, MOST_MPP
from sscl.words import short

SUFFIXES = frozenset([".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".dcm"])
_MOST_OF_TIFF = 10.0  # µm per pixel of a resolution tag: printers write 72 to 1,200 dpi there, 21 to 353 µm
_SQUARE = 0.02  # x and y may differ by so much
_MAGIC = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP"}
_DIGEST_BYTES = 2**16


def is_slide(path: Path) -> bool:
    """Return whether something looks like a slide by its name; of a folder, whether it is a DICOM slide's."""
    if path.is_dir():
        try:
            names = [entry.name for entry in os.scandir(path) if not entry.name.startswith(".")]
        except OSError:
            return False
        return bool(names) and all(name.lower().endswith(".dcm") for name in names)
    return path.suffix.lower() in SUFFIXES


def open_slide(path: Path, *, name: str, mpp: float | None = None, mpp_from: str = "given") -> Slide:
    """Return what a slide's file says of it.

    Args:
        path: the file, or the folder of a DICOM slide.
        name: of the slide in its index.
        mpp: µm per pixel that a user gives; it wins over the file's.
        mpp_from: where that is from.

    Raises:
        SlideError: it is no slide, is damaged, or its pixels are not square; one line.
        ValueError: openslide is not installed.
    """
    shown = printable(str(path))
    if mpp is not None and not LEAST_MPP <= mpp <= MOST_MPP:
        raise SlideError(f"{shown}: {mpp_from} gives {mpp:g} µm per pixel, allowed is {LEAST_MPP:g} to {MOST_MPP:g}")
    file = _file_of(path)
    library = openslide()
    try:
        slide = library.OpenSlide(str(file))
    except library.OpenSlideUnsupportedFormatError:
        raise SlideError(f"{shown}: {_what_else(file)}") from None
    except Exception as error:  # whatever its libraries raise is an error of this file
        raise SlideError(f"{shown}: openslide says: {short(str(error), most=200)}") from None
    try:
        return _facts(slide, path, name=name, mpp=mpp, mpp_from=mpp_from)
    except SlideError:
        raise
    except Exception as error:
        raise SlideError(f"{shown}: openslide says: {short(str(error), most=200)}") from None
    finally:
        slide.close()


def _file_of(path: Path) -> Path:
    """Return the file that openslide is given."""
    shown = printable(str(path))
    try:
        mode = path.stat().st_mode
        if path.is_dir():
            files = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == ".dcm")
            if not files:
                raise SlideError(f"{shown}: is a folder without .dcm files, not a slide")
            return files[0]
        if kind_of(mode) is not None:
            raise SlideError(f"{shown}: is a {kind_of(mode)}, not a slide")
        if not path.stat().st_size:
            raise SlideError(f"{shown}: is empty (0 bytes); copy it again")
    except FileNotFoundError as error:
        if path.is_symlink():
            raise SlideError(f"{shown}: {why_unreadable(path, error)}") from None
        raise SlideError(missing(path, "slide")) from None
    except OSError as error:
        raise SlideError(f"{shown}: {why_unreadable(path, error)}") from None
    return path


def _what_else(path: Path) -> str:
    """Return what a file is that openslide does not know."""
    with path.open("rb") as file:
        start = file.read(200)
    for mark, kind in _MAGIC.items():
        if start.startswith(mark):
            return f"is a plain image ({kind}), not a slide; for a folder of tiles use data.source=folder"
    found = text_kind(start) or binary_kind(start[:8])
    if found is not None:
        return f"is {found[0]}, not a slide; {found[1]}"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "is a plain TIFF (without tiles), not a slide; for a folder of tiles use data.source=folder"
    return "is no slide that openslide knows"


def _facts(slide: Any, path: Path, *, name: str, mpp: float | None, mpp_from: str) -> Slide:
    properties, shown = slide.properties, printable(str(path))
    width, height = slide.dimensions
    vendor = properties.get("openslide.vendor", "")
    if mpp is None:
        mpp, mpp_from = _mpp(properties, vendor=vendor, shown=shown)
    stat = path.stat()
    return Slide(
        path=os.path.abspath(path),
        name=name,
        width=width,
        height=height,
        mpp=mpp,
        mpp_from=mpp_from,
        bounds=_bounds(properties, width=width, height=height),
        levels=_levels(slide.level_dimensions, slide.level_downsamples),
        reader="openslide",
        vendor=vendor,
        quickhash=properties.get("openslide.quickhash-1") or _digest(path),
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        icc="openslide.icc-size" in properties,
    )


def _levels(sizes: tuple[tuple[int, int], ...], factors: tuple[float, ...]) -> tuple[Level, ...]:
    width, height = sizes[0]
    found = []
    for (w, h), factor in zip(sizes, factors, strict=True):
        whole = max(1, round(factor))
        if abs(width / whole - w) <= 1.5 and abs(height / whole - h) <= 1.5:
            found.append(Level(width=w, height=h, factor=float(whole), exact=factor == whole))
        else:
            found.append(Level(width=w, height=h, factor=factor, exact=False))
    return tuple(found)


def _mpp(properties: Mapping[str, str], *, vendor: str, shown: str) -> tuple[float | None, str]:
    """Return the file's µm per pixel and where it is from; None and what it says if that does not count."""
    source = {"aperio": "aperio.MPP", "generic-tiff": "tiff.XResolution"}.get(vendor, vendor)
    most = _MOST_OF_TIFF if vendor == "generic-tiff" else MOST_MPP
    found = []
    for axis in "xy":
        try:
            found.append(float(properties.get(f"openslide.mpp-{axis}", "nan")))
        except ValueError:
            found.append(math.nan)
    x, y = found
    if not (math.isfinite(x) and math.isfinite(y)):
        return None, ""
    if not (LEAST_MPP <= x <= most and LEAST_MPP <= y <= most):
        return None, f"{source} says {x:g}"
    if abs(x / y - 1) > _SQUARE:
        raise SlideError(
            f"{shown}: its pixels are not square: {x:g} µm wide and {y:g} high, by {source}; "
            "give its µm per pixel in slides_csv if that is wrong, or leave the slide out"
        )
    return (x + y) / 2, source


def _bounds(properties: Mapping[str, str], *, width: int, height: int) -> tuple[int, int, int, int] | None:
    try:
        x, y, w, h = (int(properties[f"openslide.bounds-{part}"]) for part in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return None
    return (x, y, w, h) if 0 <= x < x + w <= width and 0 <= y < y + h <= height else None


def _digest(path: Path) -> str:
    """Return a digest of a file's size and of its first and last bytes."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        found = hashlib.sha256(b"%d " % size + file.read(_DIGEST_BYTES))
        file.seek(max(0, size - _DIGEST_BYTES))
        found.update(file.read(_DIGEST_BYTES))
    return found.hexdigest()
