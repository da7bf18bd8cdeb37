"""How large a slide's pixels are, as its file says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from sscl.config.data import COARSEST_MPP, FINEST_MPP
from sscl.slides.records import SlideError

_MOST_OF_TIFF = 10.0  # µm per pixel of a resolution tag: printers write 72 to 1,200 dpi there, 21 to 353 µm
_SQUARE = 0.02  # width and height may differ by so much
_UNITS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}  # the micro sign, and the Greek letter


def pixel_size(properties: Mapping[str, str], *, vendor: str, shown: str) -> tuple[float | None, str]:
    """Return the µm per pixel and where it is from; None, and what the file says that does not count, else.

    Raises:
        SlideError: width and height of a pixel differ by more than 2%.
    """
    description = properties.get("tiff.ImageDescription", "") if vendor == "generic-tiff" else ""
    if "<OME" in description and _ome(description, "X") is not None:
        source, most = "ome.PhysicalSizeX", COARSEST_MPP
        x, y = (_ome(description, axis) or math.nan for axis in "XY")
    else:
        source = {"aperio": "aperio.MPP", "generic-tiff": "tiff.XResolution"}.get(vendor, vendor)
        most = _MOST_OF_TIFF if vendor == "generic-tiff" else COARSEST_MPP
        x, y = (_number(properties.get(f"openslide.mpp-{axis}", "")) for axis in "xy")
    x, y = (x if math.isfinite(x) else y), (y if math.isfinite(y) else x)
    if not math.isfinite(x):
        return None, ""
    if not (FINEST_MPP <= x <= most and FINEST_MPP <= y <= most):
        return None, f"{source} says {x:.4g}"
    if abs(x / y - 1) > _SQUARE:
        raise SlideError(
            f"{shown}: its pixels are not square: {x:.4g} µm wide and {y:.4g} high, by {source}; leave it out, or, if "
            "that is wrong, give its µm per pixel in slides_csv (column mpp)"
        )
    return (x + y) / 2, source


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _ome(description: str, axis: str) -> float | None:
    """Return µm per pixel of the first image of an OME-TIFF."""
    size = re.search(rf'\bPhysicalSize{axis}="([^"]*)"', description)
    unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]*)"', description)
    scale = _UNITS.get(unit[1] if unit else "µm")
    return None if size is None or scale is None else _number(size[1]) * scale
