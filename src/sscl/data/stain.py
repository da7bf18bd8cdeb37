"""Stain normalisation: the H&E appearance of every tile, or every slide, matched to a fixed reference.

The result depends only on the tile itself, or the tiles of its slide in the same set, and the reference: a test tile
never depends on the training tiles. N tiles, H = W pixels, P pixels of one tile; optical density OD = -ln(light).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.data.cache import cached_tiles
from sscl.data.groups import Groups
from sscl.data.rows import Images
from sscl.data.threads import in_threads
from sscl.data.tiles import Tiles

# Part of every cache key: raise it when the pixels that normalise_stain returns change.
_VERSION = 1

# Light through bare glass, the density below which a pixel is background, the percentiles of angle and amount, and the
# reference: those of M. Veta's MATLAB code "Staining Normalization" (2013), which most later implementations use.
_GLASS = 240.0
_BACKGROUND_DENSITY = 0.15
_ANGLE_PERCENTILES = (1.0, 99.0)
_AMOUNT_PERCENTILE = 99.0
MACENKO_STAINS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))  # haematoxylin, eosin: OD in R, G, B
MACENKO_AMOUNTS = (1.9705, 1.0308)

# Reinhard et al. 2001: RGB to the responses of the eye's cones, and their logarithms to Ruderman's l-alpha-beta.
_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LAB = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
# The target is ours: round numbers of an ordinary H&E tile's tissue. HistomicsTK's, which is much used (mean 8.74,
# SD 0.61 in l), is too bright and too wide for tissue without background: the result is harsh and clipped.
REINHARD_MEAN = (8.4, -0.10, 0.05)  # natural logarithms of 0-255
REINHARD_STD = (0.45, 0.06, 0.02)

# Ours: when a tile has too little information about its stains. On real colon tiles the angle between the stains is at
# least 6 degrees and no amount grows by more than 2.6 times.
_LEAST_TISSUE = 0.05  # of the pixels
_LEAST_ANGLE = 4.0  # degrees between haematoxylin and eosin
_LARGEST_GAIN = 5.0

_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / np.float32(_GLASS))  # of each value; + 1: no log of 0

_Pixels = NDArray[np.uint8]
_Floats = NDArray[np.float64]


def normalise_stain(images: NDArray[np.uint8], *, method: str, groups: Groups | None = None) -> NDArray[np.uint8]:
    """Return the tiles in the colours of the method's reference, uint8 (N, H, W, 3).

    `reinhard` matches mean and standard deviation of the tissue's pixels in l-alpha-beta; background is unchanged.
    `macenko` finds the directions of the two stains in optical density and their pseudo-maxima (of tissue pixels), and
    renders the same amounts with the reference's stains; haematoxylin is the one with more red density.

    Statistics are computed per tile; if groups (slides) are given, the median over the tiles of the group is used,
    which keeps the differences between tiles of one slide. A tile with too little tissue, one colour or one stain (see
    the constants above) is returned unchanged, or with the statistics of its group if that has any.

    Args:
        images: uint8, (N, H, W, 3); may be a memmap.
        method: reinhard or macenko.
        groups: str, (N,); None = each tile on its own.

    Source: Reinhard et al., Color transfer between images (IEEE CG&A 2001); Macenko et al., A method for normalizing
    histology slides for quantitative analysis (ISBI 2009). As the paper, and unlike Veta's code, the plane of the
    stains passes through the origin (no mean is taken off).
    """
    result = np.empty(images.shape, dtype=np.uint8)
    _normalise_into(result, images, method=method, groups=groups, progress=False)
    return result


def normalise_tiles(tiles: Tiles, *, method: str, cache_dir: Path | str | None = None, progress: bool = False) -> Tiles:
    """Return the tiles with `normalise_stain` applied, by group where groups are known, as one read-only memmap.

    The first call writes a `.npy` file to the cache of decoded tiles; later calls map it. Its name depends on ids,
    labels, groups, every pixel, and the method.

    Args:
        method, progress: see `normalise_stain`.
        cache_dir: see `decode_tiles`.

    Raises:
        ValueError: a cache folder that cannot be written.
    """
    digest = hashlib.sha256(repr((_VERSION, method, tiles.fingerprint)).encode())

    def fill(images: NDArray[np.uint8]) -> None:
        _normalise_into(images, tiles.images, method=method, groups=tiles.groups, progress=progress)

    images, _ = cached_tiles(digest.hexdigest()[:32], (*tiles.images.shape[:3], 3), fill, cache_dir=cache_dir)
    return replace(tiles, images=images)


def _normalise_into(
    result: NDArray[np.uint8],
    images: Images,
    *,
    method: str,
    groups: Groups | None,
    progress: bool,
) -> None:
    """Fill `result`, (N, H, W, 3), with the normalised tiles, on all cores."""
    fit, apply = _METHODS[method]
    pooled: list[_Floats | None] = []

    def measure(row: int) -> _Floats | None:
        return fit(np.asarray(images[row]).reshape(-1, 3))

    def paint(row: int) -> None:
        pixels = np.asarray(images[row]).reshape(-1, 3)
        statistics = fit(pixels) if groups is None else pooled[row]
        result[row] = (pixels if statistics is None else apply(pixels, statistics)).reshape(images.shape[1:])

    rows = range(len(images))
    if groups is not None:
        pooled = _pool(list(in_threads(measure, rows, desc="stains" if progress else None)), groups)
    for _ in in_threads(paint, rows, desc=method if progress else None):
        pass


def _pool(found: list[_Floats | None], groups: Groups) -> list[_Floats | None]:
    """Return for each tile the median statistics of its group, (K,); None if no tile of the group has any."""
    tiles_of: dict[str, list[_Floats]] = {}
    for group, statistics in zip(groups, found, strict=True):
        if statistics is not None:
            tiles_of.setdefault(str(group), []).append(statistics)
    medians: dict[str, _Floats] = {group: np.median(values, axis=0) for group, values in tiles_of.items()}
    return [medians.get(str(group)) for group in groups]


# --- Macenko ---


def _fit_macenko(pixels: _Pixels) -> _Floats | None:
    """Return the directions of haematoxylin and eosin (R, G, B each) and their pseudo-maxima, (8,)."""
    density = _DENSITY[pixels]  # (P, 3)
    tissue = density[density.min(1) >= _BACKGROUND_DENSITY]
    if len(tissue) < max(2, _LEAST_TISSUE * len(pixels)):
        return None
    _, axes = np.linalg.eigh((tissue.T @ tissue).astype(np.float64))
    plane = axes[:, :0:-1]  # (3, 2)
    # All densities are positive, and so is then the first axis, up to its sign: no angle comes near +-90 degrees.
    plane = plane * np.array([np.sign(plane[:, 0].sum()), 1.0])
    first, second = (tissue @ plane.astype(np.float32)).T
    low, high = np.arctan(np.percentile(second / first, _ANGLE_PERCENTILES))
    if np.degrees(high - low) < _LEAST_ANGLE:
        return None
    stains = plane @ np.array([[np.cos(low), np.cos(high)], [np.sin(low), np.sin(high)]])  # (3, 2)
    if stains[0, 0] < stains[0, 1]:
        stains = stains[:, ::-1]
    amounts = tissue @ np.linalg.pinv(stains).T.astype(np.float32)
    largest = np.percentile(amounts, _AMOUNT_PERCENTILE, axis=0)
    if (largest * _LARGEST_GAIN < MACENKO_AMOUNTS).any():
        return None
    return np.concatenate([stains.T.ravel(), largest])


def _apply_macenko(pixels: _Pixels, statistics: _Floats) -> _Pixels:
    """Unmix, scale and mix: one 3 x 3 matrix per tile; what neither stain explains is dropped."""
    stains, largest = statistics[:6].reshape(2, 3), statistics[6:]
    stains = stains / np.linalg.norm(stains, axis=1, keepdims=True)  # a median of directions is a little short
    gain = np.array(MACENKO_AMOUNTS) / largest
    matrix = np.linalg.pinv(stains) @ (gain[:, None] * np.array(MACENKO_STAINS))  # density in -> density out
    light = np.exp(_DENSITY[pixels] @ -matrix.astype(np.float32)) * np.float32(_GLASS) - 1
    return _to_uint8(light)


# --- Reinhard ---


def _fit_reinhard(pixels: _Pixels) -> _Floats | None:
    """Return means and standard deviations of the tissue in l-alpha-beta, (6,)."""
    tissue = pixels[_tissue_weight(pixels) == 1]
    if len(tissue) < max(2, _LEAST_TISSUE * len(pixels)):
        return None
    lab = _log_cones(tissue) @ _LAB.T.astype(np.float32)
    mean, std = lab.mean(0, dtype=np.float64), lab.std(0, dtype=np.float64)
    if (std * _LARGEST_GAIN < REINHARD_STD).any():
        return None
    return np.concatenate([mean, std])


def _apply_reinhard(pixels: _Pixels, statistics: _Floats) -> _Pixels:
    """Match mean and standard deviation; the change fades out towards the background."""
    mean, std = statistics[:3], statistics[3:]
    gain = np.array(REINHARD_STD) / std
    matrix = _LAB.T @ (gain[:, None] * np.linalg.inv(_LAB).T)  # logarithms in -> logarithms out
    offset = (REINHARD_MEAN - mean * gain) @ np.linalg.inv(_LAB).T
    logs = _log_cones(pixels)
    change = logs @ (matrix - np.eye(3)).astype(np.float32) + offset.astype(np.float32)
    logs += _tissue_weight(pixels)[:, None] * change
    return _to_uint8(np.exp(logs) @ np.linalg.inv(_LMS).T.astype(np.float32))


def _log_cones(pixels: _Pixels) -> NDArray[np.float32]:
    values = np.maximum(pixels, 1).astype(np.float32)  # no log of 0
    return np.log(values @ _LMS.T.astype(np.float32))  # type: ignore[no-any-return]


def _tissue_weight(pixels: _Pixels) -> NDArray[np.float32]:
    """Return 1 for tissue, 0 for background, by the mean density, (P,); linear in between, to avoid visible edges."""
    density = _DENSITY[pixels].mean(1)
    low = _BACKGROUND_DENSITY / 3
    return np.clip((density - low) / (_BACKGROUND_DENSITY - low), 0, 1)  # type: ignore[no-any-return]


def _to_uint8(values: NDArray[np.float32]) -> _Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# How the statistics of a tile's pixels (P, 3) are found, and how pixels are normalised with such statistics.
_METHODS = {
    "reinhard": (_fit_reinhard, _apply_reinhard),
    "macenko": (_fit_macenko, _apply_macenko),
}
