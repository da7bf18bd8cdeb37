"""Tiles that stand out in their set: blank, blurred, or of another stain.

N tiles of H x W pixels; optical density = -ln(light / glass).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.data.rows import Images
from sscl.progress import over

Floats = NDArray[np.float64]

_GLASS = 240.0
_TISSUE_DENSITY = 0.15  # mean of the channels; below it a pixel is background, as in stain.py
_DENSITY = -np.log((np.arange(256) + 1) / _GLASS)

# Ours, chosen on real colon tiles: what a person would call blank, blurred, of another stain.
BLANK_TISSUE = 0.05  # fraction of the pixels
_ONE_SHADE = 1.5  # standard deviation of the luma, grey levels: glass, a fill colour, a lost part of a slide
BLURRED_SD = 4.0  # below the median of log sharpness, in robust standard deviations
STAIN_SD = 6.0  # from the median of amount or colour
STAIN_MEASURES = ("amount of stain", "fraction of red", "fraction of blue")


@dataclass(frozen=True)
class Measures:
    """What is measured of each tile.

    Attributes:
        tissue: fraction of the pixels that show tissue, (N,).
        sharpness: variance of the luma's Laplacian, (N,).
        stain: `STAIN_MEASURES` of the tissue (mean optical density, and the fractions of it in red and in blue),
            (N, 3); NaN without tissue.
    """

    tissue: Floats
    sharpness: Floats
    stain: Floats


@dataclass(frozen=True)
class Outlier:
    """A tile that stands out: its row, the kind (blank, blurred, stain), the reason in words, the value behind it."""

    row: int
    kind: str
    reason: str
    value: float


def is_blank(tile: NDArray[np.uint8]) -> bool:
    """Return whether a tile, uint8 (H, W, 3), shows hardly any tissue, or one shade alone, of whatever colour."""
    return bool(tissue_of(tile) < BLANK_TISSUE)


def tissue_of(tile: NDArray[np.uint8]) -> float:
    """Return the fraction of the pixels of a tile that show tissue; 0 if it is of one shade."""
    if cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY).std() < _ONE_SHADE:
        return 0.0
    return float((_DENSITY[tile].mean(2) >= _TISSUE_DENSITY).mean())


def measure(images: Images, *, progress: bool = False) -> Measures:
    """Return tissue fraction, sharpness and stain of the tiles, uint8 (N, H, W, 3)."""
    tissue, sharpness = np.zeros(len(images)), np.zeros(len(images))
    stain = np.full((len(images), len(STAIN_MEASURES)), np.nan)
    for row in over(range(len(images)), total=len(images), desc="measure" if progress else None, unit="tile"):
        tile = np.ascontiguousarray(images[row])
        density = _DENSITY[tile].reshape(-1, 3)
        of_tissue = density[density.mean(1) >= _TISSUE_DENSITY]
        tissue[row] = tissue_of(tile)
        sharpness[row] = cv2.Laplacian(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()
        if tissue[row] >= BLANK_TISSUE:
            red, green, blue = of_tissue.mean(0)
            total = red + green + blue
            stain[row] = total / 3, red / total, blue / total
    return Measures(tissue, sharpness, stain)


def find_outliers(measures: Measures) -> list[Outlier]:
    """Return the tiles that stand out in their set, by row; a blank tile is not tested for blur and stain."""
    blank = measures.tissue < BLANK_TISSUE
    sharp = np.where(blank, np.nan, np.log(measures.sharpness + 1e-3))
    below = -robust_z(sharp)
    stain = np.stack([robust_z(values) for values in measures.stain.T], 1)
    found = []
    for row in range(len(blank)):
        if blank[row]:
            fraction = float(measures.tissue[row])
            found.append(Outlier(row, "blank", f"{100 * fraction:.1f}% tissue", fraction))
            continue
        if below[row] > BLURRED_SD:
            found.append(Outlier(row, "blurred", f"sharpness {below[row]:.1f} SD below the median", float(below[row])))
        which = int(np.abs(stain[row]).argmax())
        value = float(stain[row, which])
        if abs(value) > STAIN_SD:
            side = "above" if value > 0 else "below"
            reason = f"{STAIN_MEASURES[which]} {abs(value):.1f} SD {side} the median"
            found.append(Outlier(row, "stain", reason, value))
    return found


def robust_z(values: Floats) -> Floats:
    """Return how many robust standard deviations each value is from the median, (N,); 0 for NaN.

    The robust standard deviation is 1.4826 times the median distance from the median: the standard deviation of normal
    values, which outliers do not inflate. It is 0 where more than half of the values are equal; then all are 0.
    """
    known = np.isfinite(values)
    if not known.any():
        return np.zeros_like(values)
    middle = np.median(values[known])
    spread = 1.4826 * np.median(np.abs(values[known] - middle))
    if spread == 0:
        return np.zeros_like(values)
    return np.where(known, (values - middle) / spread, 0.0)
