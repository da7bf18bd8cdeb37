"""Drawing one synthetic polyp tile: outlines of a row of crypts, then H&E stain.

The classes differ in the shape of the crypts' lowest part, as in the real lesions. A hyperplastic
polyp (HP) has narrow, evenly spaced crypt bases and is serrated in the upper part only; a sessile serrated
adenoma (SSA) has broad, dilated, boot- or inverted-T-shaped bases and is serrated down to the base (WHO
Classification of Tumours: Digestive System, 5th ed., 2019). Nuclei, mucin, lumen and stroma take up the same
area in both on average, and vary widely, so that colour does not reveal the class.

Lengths are in tiles (a tile is 1 wide, whatever its pixels) and shapes in the frame of the crypts: u runs
along the row of crypts, v from their bases (v = 0) to the surface. A canvas holds the concentrations of
haematoxylin and eosin, which become RGB by the Beer-Lambert law at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Canvas = NDArray[np.float32]  # (S, S, 2): haematoxylin, eosin

_HAEMATOXYLIN = (0.563, 0.720, 0.406)  # optical density of R, G, B per unit of stain
_EOSIN = (0.216, 0.801, 0.558)
_DRAWING_PX = 320  # tiles are drawn at least this large, and at twice their size below 512, then averaged
_STROMA_PX = 256  # resolves the finest fibre
_SUBPIXEL_BITS = 4  # of OpenCV's fixed-point coordinates
_BASE_HEIGHT = 0.22  # the class-deciding band, from the bases of the crypts upwards
_THICKNESS = 0.062  # of the epithelium


@dataclass(frozen=True)
class SlideLook:
    """What the tiles of a slide have in common.

    vectors: (2, 3), what unit haematoxylin and eosin absorb of R, G, B. strengths: (2,), of both stains.
    background: (3,), light without tissue. blur: in tiles. mucin: (2,), its stains.
    """

    vectors: Floats
    strengths: Floats
    background: Floats
    blur: float
    mucin: Floats


@dataclass(frozen=True)
class Crypt:
    """Curves in (u, v), each (M, 2): outlines run from one top round the base to the other, the axis upwards."""

    outer: Floats
    lumen: Floats
    axis: Floats


@dataclass(frozen=True)
class _View:
    """The map from the frame of the crypts to a square canvas; centre_v is the height at the tile's centre."""

    angle: float
    zoom: float
    centre_v: float
    size: int

    def tile(self, points: Floats) -> Floats:
        """Return tile coordinates, 0 to 1 inside the tile, of points (..., 2)."""
        c, s = self.zoom * np.cos(self.angle), self.zoom * np.sin(self.angle)
        u, v = points[..., 0], points[..., 1] - self.centre_v
        return np.stack([0.5 + c * u - s * v, 0.5 + s * u + c * v], axis=-1)

    def pixels(self, points: Floats) -> NDArray[np.int32]:
        """Return OpenCV's fixed-point pixel coordinates of points (..., 2)."""
        return np.asarray(np.rint((self.tile(points) * self.size - 0.5) * 2**_SUBPIXEL_BITS), dtype=np.int32)

    def shows(self, points: Floats, *, margin: float) -> NDArray[np.bool_]:
        """Return which points (n, 2) are in the tile or up to `margin` outside."""
        return np.asarray((np.abs(self.tile(points) - 0.5) < 0.5 + margin).all(axis=-1))

    def brush(self, width: float) -> int:
        """Return the pixels of a line `width` wide."""
        return max(round(width * self.zoom * self.size), 1)


def draw_slide_look(rng: np.random.Generator) -> SlideLook:
    """Return the look of a slide; no part of it depends on the class of its tiles."""
    vectors = np.array([_HAEMATOXYLIN, _EOSIN]) + rng.normal(0, [[0.05], [0.035]], (2, 3))
    return SlideLook(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        strengths=rng.uniform([0.85, 0.75], [1.35, 1.3]),
        background=rng.uniform(0.9, 0.97) + rng.uniform(-0.015, 0.015, 3),
        blur=float(rng.uniform(0.0012, 0.0028)),
        mucin=rng.uniform([0.09, 0.03], [0.22, 0.11]),
    )


def draw_polyp(
    severity: float, look: SlideLook, rng: np.random.Generator, *, size_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a tile, uint8 (size_px, size_px, 3), and the mask of its crypt bases, bool (size_px, size_px).

    Args:
        severity: shape of the crypts, from 0 (textbook HP) to 1 (textbook SSA).
        look: what the tile has in common with its slide.
        rng: source of everything else; only the camera's noise, drawn last, depends on size_px.
        size_px: side in pixels; the morphology does not depend on it.
    """
    view = _View(
        angle=float(rng.uniform(0, 2 * np.pi)),
        zoom=float(rng.uniform(0.9, 1.12)),
        centre_v=float(rng.uniform(0.2, 0.34)),
        size=size_px * max(-(-_DRAWING_PX // size_px), 2 if size_px < 512 else 1),
    )
    crypts = [crypt for crypt in _draw_crypts(severity, rng) if view.shows(crypt.outer, margin=0.05).any()]
    canvas = _stroma(view, rng)
    _paint_vessels(canvas, view, rng)
    _paint_stromal_cells(canvas, view, float(rng.uniform(0.035, 0.10)), rng)
    _paint_epithelium(canvas, crypts, view, look.mucin, rng)

    texture = 1 + 0.13 * _noise(rng, 160, view.size) + 0.06 * _noise(rng, 14, view.size)
    canvas = np.asarray(cv2.GaussianBlur(canvas * texture[..., None], (0, 0), look.blur * view.size))
    canvas = np.asarray(cv2.resize(canvas, (size_px, size_px), interpolation=cv2.INTER_AREA))
    stains = (look.strengths * rng.uniform(0.92, 1.08, 2))[:, None] * look.vectors
    light = np.exp(-canvas.reshape(-1, 2) @ stains.astype(np.float32)) * look.background.astype(np.float32)
    light += 0.012 * rng.standard_normal(light.shape, dtype=np.float32)
    image = np.clip(light * 255 + 0.5, 0, 255).astype(np.uint8).reshape(size_px, size_px, 3)
    return image, _base_mask(crypts, view, size_px=size_px)


# Shapes


def _smooth_step(x: Floats) -> Floats:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _half_width(v: Floats, *, stem: float, top: float, foot: float, foot_height: float, closure: float) -> Floats:
    """Return the half-width of one side of a crypt at height v above its lowest point.

    It is that of a stem that widens to the top, plus a foot below foot_height, under a rounded closure.
    """
    width = stem + (top - stem) * _smooth_step((v - 0.12) / 0.55)
    width = width + foot / (1 + np.exp(np.clip((v - foot_height) / 0.013, -30, 30)))
    return np.asarray(width * np.sqrt(1 - (1 - np.clip(v / closure, 0, 1)) ** 2))


def _resample(curve: Floats, spacing: float) -> Floats:
    """Return points at even distances along a curve (M, 2)."""
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    at = np.linspace(0, length[-1], max(int(length[-1] / spacing), 8))
    return np.stack([np.interp(at, length, curve[:, 0]), np.interp(at, length, curve[:, 1])], axis=1)


def _normals(outline: Floats) -> Floats:
    """Return unit vectors from an outline of a Crypt to its inside, (M, 2)."""
    tangent = np.gradient(outline, axis=0)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    return np.asarray(normal / np.maximum(np.hypot(*normal.T), 1e-9)[:, None])


def _draw_feet(severities: Floats, centres: Floats, stems: Floats, rng: np.random.Generator) -> Floats:
    """Return how far each crypt's base extends to its left and right, (n, 2)."""
    n = len(centres)
    # A boot has one long foot, an inverted T two; what neighbours want must fit between them.
    feet = severities[:, None] * rng.uniform(0.012, 0.035, (n, 2)) + rng.uniform(-0.004, 0.004, (n, 2))
    long_feet = np.stack([rng.uniform(size=n) < 0.7, rng.uniform(size=n) < 0.7], axis=1)
    long_feet[~long_feet.any(axis=1), 0] = True
    feet += long_feet * rng.uniform(0.09, 0.15, (n, 2)) * severities[:, None] ** 1.5
    for k in range(n - 1):
        room = centres[k + 1] - centres[k] - stems[k] - stems[k + 1] - 0.035
        wanted = feet[k, 1] + feet[k + 1, 0]
        if wanted > room:
            feet[k, 1], feet[k + 1, 0] = np.array([feet[k, 1], feet[k + 1, 0]]) * max(room, 0) / wanted
    return feet


def _side(
    v: Floats, sign: float, *, stem: float, top: float, foot: float, height: float, thickness: float
) -> tuple[Floats, Floats]:
    """Return one side of a crypt's outer outline and of its lumen, each (M, 2); sign: -1 = left, 1 = right."""
    outer = _half_width(v, stem=stem, top=top, foot=foot, foot_height=height, closure=height / 2)
    lumen = _half_width(
        v,
        stem=max(stem - thickness, 0.008),
        top=top - thickness,
        foot=foot,
        foot_height=height - 2 * thickness,
        closure=max(height / 2 - thickness, 0.015),
    )
    return np.stack([sign * outer, v], axis=1), np.stack([sign * lumen, v + thickness], axis=1)


def _draw_crypts(severity: float, rng: np.random.Generator) -> list[Crypt]:
    """Return a row of crypts that fills the view from side to side."""
    spacing = 0.36 + rng.uniform(-0.04, 0.04)
    centres = np.arange(-0.9, 0.9, spacing) + rng.uniform(-0.5, 0.5) * spacing
    n = len(centres)
    centres += rng.normal(0, 0.02, n)
    severities = np.clip(severity + rng.normal(0, 0.09, n), 0, 1)
    stems = 0.080 + rng.normal(0, 0.003, n)
    tops = 0.119 + rng.uniform(-0.016, 0.016) + rng.normal(0, 0.006, n)
    feet = _draw_feet(severities, centres, stems, rng)
    heights = 0.13 + 0.065 * severities + rng.normal(0, 0.006, n)
    sinking = rng.normal(0, 0.013, n)
    amplitude = rng.uniform(0.026, 0.036)
    thickness = _THICKNESS + rng.uniform(-0.008, 0.004)
    wave = rng.uniform([0.0, 0.6, 0.0], [0.03, 1.2, 2 * np.pi])
    lean = rng.normal(0, 0.05) + rng.normal(0, 0.03, n)

    v = np.concatenate([np.linspace(0, 0.03, 14)[:-1], np.linspace(0.03, 1.25, 160)])
    crypts = []
    for k in range(n):
        left, right = (
            _side(v, sign, stem=stems[k], top=tops[k], foot=feet[k, side], height=heights[k], thickness=thickness)
            for side, sign in ((0, -1.0), (1, 1.0))
        )
        lumen_curve = _serrate(
            _resample(np.concatenate([right[1][::-1], left[1][1:]]), 0.004),
            start=_BASE_HEIGHT - 0.42 * float(severities[k]),
            amplitude=amplitude,
            rng=rng,
        )
        outer_curve = _resample(np.concatenate([right[0][::-1], left[0][1:]]), 0.006)
        knots = rng.normal(0, 0.0035, 64)
        bulge = np.interp(np.arange(len(outer_curve)) * 0.006 / 0.06, np.arange(64.0), knots)
        outer_curve += _normals(outer_curve) * bulge[:, None]
        bend = wave + rng.normal(0, [0.004, 0.02, 0.3])
        curves = (
            outer_curve,
            lumen_curve,
            np.stack([np.zeros(len(v)), v], axis=1),
        )
        for curve in curves:
            curve[:, 0] += centres[k] + lean[k] * curve[:, 1]
            curve[:, 0] += bend[0] * np.sin(2 * np.pi * curve[:, 1] / bend[1] + bend[2])
            curve[:, 1] += sinking[k]
        crypts.append(Crypt(*curves))
    return crypts


def _serrate(lumen: Floats, *, start: float, amplitude: float, rng: np.random.Generator) -> Floats:
    """Return a lumen outline (points 0.004 apart) with saw teeth above v = start: round tufts, sharp clefts."""
    teeth = rng.normal(0.078, 0.020, 80).clip(0.04)
    phase = np.interp(np.arange(len(lumen)) * 0.004, np.cumsum(teeth), np.arange(80.0)) + rng.uniform()
    saw = 0.6 - 1.3 * np.abs(np.sin(np.pi * phase))
    saw *= np.interp(phase, np.arange(82.0), rng.uniform(0.4, 1.25, 82))
    gate = 1 / (1 + np.exp(-(lumen[:, 1] - start) / 0.035))
    # A tuft never reaches across the lumen.
    reach = np.where(saw < 0, np.minimum(amplitude, 0.7 * np.abs(lumen[:, 0])), amplitude)
    return np.asarray(lumen - _normals(lumen) * (saw * gate * reach)[:, None])


# Paint


def _noise(rng: np.random.Generator, cells: int, size: int) -> Canvas:
    """Return smooth noise (size, size), about standard normal, with `cells` cells per side."""
    lattice = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(cv2.resize(lattice, (size, size), interpolation=cv2.INTER_CUBIC) * 1.25)


def _stroma(view: _View, rng: np.random.Generator) -> Canvas:
    """Return the canvas of connective tissue: wavy fibres along the crypts, and across below their bases."""
    lattice = rng.standard_normal((192, 192), dtype=np.float32)
    fibres = np.asarray(cv2.GaussianBlur(lattice, (0, 0), sigmaX=0.8, sigmaY=6))
    fibres = fibres / fibres.std()
    bend = 0.06 * _noise(rng, 6, _STROMA_PX)
    cloud = _noise(rng, 9, _STROMA_PX)
    grid = (np.arange(_STROMA_PX, dtype=np.float32) + 0.5) / _STROMA_PX - 0.5
    c, s = (np.float32(f(view.angle) / view.zoom) for f in (np.cos, np.sin))
    u = c * grid[None, :] + s * grid[:, None] + bend
    v = c * grid[:, None] - s * grid[None, :] + np.float32(view.centre_v)
    cells = np.float32(110)  # per tile
    upright = cv2.remap(fibres, (u + 0.85) * cells, (v + 0.5) * cells, cv2.INTER_LINEAR)
    lying = cv2.remap(fibres, (v + bend + 0.5) * cells, (u + 0.85) * cells, cv2.INTER_LINEAR)
    below = np.clip(-(v + bend + 0.03) / 0.05, 0, 1)  # the muscularis mucosae
    texture = upright + (lying - upright) * below
    eosin = float(rng.uniform(0.4, 0.6)) + 0.15 * texture + 0.07 * cloud + float(rng.uniform(0, 0.15)) * below
    haematoxylin = 0.10 + 0.03 * cloud + 0.02 * texture
    canvas = np.stack([haematoxylin, eosin], axis=-1).clip(0.03)
    return np.asarray(cv2.resize(canvas, (view.size, view.size), interpolation=cv2.INTER_LINEAR))


def _blobs(
    centres: Floats, axes: Floats, directions: Floats, rng: np.random.Generator, *, taper: float = 0.0
) -> Floats:
    """Return irregular ellipses as polygons, (n, 12, 2).

    The semi-axes (n, 2) lie along and across `directions` (n, 2); `taper` widens the far end.
    """
    t = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radius = 1 + rng.normal(0, 0.07, (len(centres), 12))
    along = np.cos(t) * radius * axes[:, :1]
    across = np.sin(t) * (1 + taper * np.cos(t)) * radius * axes[:, 1:]
    sideways = np.stack([-directions[:, 1], directions[:, 0]], axis=1)
    return np.asarray(centres[:, None] + along[..., None] * directions[:, None] + across[..., None] * sideways[:, None])


def _fill(canvas: Canvas, polygons: NDArray[np.int32], stains: Floats) -> None:
    """Fill convex polygons (n, m, 2) with the stains (n, 2)."""
    for polygon, stain in zip(polygons, stains.tolist(), strict=True):
        cv2.fillConvexPoly(canvas, polygon, stain, cv2.LINE_8, _SUBPIXEL_BITS)


def _nuclear_stain(rng: np.random.Generator, n: int) -> Floats:
    """Return the stains (n, 2) of nuclei, from pale to hyperchromatic."""
    return np.stack([rng.normal(1.4, 0.28, n).clip(0.7), rng.normal(0.4, 0.07, n).clip(0.1)], axis=1)


def _paint_vessels(canvas: Canvas, view: _View, rng: np.random.Generator) -> None:
    """Paint capillaries: a wall, and red cells or plasma inside."""
    n = 14
    centres = rng.uniform([-0.75, -0.5], [0.75, 1.2], (n, 2))
    axes = rng.uniform([0.014, 0.009], [0.034, 0.016], (n, 2))
    turn = rng.normal(np.pi / 2, 0.5, n)
    directions = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    _fill(canvas, view.pixels(_blobs(centres, axes, directions, rng)), np.full((n, 2), (0.22, 0.55)))
    inside = np.where(rng.uniform(size=(n, 1)) < 0.55, (0.02, 1.15), (0.02, 0.12))
    _fill(canvas, view.pixels(_blobs(centres, axes * 0.72, directions, rng)), inside)


def _paint_stromal_cells(canvas: Canvas, view: _View, area: float, rng: np.random.Generator) -> None:
    """Paint lymphocytes and fibroblasts with nuclei of `area` (tile = 1), of which crypts will hide a part."""
    n = 900
    centres = rng.uniform([-0.8, -0.55], [0.8, 1.2], (n, 2))
    is_round = rng.uniform(size=n) < rng.uniform(0.4, 0.8)
    axes = np.where(
        is_round[:, None],
        rng.uniform([0.0085, 0.0075], [0.0115, 0.010], (n, 2)),
        rng.uniform([0.014, 0.004], [0.023, 0.006], (n, 2)),
    )
    fibre = np.where(centres[:, 1] < -0.05, 0.0, np.pi / 2)
    turn = fibre + np.where(is_round, rng.uniform(0, np.pi, n), rng.normal(0, 0.35, n))
    directions = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    shapes, stains = _blobs(centres, axes, directions, rng), _nuclear_stain(rng, n)
    chosen = view.shows(centres, margin=0.0)
    chosen &= np.cumsum(np.pi * axes.prod(axis=1) * chosen) < area
    _fill(canvas, view.pixels(shapes[chosen]), stains[chosen])


def _paint_epithelium(
    canvas: Canvas, crypts: list[Crypt], view: _View, mucin: Floats, rng: np.random.Generator
) -> None:
    """Paint the crypts: cytoplasm, goblet cells, lumen with wisps of mucus, nuclei along the basement membrane."""
    basal = rng.uniform([0.36, 0.38], [0.55, 0.55])
    apical = basal * rng.uniform(0.55, 0.9)
    lumen = rng.uniform([0.01, 0.01], [0.06, 0.05])
    goblets = rng.uniform(0.3, 0.95)
    spacing = rng.uniform(0.0135, 0.0165)
    outlines = [view.pixels(crypt.outer) for crypt in crypts]
    sheath = (0.12, 0.6)  # collagen around the crypts
    cv2.polylines(canvas, outlines, False, sheath, view.brush(0.016), cv2.LINE_8, _SUBPIXEL_BITS)
    for crypt, outer in zip(crypts, outlines, strict=True):
        inner = view.pixels(crypt.lumen)
        cv2.fillPoly(canvas, [outer], basal.tolist(), cv2.LINE_8, _SUBPIXEL_BITS)
        middle = view.pixels(crypt.outer + _normals(crypt.outer) * 0.5 * _THICKNESS)
        cv2.fillPoly(canvas, [middle], apical.tolist(), cv2.LINE_8, _SUBPIXEL_BITS)

        points = _resample(crypt.outer, 0.028)
        chosen = (rng.uniform(size=len(points)) < goblets) & view.shows(points, margin=0.06)
        inward = _normals(points)[chosen]
        n = len(inward)
        centres = points[chosen] + inward * rng.uniform(0.58, 0.70, (n, 1)) * _THICKNESS
        axes = rng.uniform([0.015, 0.010], [0.024, 0.0155], (n, 2))
        _fill(
            canvas,
            view.pixels(_blobs(centres, axes, inward, rng, taper=0.3)),
            mucin * rng.uniform(0.6, 1.5, (n, 1)),
        )

        cv2.fillPoly(canvas, [inner], lumen.tolist(), cv2.LINE_8, _SUBPIXEL_BITS)
        brush = view.brush(0.005)
        cv2.polylines(canvas, [inner], False, (basal * 1.1).tolist(), brush, cv2.LINE_8, _SUBPIXEL_BITS)
        wisps = crypt.axis[rng.integers(60, len(crypt.axis), 12)] + rng.normal(0, 0.008, (12, 2))
        shapes = _blobs(wisps, rng.uniform([0.01, 0.002], [0.04, 0.006], (12, 2)), np.tile([[0.0, 1.0]], (12, 1)), rng)
        _fill(canvas, view.pixels(shapes), lumen + mucin * rng.uniform(0.2, 0.9, (12, 1)))

        points = _resample(crypt.outer, spacing)
        shown = view.shows(points, margin=0.03)
        points, inward = points[shown], _normals(points)[shown]
        n = len(points)
        centres = points + rng.normal(0, 0.002, (n, 2)) + inward * rng.normal(0.015, 0.0045, (n, 1)).clip(0.006, 0.028)
        directions = inward + rng.normal(0, 0.14, (n, 2))
        directions /= np.hypot(*directions.T)[:, None]
        axes = rng.normal([0.0118, 0.0058], [0.0019, 0.0009], (n, 2)).clip(0.003)
        _fill(canvas, view.pixels(_blobs(centres, axes, directions, rng)), _nuclear_stain(rng, n))


def _base_mask(crypts: list[Crypt], view: _View, *, size_px: int) -> NDArray[np.bool_]:
    """Return the part of the crypts within _BASE_HEIGHT of their lowest point, bool (size_px, size_px)."""
    mask = np.zeros((view.size, view.size), np.uint8)
    for crypt in crypts:
        height = crypt.outer[:, 1] - crypt.outer[:, 1].min()
        base = view.pixels(crypt.outer[height < _BASE_HEIGHT])
        cv2.fillPoly(mask, [base], 255, cv2.LINE_8, _SUBPIXEL_BITS)
    return np.asarray(cv2.resize(mask, (size_px, size_px), interpolation=cv2.INTER_AREA) > 127)
