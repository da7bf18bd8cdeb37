"""Drawing one synthetic polyp tile: outlines of a row of crypts, then H&E stain.

The classes differ in the shape of the crypts' lowest part, as in the real lesions. A hyperplastic
polyp (HP) has narrow, evenly spaced crypt bases and is serrated in the upper part only; a sessile serrated
adenoma (SSA) has broad, dilated, boot- or inverted-T-shaped bases and is serrated down to the base (WHO
Classification of Tumours: Digestive System, 5th ed., 2019). Nuclei, mucin, lumen and stroma take up the same
area in both on average, and vary widely, so that colour does not reveal the class.

Lengths are in tiles (a tile is 1 wide, whatever its pixels, and stands for TILE_UM) and shapes in the frame of the
crypts (crypts.py). A canvas holds the concentrations of
haematoxylin and eosin, which become RGB by the Beer-Lambert law at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.data.crypts import BASE_HEIGHT, THICKNESS, Crypt, Floats, draw_crypts, normals, resample

Height = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
Canvas = NDArray[np.float32]  # (S, S, 2): haematoxylin, eosin

# Crypts of normal colon are 372 µm long on average proximally and 506 µm distally (Arai et al., Acta Pathol Jpn 1989;
# 39:725): a tile is about as high. Nuclei of the epithelium become 11 x 5 µm, the epithelium 28 µm thick.
TILE_UM = 448.0

_HAEMATOXYLIN = (0.563, 0.720, 0.406)  # optical density of R, G, B per unit of stain
_EOSIN = (0.216, 0.801, 0.558)
_DRAWING_PX = 320  # tiles are drawn at least this large, and at twice their size below 512, then averaged
_STROMA_PX = 256  # resolves the finest fibre
SUBPIXEL_BITS = 4  # of OpenCV's fixed-point coordinates
CAMERA_NOISE = 0.012  # of full light


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
class View:
    """The map from the frame of the crypts to a square canvas of one tile, or of several.

    centre_v is the height at the canvas's centre, size its pixels, width its side in tiles.
    """

    angle: float
    zoom: float
    centre_v: float
    size: int
    width: float = 1.0

    def tile(self, points: Floats) -> Floats:
        """Return canvas coordinates, 0 to 1 inside the canvas, of points (..., 2)."""
        zoom = self.zoom / self.width
        c, s = zoom * np.cos(self.angle), zoom * np.sin(self.angle)
        u, v = points[..., 0], points[..., 1] - self.centre_v
        return np.stack([0.5 + c * u - s * v, 0.5 + s * u + c * v], axis=-1)

    def pixels(self, points: Floats) -> NDArray[np.int32]:
        """Return OpenCV's fixed-point pixel coordinates of points (..., 2)."""
        return np.asarray(np.rint((self.tile(points) * self.size - 0.5) * 2**SUBPIXEL_BITS), dtype=np.int32)

    def shows(self, points: Floats, *, margin: float) -> NDArray[np.bool_]:
        """Return which points (n, 2) are on the canvas or up to `margin` tiles outside."""
        return np.asarray((np.abs(self.tile(points) - 0.5) < 0.5 + margin / self.width).all(axis=-1))

    def cells(self, per_tile: float) -> int:
        """Return how many cells of a lattice lie along the canvas."""
        return round(per_tile * self.width)

    def brush(self, width: float) -> int:
        """Return the pixels of a line `width` wide."""
        return max(round(width * self.zoom / self.width * self.size), 1)


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
    view = View(
        angle=float(rng.uniform(0, 2 * np.pi)),
        zoom=float(rng.uniform(0.9, 1.12)),
        centre_v=float(rng.uniform(0.2, 0.34)),
        size=size_px * max(-(-_DRAWING_PX // size_px), 2 if size_px < 512 else 1),
    )
    crypts = [crypt for crypt in draw_crypts(severity, rng) if view.shows(crypt.outer, margin=0.05).any()]
    canvas = stroma(view, rng)
    paint_vessels(canvas, view, rng)
    paint_stromal_cells(canvas, view, float(rng.uniform(0.035, 0.10)), rng)
    paint_epithelium(canvas, crypts, view, look.mucin, rng)

    canvas = textured(canvas, view, look.blur, rng)
    canvas = np.asarray(cv2.resize(canvas, (size_px, size_px), interpolation=cv2.INTER_AREA))
    stains = (look.strengths * rng.uniform(0.92, 1.08, 2))[:, None] * look.vectors
    light = np.exp(-canvas.reshape(-1, 2) @ stains.astype(np.float32)) * look.background.astype(np.float32)
    light += CAMERA_NOISE * rng.standard_normal(light.shape, dtype=np.float32)
    image = np.clip(light * 255 + 0.5, 0, 255).astype(np.uint8).reshape(size_px, size_px, 3)
    return image, base_mask(crypts, view, size_px=size_px)


# Paint


def textured(canvas: Canvas, view: View, blur: float, rng: np.random.Generator) -> Canvas:
    """Return a painted canvas with the unevenness of a section and the blur of optics, in tiles."""
    texture = 1 + 0.13 * noise(rng, view.cells(160), view.size) + 0.06 * noise(rng, view.cells(14), view.size)
    return np.asarray(cv2.GaussianBlur(canvas * texture[..., None], (0, 0), blur * view.size / view.width))


def noise(rng: np.random.Generator, cells: int, size: int) -> Canvas:
    """Return smooth noise (size, size), about standard normal, with `cells` cells per side."""
    lattice = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(cv2.resize(lattice, (size, size), interpolation=cv2.INTER_CUBIC) * 1.25)


def stroma(view: View, rng: np.random.Generator, *, height: Height | None = None) -> Canvas:
    """Return the canvas of connective tissue: wavy fibres along the crypts, and across below their bases.

    Args:
        height: gives the height above the nearest row's bases at (u, v), where there are several rows.
    """
    lattice = rng.standard_normal((view.cells(192), view.cells(192)), dtype=np.float32)
    fibres = np.asarray(cv2.GaussianBlur(lattice, (0, 0), sigmaX=0.8, sigmaY=6))
    fibres = fibres / fibres.std()
    px = view.cells(_STROMA_PX)
    bend = 0.06 * noise(rng, view.cells(6), px)
    cloud = noise(rng, view.cells(9), px)
    grid = ((np.arange(px, dtype=np.float32) + 0.5) / px - 0.5) * np.float32(view.width)
    c, s = (np.float32(f(view.angle) / view.zoom) for f in (np.cos, np.sin))
    u = c * grid[None, :] + s * grid[:, None] + bend
    v = c * grid[:, None] - s * grid[None, :] + np.float32(view.centre_v)
    cells = np.float32(110)  # per tile
    right, up = np.float32(0.85 * view.width), np.float32(0.5 * view.width)
    upright = cv2.remap(fibres, (u + right) * cells, (v + up) * cells, cv2.INTER_LINEAR)
    lying = cv2.remap(fibres, (v + bend + up) * cells, (u + right) * cells, cv2.INTER_LINEAR)
    above = v if height is None else height(u, v)
    below = np.clip(-(above + bend + 0.03) / 0.05, 0, 1)  # the muscularis mucosae
    texture = upright + (lying - upright) * below
    eosin = float(rng.uniform(0.4, 0.6)) + 0.15 * texture + 0.07 * cloud + float(rng.uniform(0, 0.15)) * below
    haematoxylin = 0.10 + 0.03 * cloud + 0.02 * texture
    canvas = np.stack([haematoxylin, eosin], axis=-1).clip(0.03)
    return np.asarray(cv2.resize(canvas, (view.size, view.size), interpolation=cv2.INTER_LINEAR))


def blobs(centres: Floats, axes: Floats, directions: Floats, rng: np.random.Generator, *, taper: float = 0.0) -> Floats:
    """Return irregular ellipses as polygons, (n, 12, 2).

    The semi-axes (n, 2) lie along and across `directions` (n, 2); `taper` widens the far end.
    """
    t = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radius = 1 + rng.normal(0, 0.07, (len(centres), 12))
    along = np.cos(t) * radius * axes[:, :1]
    across = np.sin(t) * (1 + taper * np.cos(t)) * radius * axes[:, 1:]
    sideways = np.stack([-directions[:, 1], directions[:, 0]], axis=1)
    return np.asarray(centres[:, None] + along[..., None] * directions[:, None] + across[..., None] * sideways[:, None])


def fill(canvas: Canvas, polygons: NDArray[np.int32], stains: Floats) -> None:
    """Fill convex polygons (n, m, 2) with the stains (n, 2)."""
    for polygon, stain in zip(polygons, stains.tolist(), strict=True):
        cv2.fillConvexPoly(canvas, polygon, stain, cv2.LINE_8, SUBPIXEL_BITS)


def nuclear_stain(rng: np.random.Generator, n: int) -> Floats:
    """Return the stains (n, 2) of nuclei, from pale to hyperchromatic."""
    return np.stack([rng.normal(1.4, 0.28, n).clip(0.7), rng.normal(0.4, 0.07, n).clip(0.1)], axis=1)


def paint_vessels(canvas: Canvas, view: View, rng: np.random.Generator) -> None:
    """Paint capillaries: a wall, and red cells or plasma inside."""
    n = round(14 * view.width**2)
    centres = rng.uniform([-0.75, -0.5], [0.75, 1.2], (n, 2)) * view.width
    axes = rng.uniform([0.014, 0.009], [0.034, 0.016], (n, 2))
    turn = rng.normal(np.pi / 2, 0.5, n)
    directions = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    fill(canvas, view.pixels(blobs(centres, axes, directions, rng)), np.full((n, 2), (0.22, 0.55)))
    inside = np.where(rng.uniform(size=(n, 1)) < 0.55, (0.02, 1.15), (0.02, 0.12))
    fill(canvas, view.pixels(blobs(centres, axes * 0.72, directions, rng)), inside)


def paint_stromal_cells(
    canvas: Canvas, view: View, area: float, rng: np.random.Generator, *, height: Height | None = None
) -> None:
    """Paint lymphocytes and fibroblasts with nuclei of `area` in a tile's, of which crypts will hide a part."""
    n = round(900 * view.width**2)
    centres = rng.uniform([-0.8, -0.55], [0.8, 1.2], (n, 2)) * view.width
    is_round = rng.uniform(size=n) < rng.uniform(0.4, 0.8)
    axes = np.where(
        is_round[:, None],
        rng.uniform([0.0085, 0.0075], [0.0115, 0.010], (n, 2)),
        rng.uniform([0.014, 0.004], [0.023, 0.006], (n, 2)),
    )
    above = centres[:, 1] if height is None else height(centres[:, 0], centres[:, 1])
    fibre = np.where(above < -0.05, 0.0, np.pi / 2)
    turn = fibre + np.where(is_round, rng.uniform(0, np.pi, n), rng.normal(0, 0.35, n))
    directions = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    shapes, stains = blobs(centres, axes, directions, rng), nuclear_stain(rng, n)
    chosen = view.shows(centres, margin=0.0)
    chosen &= np.cumsum(np.pi * axes.prod(axis=1) * chosen) < area * view.width**2
    fill(canvas, view.pixels(shapes[chosen]), stains[chosen])


def paint_epithelium(canvas: Canvas, crypts: list[Crypt], view: View, mucin: Floats, rng: np.random.Generator) -> None:
    """Paint the crypts: cytoplasm, goblet cells, lumen with wisps of mucus, nuclei along the basement membrane."""
    basal = rng.uniform([0.36, 0.38], [0.55, 0.55])
    apical = basal * rng.uniform(0.55, 0.9)
    lumen = rng.uniform([0.01, 0.01], [0.06, 0.05])
    goblets = rng.uniform(0.3, 0.95)
    spacing = rng.uniform(0.0135, 0.0165)
    outlines = [view.pixels(crypt.outer) for crypt in crypts]
    sheath = (0.12, 0.6)  # collagen around the crypts
    cv2.polylines(canvas, outlines, False, sheath, view.brush(0.016), cv2.LINE_8, SUBPIXEL_BITS)
    for crypt, outer in zip(crypts, outlines, strict=True):
        inner = view.pixels(crypt.lumen)
        cv2.fillPoly(canvas, [outer], basal.tolist(), cv2.LINE_8, SUBPIXEL_BITS)
        middle = view.pixels(crypt.outer + normals(crypt.outer) * 0.5 * THICKNESS)
        cv2.fillPoly(canvas, [middle], apical.tolist(), cv2.LINE_8, SUBPIXEL_BITS)

        points = resample(crypt.outer, 0.028)
        chosen = (rng.uniform(size=len(points)) < goblets) & view.shows(points, margin=0.06)
        inward = normals(points)[chosen]
        n = len(inward)
        centres = points[chosen] + inward * rng.uniform(0.58, 0.70, (n, 1)) * THICKNESS
        axes = rng.uniform([0.015, 0.010], [0.024, 0.0155], (n, 2))
        fill(
            canvas,
            view.pixels(blobs(centres, axes, inward, rng, taper=0.3)),
            mucin * rng.uniform(0.6, 1.5, (n, 1)),
        )

        cv2.fillPoly(canvas, [inner], lumen.tolist(), cv2.LINE_8, SUBPIXEL_BITS)
        brush = view.brush(0.005)
        cv2.polylines(canvas, [inner], False, (basal * 1.1).tolist(), brush, cv2.LINE_8, SUBPIXEL_BITS)
        wisps = crypt.axis[rng.integers(60, len(crypt.axis), 12)] + rng.normal(0, 0.008, (12, 2))
        shapes = blobs(wisps, rng.uniform([0.01, 0.002], [0.04, 0.006], (12, 2)), np.tile([[0.0, 1.0]], (12, 1)), rng)
        fill(canvas, view.pixels(shapes), lumen + mucin * rng.uniform(0.2, 0.9, (12, 1)))

        points = resample(crypt.outer, spacing)
        shown = view.shows(points, margin=0.03)
        points, inward = points[shown], normals(points)[shown]
        n = len(points)
        centres = points + rng.normal(0, 0.002, (n, 2)) + inward * rng.normal(0.015, 0.0045, (n, 1)).clip(0.006, 0.028)
        directions = inward + rng.normal(0, 0.14, (n, 2))
        directions /= np.hypot(*directions.T)[:, None]
        axes = rng.normal([0.0118, 0.0058], [0.0019, 0.0009], (n, 2)).clip(0.003)
        fill(canvas, view.pixels(blobs(centres, axes, directions, rng)), nuclear_stain(rng, n))


def base_mask(crypts: list[Crypt], view: View, *, size_px: int) -> NDArray[np.bool_]:
    """Return the part of the crypts within BASE_HEIGHT of their lowest point, bool (size_px, size_px)."""
    mask = np.zeros((view.size, view.size), np.uint8)
    for crypt in crypts:
        height = crypt.outer[:, 1] - crypt.outer[:, 1].min()
        base = view.pixels(crypt.outer[height < BASE_HEIGHT])
        cv2.fillPoly(mask, [base], 255, cv2.LINE_8, SUBPIXEL_BITS)
    return np.asarray(cv2.resize(mask, (size_px, size_px), interpolation=cv2.INTER_AREA) > 127)
