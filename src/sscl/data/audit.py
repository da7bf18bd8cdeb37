"""What a reader of results must know about the tiles: do twins lie on both sides of a split, which tiles are odd.

N tiles of H x W pixels; optical density = -ln(light / glass).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sscl.data.duplicates import Pair
from sscl.data.rows import Images
from sscl.data.tiles import Tiles

Floats = NDArray[np.float64]

_GLASS = 240.0
_TISSUE_DENSITY = 0.15  # mean of the channels; below it a pixel is background, as in stain.py
_DENSITY = -np.log((np.arange(256) + 1) / _GLASS)

# Ours, chosen on real colon tiles: what a person would call blank, blurred, of another stain.
BLANK_TISSUE = 0.05  # share of the pixels
BLURRED_DEVIATIONS = 4.0  # below the median of log sharpness
STAIN_DEVIATIONS = 6.0  # from the median of amount or colour
STAIN_PARTS = ("amount of stain", "share of red", "share of blue")


@dataclass(frozen=True)
class Measures:
    """What is measured of each tile.

    Attributes:
        tissue: share of the pixels that hold tissue, (N,).
        sharpness: variance of the luma's Laplacian, (N,).
        stain: of the tissue, mean optical density, and the shares of it in red and in blue, (N, 3); NaN without tissue.
    """

    tissue: Floats
    sharpness: Floats
    stain: Floats


@dataclass(frozen=True)
class Flag:
    """A tile that stands out: its row, the kind (blank, blurred, stain), the reason in words, the value behind it."""

    row: int
    kind: str
    reason: str
    value: float


def measure(images: Images, *, progress: bool = False) -> Measures:
    """Return tissue share, sharpness and stain of the tiles, uint8 (N, H, W, 3)."""
    tissue, sharpness = np.zeros(len(images)), np.zeros(len(images))
    stain = np.full((len(images), len(STAIN_PARTS)), np.nan)
    for row in tqdm(range(len(images)), desc="measure", unit=" tiles", disable=not progress, leave=False):
        tile = np.ascontiguousarray(images[row])
        density = _DENSITY[tile].reshape(-1, 3)
        held = density[density.mean(1) >= _TISSUE_DENSITY]
        tissue[row] = len(held) / len(density)
        sharpness[row] = cv2.Laplacian(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()
        if tissue[row] >= BLANK_TISSUE:
            red, green, blue = held.mean(0)
            total = red + green + blue
            stain[row] = total / 3, red / total, blue / total
    return Measures(tissue, sharpness, stain)


def flag_tiles(measures: Measures) -> list[Flag]:
    """Return the tiles that stand out in their set, by row; blank ones are not judged further."""
    blank = measures.tissue < BLANK_TISSUE
    sharp = np.where(blank, np.nan, np.log(measures.sharpness + 1e-3))
    below = -robust_deviations(sharp)
    stain = np.stack([robust_deviations(values) for values in measures.stain.T], 1)
    flags = []
    for row in range(len(blank)):
        if blank[row]:
            share = float(measures.tissue[row])
            flags.append(Flag(row, "blank", f"{100 * share:.1f}% tissue", share))
            continue
        if below[row] > BLURRED_DEVIATIONS:
            reason = f"{below[row]:.1f} deviations less sharp than the median"
            flags.append(Flag(row, "blurred", reason, float(below[row])))
        part = int(np.abs(stain[row]).argmax())
        if abs(stain[row, part]) > STAIN_DEVIATIONS:
            far = float(stain[row, part])
            side = "above" if far > 0 else "below"
            flags.append(Flag(row, "stain", f"{STAIN_PARTS[part]} {abs(far):.1f} deviations {side} the median", far))
    return flags


def robust_deviations(values: Floats) -> Floats:
    """Return how many deviations each value is from the median, (N,); 0 for NaN and where more than half are equal.

    A deviation is 1.4826 times the median distance from the median, which for normal values is the standard deviation,
    and which the outliers themselves do not widen.
    """
    known = np.isfinite(values)
    if not known.any():
        return np.zeros_like(values)
    middle = np.median(values[known])
    spread = 1.4826 * np.median(np.abs(values[known] - middle))
    if spread == 0:
        return np.zeros_like(values)
    return np.where(known, (values - middle) / spread, 0.0)


def crossing(pairs: Sequence[Pair], part_of: NDArray[np.str_], *, held_out: Collection[str]) -> list[Pair]:
    """Return the pairs with a held-out tile on one side and a tile of another part on the other.

    Those of kind `embedding` are only alike, and are left out.

    Args:
        part_of: the part of each tile (train, test, ...), (N,).
        held_out: the parts that must have no twin elsewhere.
    """
    return [
        pair
        for pair in pairs
        if pair.kind != "embedding"
        and part_of[pair.first] != part_of[pair.second]
        and (part_of[pair.first] in held_out or part_of[pair.second] in held_out)
    ]


def tiles_with_twins(
    clusters: NDArray[np.int64], part_of: NDArray[np.str_], *, held_out: Collection[str]
) -> dict[str, dict[str, int]]:
    """Return, for each held-out and each other part, how many tiles of the first have a twin (or its twin) there."""
    parts = list(dict.fromkeys(part_of.tolist()))
    found: dict[str, dict[str, int]] = {}
    for held in (part for part in parts if part in held_out):
        own = clusters[part_of == held]
        found[held] = {part: int(np.isin(own, clusters[part_of == part]).sum()) for part in parts if part != held}
    return found


def straddling_groups(parts: Mapping[str, Tiles]) -> dict[str, dict[str, int]]:
    """Return the groups (slides, patients) with tiles in several of the parts, and how many in each."""
    counts: dict[str, dict[str, int]] = {}
    for name, tiles in parts.items():
        if tiles.groups is not None:
            for group, count in zip(*np.unique(tiles.groups, return_counts=True), strict=True):
                counts.setdefault(str(group), {})[name] = int(count)
    return {group: where for group, where in counts.items() if len(where) > 1}
