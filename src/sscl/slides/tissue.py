"""Which part of a slide is tissue: what absorbs light more than the slide's own glass does, in a colour of stain.

Optical densities are -log10(pixel / glass), in thousandths (at most 2,409, so that twelve times one is still an int16).
They add up where stains lie over each other, and a slide stained at a quarter of another's strength has a quarter of
its densities, whatever the lamp or the glass's tint.
H x W: an overview at OVERVIEW_MPP, or at the slide's own scale where that is coarser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.slides.records import Overview

OVERVIEW_MPP = 8.0  # µm per pixel: a nucleus is one pixel, a crypt ten; no finer detail decides what is tissue
LEAST_PEN = 0.001  # share of what was scanned: less is not said
NO_TISSUE = "no tissue"
DARK = "fluorescence or dark field: not H&E"

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Densities = tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.int16]]  # of red, green and blue, (H, W) each
Colour = tuple[int, int, int]  # R, G, B

_WHITE: Colour = (255, 255, 255)
_FINE = 12.0  # µm per pixel below which an overview is smoothed a little
_PADDING = 8  # a pixel whose brightest channel is no more is the black that a scanner fills with
_FLAT = 4  # grey levels that the brightest and the darkest of 3 x 3 pixels of glass differ by at most
_GLASS_SHARE = 0.005  # of what was scanned, within 2 grey levels of one: as much must be glass to be taken for it
_GLASS_DEPTH = 0.8  # glass is at least so bright, of the brightest pixels that are not filling
_BRIGHTER = 0.2  # of what was scanned: so much is not brighter than glass by more than 3 grey levels
_WEAKEST, _STRONGEST = 6, 12  # bounds of the threshold; a sixth of the stain's strength lies between
_FAINT = 80  # so weak, what absorbs less green than other colours is a tint of the glass or of the light
_SPECK, _GAP, _HOLE, _FRAGMENT = 0.002, 0.08, 0.1, 0.02  # mm²; mm; mm²; mm²
_STROKE, _RIM, _BLUR = 0.03, 0.008, 0.032  # mm: a stroke's least width, its rim, how far its ink runs


@dataclass(frozen=True)
class Tissue:
    """The tissue of a slide.

    Attributes:
        mask: bool (H, W). share: of what was scanned that is tissue. pen_share: that is pen.
        glass: R, G, B of the glass, as estimated.
        reason: why there is none; None: there is.
    """

    mask: Mask
    share: float
    pen_share: float
    glass: Colour
    reason: str | None


def find_tissue(overview: Overview) -> Tissue:
    """Return the tissue of a slide; its mask is empty where the reason is given."""
    rgb = overview.rgb
    darkest, brightest = _extremes(*cv2.split(rgb))
    black, white = overview.known & (brightest <= _PADDING), overview.known & (darkest == 255)
    scanned = overview.known & ~white & (cv2.dilate(black.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)
    if overview.mpp < _FINE:  # a pyramid's level was compressed; coarser pixels are means of more, or all there is
        rgb = np.asarray(cv2.GaussianBlur(rgb, (3, 3), 0), dtype=np.uint8)
    inner = cv2.erode(scanned.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # nothing of its border is smoothed in
    glass, seen = _glass(rgb, inner if inner.any() else scanned, white)
    if glass == _WHITE:
        scanned |= white
    if _is_dark(rgb, scanned, glass):
        return Tissue(np.zeros_like(overview.known), 0.0, 0.0, (0, 0, 0), DARK)
    density = _densities(rgb, glass)
    pen = _pen(density, scanned, overview.mpp)
    mask = _cleaned(_stained(density, scanned & ~pen), scanned, overview.mpp) & ~pen
    inside = max(int(scanned.sum()), 1)
    dark = not seen and black.sum() > 0.5 * overview.known.sum()
    reason = None if mask.any() else DARK if dark else NO_TISSUE
    return Tissue(mask, float(mask.sum() / inside), float(pen.sum() / inside), glass, reason)


def _glass(rgb: Bytes, scanned: Mask, white: Mask) -> tuple[Colour, bool]:
    """Return the colour of the glass, and whether glass was seen.

    Glass is the brightest grey that many pixels of even neighbourhoods have. Pure white is no glass: scanners fill what
    they did not scan with it. Only where no other is found is it the glass (a scanner may saturate), and where there
    is no white either the brightest tissue is: slides that are tissue everywhere have gaps, lumens and fat.
    """
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    levels = np.bincount(grey[scanned], minlength=256)
    total = int(levels.sum())
    if not total:
        return (_WHITE, True) if white.any() else ((0, 0, 0), False)
    top = int(np.searchsorted(np.cumsum(levels), 0.995 * total))
    kernel = np.ones((3, 3), np.uint8)
    even = scanned & (cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, kernel) <= _FLAT)
    counts = np.bincount(grey[even], minlength=256)
    near = np.convolve(counts, np.ones(5), mode="same")
    near[: int(_GLASS_DEPTH * top)] = 0
    enough = max(_GLASS_SHARE * total, 0.2 * near.max())
    peaks = np.flatnonzero((near >= enough) & (near >= np.roll(near, 1)) & (near > np.roll(near, -1)))
    brighter = total - np.cumsum(levels)  # than each grey
    peaks = peaks[brighter[np.minimum(peaks + 3, 255)] < _BRIGHTER * total]
    if len(peaks):
        found = even & (np.abs(grey.astype(np.int16) - int(peaks[-1])) <= 2)
        return _colour(np.median(rgb[found], axis=0)), True
    if white.sum() > 0.05 * white.size:
        return _WHITE, True
    return _colour(np.percentile(rgb[scanned], 99.5, axis=0)), False


def _extremes(red: NDArray[Any], green: NDArray[Any], blue: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the least and the largest of three channels; numpy takes ten times as long along a last axis."""
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def _colour(values: NDArray[np.float64]) -> Colour:
    red, green, blue = (round(float(value)) for value in values)
    return red, green, blue


def _is_dark(rgb: Bytes, scanned: Mask, glass: Colour) -> bool:
    """Return whether most of what was scanned lets no light of some colour through: no tissue does that."""
    darkest, _ = _extremes(*cv2.split(rgb))
    light = darkest[scanned]
    return bool(len(light)) and (max(glass) < 40 or float((light < 0.12 * max(glass)).mean()) > 0.5)


def _densities(rgb: Bytes, glass: Colour) -> Densities:
    """Return the optical densities of red, green and blue in thousandths, each int16 (H, W); 0 where brighter."""
    level = np.arange(256)[:, None] + 1
    table = np.maximum(np.rint(-1000 * np.log10(level / (np.array(glass) + 1))), 0).astype(np.int16)
    return table[rgb[:, :, 0], 0], table[rgb[:, :, 1], 1], table[rgb[:, :, 2], 2]


def _stained(density: Densities, where: Mask) -> Mask:
    """Return what has the colour of a stain: dust, bubbles, cover slips and black pen darken all colours alike."""
    least, most = _extremes(*density)
    colour, strength = most - least, (density[0] + density[1] + density[2]) // 3
    stained = where & (colour > _WEAKEST) & (strength > _WEAKEST) & (5 * colour > strength)
    stained &= (6 * density[1] > 5 * most) | (strength > _FAINT)
    if stained.any():
        threshold = np.clip(np.median(strength[stained]) / 6, _WEAKEST, _STRONGEST)
        stained &= strength > threshold
    return np.asarray(stained, dtype=np.bool_)


def _pen(density: Densities, scanned: Mask, mpp: float) -> Mask:
    """Return what is marker: dense, of a hue that stains do not have, and what adjoins it of that hue, however faint.

    Of H&E's densities green is the largest, red a tenth of it or more, blue about half (0.1 to 0.9). Green ink absorbs
    far more red than green, and no stain does; blue ink, where it is dense, about as much; red ink hardly any red, and
    blue nearly as much as green; black all alike. Blood comes near red ink in single pixels, and haematoxylin alone
    near blue ink, so of these only strokes count that are as wide as a pen's.
    """
    red, green, blue = density
    strength = (red + green + blue) // 3
    least, most = _extremes(*density)
    greenish = (2 * red > 3 * green) & (strength > 120)
    reddish = (4 * blue > 3 * green) & (4 * red < green) & (strength > 120)
    crimson = (5 * blue > 2 * green) & (12 * red < green) & (strength > 250)
    black = (10 * (most - least) < 3 * strength) & (strength > 350)
    bluish = (red > green - green // 20) & (4 * blue < 3 * red) & (strength > 120)
    strokes = (
        _wide((reddish | crimson | black) & scanned, mpp)
        | _dense(_wide(bluish & scanned, mpp), strength > 280)
        | _without_small(greenish & scanned, _SPECK / (mpp / 1000) ** 2)
    ).astype(np.uint8)
    if not strokes.any():
        return np.zeros_like(scanned)
    faint = (strength > _WEAKEST) & ((red > green + green // 20) | ((4 * blue > 3 * green) & (4 * red < green)))
    near = (cv2.dilate(strokes, _disc(_BLUR, mpp)) > 0) & faint
    return np.asarray((near | (cv2.dilate(strokes, _disc(_RIM, mpp)) > 0)) & scanned, dtype=np.bool_)


def _wide(mask: Mask, mpp: float) -> Mask:
    """Return the parts of a mask that are as wide as a pen's stroke."""
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _disc(_STROKE / 2, mpp)), dtype=np.bool_)


def _dense(mask: Mask, dense: Mask) -> Mask:
    """Return the pieces of a mask of which three tenths or more are dense."""
    number, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    pixels = np.bincount(labels[mask], minlength=number)
    keep = (pixels > 0) & (np.bincount(labels[mask & dense], minlength=number) >= 0.3 * pixels)
    return np.asarray(keep[labels], dtype=np.bool_)


def _disc(radius_mm: float, mpp: float) -> Bytes:
    """Return a disc for morphology, of at least one pixel."""
    radius = round(1000 * radius_mm / mpp)
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), dtype=np.uint8)


def _cleaned(stained: Mask, scanned: Mask, mpp: float) -> Mask:
    """Return tissue as whole pieces: no specks, gaps of fat and fibres closed, lumens filled, no fragments.

    What reaches the border of what was scanned is no lumen.
    """
    pixel = (mpp / 1000) ** 2
    mask = _without_small(stained, _SPECK / pixel)
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _disc(_GAP / 2, mpp)) > 0
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    lumen = stats[:, cv2.CC_STAT_AREA] < _HOLE / pixel
    lumen[labels[~scanned]] = False
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        lumen[border] = False
    return _without_small((mask | lumen[labels]) & scanned, _FRAGMENT / pixel)


def _without_small(mask: Mask, least: float) -> Mask:
    """Return a mask without its pieces of fewer than `least` pixels."""
    if least <= 1:
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least
    keep[0] = False
    return np.asarray(keep[labels], dtype=np.bool_)
