"""Procedural H&E tiles of colorectal polyps in the layout of MHIST, with truth masks and slide ids.

What tells the classes apart is the shape of the crypts' lowest part, as in the real lesions. A hyperplastic
polyp (HP) has narrow, evenly spaced crypt bases and is serrated in the upper part only; a sessile serrated
adenoma (SSA) has broad, dilated, boot- or inverted-T-shaped bases and is serrated down to the base
(WHO Classification of Tumours: Digestive System, 5th ed., 2019). Stain, brightness, the amounts of nuclei,
mucin and lumen vary by slide and by tile in the same way for both, so that colour does not tell the class.

Geometry is in tile units (the tile is 1 wide) in the frame of the crypts: u runs along the row of crypts,
v from their bases (v = 0) to the surface. Shapes are painted as haematoxylin and eosin concentrations, which
become RGB by the Beer-Lambert law. Every tile is a function of (seed, index) alone and every slide of
(seed, slide): counts, workers and order change nothing.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

CLASSES = ("HP", "SSA")
TILES_PER_SLIDE = 8
MIN_SIZE_PX, MAX_SIZE_PX = 32, 1024

_ANNOTATIONS_HEADER = (
    "Image Name",
    "Majority Vote Label",
    "Number of Annotators who Selected SSA (Out of 7)",
    "Partition",
)
_TILE_STREAM, _SLIDE_STREAM = 0, 1
_DRAWING_PX = 448  # small tiles are drawn at least this large, then averaged down
_FRACTION_BITS = 4  # OpenCV's fixed-point sub-pixel coordinates
_PARALLEL_FROM = 192  # fewer tiles are drawn before worker processes have started

_HAEMATOXYLIN = np.array([0.563, 0.720, 0.406])  # optical density of R, G, B per unit of stain
_EOSIN = np.array([0.216, 0.801, 0.558])
_BASE_HEIGHT = 0.17  # the class-deciding band, from the crypt bases upwards
_THICKNESS = 0.043  # of the epithelium

FloatArray = NDArray[np.float64]
Canvas = NDArray[np.float32]  # (S, S, 2): haematoxylin, eosin


@dataclass(frozen=True)
class SyntheticTile:
    """One drawn tile: image uint8 (H, W, 3), mask bool (H, W) of the crypt bases, label 1 = SSA, votes for SSA of
    7, slide id, and the ambiguity in [0, 1] from which shape and votes were drawn (1 = halfway between classes)."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    label: int
    votes: int
    slide: str
    ambiguity: float


@dataclass(frozen=True)
class _Slide:
    """What the tiles of one slide share: stain vectors (2, 3), stain strengths (2,), background (3,), blur, mucin."""

    vectors: FloatArray
    strengths: FloatArray
    background: FloatArray
    blur: float
    mucin: FloatArray


@dataclass(frozen=True)
class _Crypt:
    """Outlines in (u, v), each (M, 2) and running from the top on one side round the base to the other top."""

    outer: FloatArray
    lumen: FloatArray


def draw_tile(index: int, *, seed: int = 0, size_px: int = 224, ssa_fraction: float = 0.5) -> SyntheticTile:
    """Return tile `index` of the endless series that `seed` and `ssa_fraction` define.

    Args:
        index: number of the tile, >= 0; tiles 8 s to 8 s + 7 are from slide s.
        seed: 0 to 2**63 - 1.
        size_px: width and height, 32 to 1024; the same morphology at every size.
        ssa_fraction: share of SSA among the tiles, 0 to 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_range("index", index, 0, 2**63 - 1)
    _check_range("seed", seed, 0, 2**63 - 1)
    _check_range("size_px", size_px, MIN_SIZE_PX, MAX_SIZE_PX)
    _check_range("ssa_fraction", ssa_fraction, 0, 1)
    slide = index // TILES_PER_SLIDE
    label = _label(index, seed=seed, ssa_fraction=ssa_fraction)
    rng = _generator(seed, index, _TILE_STREAM)
    ambiguity = float(rng.uniform())
    votes = _draw_votes(label, ambiguity, rng)
    # 0 is a textbook HP, 1 a textbook SSA; full ambiguity is halfway for either label.
    severity = 1 - ambiguity / 2 if label else ambiguity / 2
    image, mask = _render(severity, _draw_slide(seed, slide), rng, size_px=size_px)
    return SyntheticTile(image, mask, label, votes, f"slide_{slide:04d}", ambiguity)


def write_synthetic(
    root: str | Path,
    *,
    count: int,
    size_px: int = 224,
    seed: int = 0,
    ssa_fraction: float = 0.5,
    test_fraction: float = 0.3,
    workers: int | None = None,
    progress: bool = False,
) -> None:
    """Write a set of tiles under `root` in the layout of MHIST, plus `masks/` and `slides.csv`.

    The folder appears complete or not at all. Whole slides (8 tiles each) go to train or test. The files are the
    same whatever the number of workers.

    Args:
        root: folder to make; may exist only if it is empty.
        count: number of tiles; each class must occur in train and in test (16 are enough at the default fractions).
        workers: processes; None takes every core for large sets. Call from an importable main, as for any
            spawned process pool.
        size_px, seed, ssa_fraction: as for `draw_tile`.
        test_fraction: share of slides in the test partition.

    Raises:
        ValueError: an argument is out of range, too few tiles, or root is taken or not writable.
    """
    _check_range("seed", seed, 0, 2**63 - 1)
    _check_range("size_px", size_px, MIN_SIZE_PX, MAX_SIZE_PX)
    _check_range("count", count, 1, 10**7)
    if workers is not None:
        _check_range("workers", workers, 1, 1024)
    for name, value in (("ssa_fraction", ssa_fraction), ("test_fraction", test_fraction)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: got {value}, must lie strictly between 0 and 1")
    partitions = _partitions(count, seed=seed, ssa_fraction=ssa_fraction, test_fraction=test_fraction)
    root = Path(root)
    if root.is_symlink() or (root.exists() and not (root.is_dir() and not any(root.iterdir()))):
        raise ValueError(
            f"{root}: already exists and is not an empty folder; choose another folder or remove it"
        )
    partial_root = root.absolute().parent / f".{root.absolute().name}.partial-{os.getpid()}"
    try:
        partial_root.parent.mkdir(parents=True, exist_ok=True)
        partial_root.mkdir()
    except OSError as error:
        raise ValueError(f"{root}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        _write_files(
            partial_root,
            partitions,
            partial(draw_tile, seed=seed, size_px=size_px, ssa_fraction=ssa_fraction),
            workers=workers,
            progress=progress,
        )
        os.replace(partial_root, root)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)


# ---- which tile is what


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: got {value}, must lie between {low} and {high}")


def _generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """Return a counter-based generator: the same numbers whatever was drawn elsewhere."""
    key = np.array([seed, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))


def _steps(rank: int, fraction: float) -> bool:
    """Say whether item `rank` is chosen when `fraction` of an endless row is chosen as evenly as can be."""
    return int((rank + 1) * fraction + 0.5 + 1e-9) > int(rank * fraction + 0.5 + 1e-9)


def _label(index: int, *, seed: int, ssa_fraction: float) -> int:
    """Return the class of a tile: the share holds in every slide as nearly as its 8 tiles allow, in random order."""
    slide, place = divmod(index, TILES_PER_SLIDE)
    order = _generator(seed, slide, _SLIDE_STREAM).permutation(TILES_PER_SLIDE)
    return int(_steps(slide * TILES_PER_SLIDE + int(order[place]), ssa_fraction))


def _partitions(count: int, *, seed: int, ssa_fraction: float, test_fraction: float) -> list[str]:
    """Return train or test for every tile, by whole slides; an error if a class is missing from either."""
    partitions = [
        "test" if _steps(index // TILES_PER_SLIDE, test_fraction) else "train" for index in range(count)
    ]
    found = {(part, _label(i, seed=seed, ssa_fraction=ssa_fraction)) for i, part in enumerate(partitions)}
    for part in ("train", "test"):
        for label, name in enumerate(CLASSES):
            if (part, label) not in found:
                raise ValueError(
                    f"count: {count} tiles leave no {name} in {part} at ssa_fraction {ssa_fraction} and "
                    f"test_fraction {test_fraction} ({TILES_PER_SLIDE} tiles a slide); ask for more tiles"
                )
    return partitions


def _draw_votes(label: int, ambiguity: float, rng: np.random.Generator) -> int:
    """Return how many of 7 annotators say SSA: each dissents from the label with a chance that grows with ambiguity,
    and the majority never does. About 1 tile in 6 becomes 4-to-3, as in MHIST."""
    chance = 0.5 * ambiguity**1.4
    weights = np.array([c * chance**k * (1 - chance) ** (7 - k) for k, c in enumerate((1, 7, 21, 35))])
    dissent = int(np.searchsorted(np.cumsum(weights) / weights.sum(), rng.uniform()))
    return 7 - dissent if label else dissent


def _draw_slide(seed: int, slide: int) -> _Slide:
    """Return the look of a slide; none of it depends on class."""
    rng = _generator(seed, slide, _SLIDE_STREAM)
    rng.permutation(TILES_PER_SLIDE)  # the order of its classes, see _label
    vectors = np.stack([_HAEMATOXYLIN, _EOSIN]) + rng.normal(0, [[0.05], [0.035]], (2, 3))
    return _Slide(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        strengths=rng.uniform([0.8, 0.75], [1.2, 1.3]),
        background=rng.uniform(0.9, 0.97) + rng.uniform(-0.015, 0.015, 3),
        blur=float(rng.uniform(0.0012, 0.0028)),
        mucin=rng.uniform([0.10, 0.03], [0.26, 0.12]),
    )


# ---- shapes


def _smooth_step(x: FloatArray) -> FloatArray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _profile(
    v: FloatArray, *, stem: float, top: float, foot: float, foot_height: float, closure: float
) -> FloatArray:
    """Return the half-width of a crypt at height v above its lowest point, on one side, (M,)."""
    width = stem + (top - stem) * _smooth_step((v - 0.1) / 0.6)
    width = width + foot / (1 + np.exp(np.clip((v - foot_height) / 0.012, -30, 30)))
    return width * np.sqrt(1 - (1 - np.clip(v / closure, 0, 1)) ** 2)


def _resample(points: FloatArray, spacing: float) -> FloatArray:
    """Return points at even distances along a curve."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0, length[-1], max(int(length[-1] / spacing), 8))
    return np.stack([np.interp(at, length, points[:, 0]), np.interp(at, length, points[:, 1])], axis=1)


def _normals(points: FloatArray) -> FloatArray:
    """Return unit vectors that point to the inside of an outline (it runs right top, base, left top), (M, 2)."""
    tangent = np.gradient(points, axis=0)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)


def _draw_crypts(severity: float, rng: np.random.Generator) -> list[_Crypt]:
    """Return a row of crypts that fills the view from side to side; severity 0 is HP, 1 is SSA."""

    def blend(hp: float, ssa: float, jitter: float = 0.0) -> float:
        return float(hp + (ssa - hp) * severity + rng.uniform(-jitter, jitter))

    spacing = blend(0.265, 0.335, 0.035)
    scatter = blend(0.012, 0.03)
    centres = np.arange(-0.85, 0.85, spacing) + rng.uniform(-0.5, 0.5) * spacing
    centres = centres + rng.normal(0, scatter, len(centres))
    n = len(centres)
    own = np.clip(severity + rng.normal(0, 0.07, n), 0, 1)
    stems = 0.056 + 0.022 * own + rng.normal(0, 0.003, n)
    tops = blend(0.103, 0.106, 0.012) + rng.normal(0, 0.005, n)
    # Boots: one foot is long (L) or both (inverted T); what two neighbours want must fit between them.
    feet = own[:, None] * rng.uniform(0.012, 0.03, (n, 2)) + rng.uniform(-0.004, 0.004, (n, 2))
    long_foot = rng.uniform(0.07, 0.115, (n, 2)) * own[:, None] ** 1.5
    kind = rng.integers(0, 3, n)
    feet += long_foot * np.stack([kind != 1, kind != 0], axis=1)
    for k in range(n - 1):
        room = centres[k + 1] - centres[k] - stems[k] - stems[k + 1] - 0.035
        wanted = max(feet[k, 1], 0) + max(feet[k + 1, 0], 0)
        if wanted > room:
            feet[k, 1], feet[k + 1, 0] = np.array([feet[k, 1], feet[k + 1, 0]]) * max(room, 0) / wanted
    depth = rng.normal(0, 1, n) * blend(0.008, 0.018)
    openness = rng.uniform(-0.006, 0.008)
    serration_start = 0.46 - 0.62 * own
    amplitude = rng.uniform(0.016, 0.023)
    wave = rng.uniform([0.0, 0.5, 0], [0.02, 1.0, 2 * np.pi])

    crypts = []
    for k in range(n):
        v = np.concatenate([np.linspace(0, 0.03, 14)[:-1], np.linspace(0.03, 1.25, 200)])
        own_wave = wave + rng.normal(0, [0.003, 0.02, 0.2])
        height = 0.10 + 0.055 * own[k] + rng.normal(0, 0.005)
        sides, inner_sides = [], []
        thickness = _THICKNESS - openness
        for side, sign in ((1, 1.0), (0, -1.0)):
            foot = float(feet[k, side])
            outer = _profile(
                v, stem=stems[k], top=tops[k], foot=foot, foot_height=height, closure=height * 0.5
            )
            inner = _profile(
                v,
                stem=max(stems[k] - thickness, 0.007),
                top=tops[k] - thickness,
                foot=foot,
                foot_height=height - 2 * thickness,
                closure=max(height * 0.5 - thickness, 0.015),
            )
            sides.append(np.stack([sign * outer, v], axis=1))
            inner_sides.append(np.stack([sign * inner, v + thickness], axis=1))

        def place(curve: FloatArray, k: int = k, own_wave: FloatArray = own_wave) -> FloatArray:
            bend = own_wave[0] * np.sin(2 * np.pi * curve[:, 1] / own_wave[1] + own_wave[2])
            return curve + np.stack([centres[k] + bend, np.full(len(curve), depth[k])], axis=1)

        outer_curve = _resample(np.concatenate([sides[0][::-1], sides[1][1:]]), 0.006)
        lumen_curve = _resample(np.concatenate([inner_sides[0][::-1], inner_sides[1][1:]]), 0.004)
        lumen_curve = _serrate(lumen_curve, start=float(serration_start[k]), amplitude=amplitude, rng=rng)
        crypts.append(_Crypt(outer=place(outer_curve), lumen=place(lumen_curve)))
    return crypts


def _serrate(curve: FloatArray, *, start: float, amplitude: float, rng: np.random.Generator) -> FloatArray:
    """Return a lumen outline with saw teeth (rounded tufts, sharp clefts) above height `start`."""
    teeth = rng.normal(0.052, 0.009, 80).clip(0.03)
    phase = np.interp(np.arange(len(curve)) * 0.004, np.cumsum(teeth), np.arange(80)) + rng.uniform()
    saw = 0.55 - 1.3 * np.abs(np.sin(np.pi * phase))
    saw *= np.interp(phase, np.arange(82), rng.uniform(0.6, 1.15, 82))
    gate = 1 / (1 + np.exp(-(curve[:, 1] - start) / 0.035))
    limit = np.where(saw < 0, np.minimum(amplitude, 0.8 * np.abs(curve[:, 0])), amplitude)
    return curve - _normals(curve) * (saw * gate * limit)[:, None]


# ---- painting


@dataclass(frozen=True)
class _View:
    """The affine map from crypt coordinates to the pixels of a square canvas."""

    angle: float
    centre_v: float
    size: int

    def pixels(self, points: FloatArray) -> NDArray[np.int32]:
        """Return fixed-point pixel coordinates of points (..., 2)."""
        return np.rint(self.unit(points) * (self.size * 2**_FRACTION_BITS)).astype(np.int32)

    def unit(self, points: FloatArray) -> FloatArray:
        """Return tile coordinates (0 to 1 inside the tile) of points (..., 2)."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        u, v = points[..., 0], points[..., 1] - self.centre_v
        return np.stack([0.5 + c * u - s * v, 0.5 + s * u + c * v], axis=-1)


def _ellipses(
    centres: FloatArray, axes: FloatArray, directions: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Return slightly irregular ellipses as polygons (n, 12, 2); axes (n, 2), the first along `directions` (n, 2)."""
    t = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radius = 1 + rng.normal(0, 0.08, (len(centres), 12))
    along = (np.cos(t) * radius * axes[:, :1])[..., None] * directions[:, None]
    across = (np.sin(t) * radius * axes[:, 1:])[..., None] * np.stack(
        [-directions[:, 1], directions[:, 0]], 1
    )[:, None]
    return centres[:, None] + along + across


def _fill(canvas: Canvas, polygons: NDArray[np.int32], stains: FloatArray) -> None:
    for polygon, stain in zip(polygons, stains.tolist(), strict=True):
        cv2.fillConvexPoly(canvas, polygon, stain, lineType=cv2.LINE_8, shift=_FRACTION_BITS)


def _in_view(view: _View, points: FloatArray, margin: float) -> NDArray[np.bool_]:
    return np.asarray((np.abs(view.unit(points) - 0.5) < 0.5 + margin).all(axis=-1))


def _noise(rng: np.random.Generator, cells: int, size: int) -> Canvas:
    """Return smooth noise (size, size), about standard normal, with `cells` cells a tile side."""
    lattice = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(cv2.resize(lattice, (size, size), interpolation=cv2.INTER_CUBIC))


def _stroma(view: _View, rng: np.random.Generator) -> Canvas:
    """Return the canvas of connective tissue: wavy fibres along the crypts, across below their bases."""
    lattice = rng.standard_normal((192, 192), dtype=np.float32)
    fibres = cv2.GaussianBlur(lattice, (0, 0), sigmaX=0.75, sigmaY=7)
    fibres /= fibres.std()
    size = view.size
    bend = 0.05 * _noise(rng, 6, size)
    grid = np.arange(size, dtype=np.float32) / size - 0.5
    c, s = np.float32(np.cos(view.angle)), np.float32(np.sin(view.angle))
    u = c * grid[None, :] + s * grid[:, None] + bend
    v = -s * grid[None, :] + c * grid[:, None] + np.float32(view.centre_v)
    below = np.clip(-(v + 0.03) / 0.04, 0, 1)  # the muscularis mucosae
    wrap = np.float32(192 / 1.6)
    upright = cv2.remap(fibres, (u + 0.8) * wrap, (v + 0.4) * wrap, cv2.INTER_LINEAR)
    lying = cv2.remap(fibres, (v + bend + 0.4) * wrap, (u + 0.8) * wrap, cv2.INTER_LINEAR)
    texture = upright + (lying - upright) * below
    cloud = _noise(rng, 9, size)
    density = float(rng.uniform(0.42, 0.62))
    eosin = np.clip(density + 0.14 * texture + 0.07 * cloud + 0.12 * below, 0.05, None)
    haematoxylin = np.clip(0.10 + 0.03 * cloud + 0.02 * texture, 0, None)
    return np.ascontiguousarray(np.stack([haematoxylin, eosin], axis=-1), dtype=np.float32)


def _paint_epithelium(
    canvas: Canvas, crypts: list[_Crypt], view: _View, slide: _Slide, rng: np.random.Generator
) -> float:
    """Paint the crypts and return the area of their nuclei in view (tile = 1)."""
    cytoplasm = rng.uniform([0.34, 0.36], [0.5, 0.55])
    goblets = rng.uniform(0.35, 0.85)
    lumen = rng.uniform([0.01, 0.01], [0.06, 0.05])
    spacing = rng.uniform(0.0125, 0.0155)
    area = 0.0
    for crypt in crypts:
        outline, lumen_outline = view.pixels(crypt.outer), view.pixels(crypt.lumen)
        sheath = max(round(0.012 * view.size), 1)
        cv2.polylines(canvas, [outline], False, (0.14, 0.62), sheath, cv2.LINE_8, _FRACTION_BITS)
        cv2.fillPoly(canvas, [outline], cytoplasm.tolist(), cv2.LINE_8, _FRACTION_BITS)

        points = _resample(crypt.outer, 0.027)
        points = points[rng.uniform(size=len(points)) < goblets]
        inward = _inward(crypt.outer, points)
        n = len(points)
        centres = points + inward * rng.uniform(0.62, 0.74, (n, 1)) * _THICKNESS
        axes = rng.uniform([0.011, 0.008], [0.016, 0.0125], (n, 2))
        keep = _in_view(view, centres, 0.03)
        shapes = view.pixels(_ellipses(centres[keep], axes[keep], inward[keep], rng))
        _fill(canvas, shapes, slide.mucin * rng.uniform(0.6, 1.4, (int(keep.sum()), 1)))

        cv2.fillPoly(canvas, [lumen_outline], lumen.tolist(), cv2.LINE_8, _FRACTION_BITS)
        brush = max(round(0.004 * view.size), 1)
        cv2.polylines(
            canvas, [lumen_outline], False, (cytoplasm * 1.15).tolist(), brush, cv2.LINE_8, _FRACTION_BITS
        )

        points = _resample(crypt.outer, spacing)
        points = points + rng.normal(0, 0.002, points.shape)
        inward = _inward(crypt.outer, points)
        n = len(points)
        centres = points + inward * rng.normal(0.0125, 0.0035, (n, 1)).clip(0.005, 0.022)
        axes = rng.normal([0.0098, 0.0052], [0.0016, 0.0008], (n, 2)).clip(0.003)
        keep = _in_view(view, centres, 0.02)
        directions = inward + rng.normal(0, 0.16, (n, 2))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        stains = np.stack([rng.normal(1.45, 0.25, n).clip(0.8), rng.normal(0.4, 0.07, n).clip(0.1)], axis=1)
        _fill(canvas, view.pixels(_ellipses(centres[keep], axes[keep], directions[keep], rng)), stains[keep])
        area += float(np.pi * axes[keep].prod(axis=1).sum())
    return area


def _inward(outline: FloatArray, points: FloatArray) -> FloatArray:
    """Return the inward normal of the outline at the place nearest to each point, (n, 2)."""
    normals = _normals(outline)
    nearest = ((points[:, None] - outline[None]) ** 2).sum(axis=-1).argmin(axis=1)
    return np.asarray(normals[nearest])


def _paint_stromal_cells(canvas: Canvas, view: _View, area: float, rng: np.random.Generator) -> None:
    """Paint fibroblasts and lymphocytes that cover `area` (tile = 1) if no crypt covers them."""
    n = 700
    centres = rng.uniform([-0.75, -0.55], [0.75, 1.25], (n, 2))
    lymphocyte = rng.uniform(size=n) < 0.55
    axes = np.where(
        lymphocyte[:, None],
        rng.uniform([0.007, 0.0065], [0.0095, 0.0085], (n, 2)),
        rng.uniform([0.012, 0.0035], [0.019, 0.005], (n, 2)),
    )
    upright = np.where(centres[:, 1] < -0.04, 0.0, np.pi / 2)
    tilt = upright + np.where(lymphocyte, rng.uniform(0, np.pi, n), rng.normal(0, 0.35, n))
    directions = np.stack([np.cos(tilt), np.sin(tilt)], axis=1)
    stains = np.stack([rng.normal(1.6, 0.25, n).clip(0.9), rng.normal(0.35, 0.07, n).clip(0.1)], axis=1)
    shapes = _ellipses(centres, axes, directions, rng)
    keep = _in_view(view, centres, 0.0)
    keep &= np.cumsum(np.pi * axes.prod(axis=1) * keep) < area
    _fill(canvas, view.pixels(shapes[keep]), stains[keep])


def _render(
    severity: float, slide: _Slide, rng: np.random.Generator, *, size_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    size = size_px * max(1, -(-_DRAWING_PX // size_px))
    view = _View(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.2, 0.36)), size)
    crypts = _draw_crypts(severity, rng)
    canvas = _stroma(view, rng)
    _paint_stromal_cells(canvas, view, float(rng.uniform(0.04, 0.10)), rng)
    _paint_epithelium(canvas, crypts, view, slide, rng)

    chromatin = _noise(rng, 150, size)
    shading = _noise(rng, 12, size)
    canvas *= (1 + 0.14 * chromatin + 0.05 * shading)[..., None]
    canvas = cv2.GaussianBlur(canvas, (0, 0), slide.blur * size)
    canvas = cv2.resize(canvas, (size_px, size_px), interpolation=cv2.INTER_AREA)

    strengths = slide.strengths * rng.uniform(0.92, 1.08, 2)
    density = canvas.reshape(-1, 2) @ (strengths[:, None] * slide.vectors).astype(np.float32)
    light = np.exp(-density).reshape(size_px, size_px, 3) * slide.background.astype(np.float32)
    light += rng.normal(0, 0.012, light.shape).astype(np.float32)
    image = np.clip(light * 255 + 0.5, 0, 255).astype(np.uint8)
    return image, _base_mask(crypts, view, size_px=size_px)


def _base_mask(crypts: list[_Crypt], view: _View, *, size_px: int) -> NDArray[np.bool_]:
    """Return the part of the crypts within the base band, with a rim of half an epithelium's nucleus."""
    mask = np.zeros((view.size, view.size), np.uint8)
    for crypt in crypts:
        lowest = crypt.outer[:, 1].min()
        base = view.pixels(crypt.outer[crypt.outer[:, 1] < lowest + _BASE_HEIGHT])
        cv2.fillPoly(mask, [base], 255, cv2.LINE_8, _FRACTION_BITS)
    return np.asarray(cv2.resize(mask, (size_px, size_px), interpolation=cv2.INTER_AREA) > 127)


# ---- files


def _write_files(
    root: Path,
    partitions: list[str],
    draw: Callable[[int], SyntheticTile],
    *,
    workers: int | None,
    progress: bool,
) -> None:
    """Write images, masks and both tables."""
    (root / "images").mkdir()
    (root / "masks").mkdir()
    count = len(partitions)
    write = partial(_write_tile, root=root, draw=draw)
    if workers is None:
        workers = 1 if count < _PARALLEL_FROM else _cores()
    bar = partial(tqdm, total=count, desc="tiles", unit="tile", disable=not progress)
    if workers == 1:
        tiles = list(bar(map(write, range(count))))
    else:
        context = multiprocessing.get_context("spawn")  # fork is unsafe once a library has started threads
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
            tiles = list(bar(pool.map(write, range(count), chunksize=16)))
    with (root / "annotations.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_ANNOTATIONS_HEADER)
        for (name, label, votes, _), part in zip(tiles, partitions, strict=True):
            table.writerow((name, CLASSES[label], votes, part))
    with (root / "slides.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("Image Name", "Slide"))
        table.writerows((name, slide) for name, _, _, slide in tiles)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_thread() -> None:
    """Keep OpenCV from starting threads in every worker process."""
    cv2.setNumThreads(1)


def _write_tile(index: int, *, root: Path, draw: Callable[[int], SyntheticTile]) -> tuple[str, int, int, str]:
    """Write one image and its mask; return its name, label, votes and slide."""
    tile = draw(index)
    name = f"syn_{index:05d}.png"
    for folder, pixels in (("images", tile.image[..., ::-1]), ("masks", tile.mask.astype(np.uint8) * 255)):
        encoded = cv2.imencode(".png", pixels)[1]
        (root / folder / name).write_bytes(encoded.tobytes())
    return name, tile.label, tile.votes, tile.slide
