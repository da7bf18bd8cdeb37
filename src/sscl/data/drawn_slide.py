"""Drawn whole slides: pieces of polyp on glass, with the truth per pixel and per crypt base.

A piece is one large tile of polyp.py: its rows of crypts run on without seams, so that a tile cut anywhere looks like
one of `sscl data synth` at the same µm/px. Between a lesion and the glass lies stroma without crypts. Stain and light
belong to the slide. A slide is a function of (seed, index) and its settings alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.data.crypts import Crypt, Floats, draw_crypts
from sscl.data.polyp import (
    CAMERA_NOISE,
    SUBPIXEL_BITS,
    TILE_UM,
    Canvas,
    SlideLook,
    View,
    base_mask,
    blobs,
    draw_slide_look,
    fill,
    noise,
    nuclear_stain,
    paint_epithelium,
    paint_stromal_cells,
    paint_vessels,
    stroma,
    textured,
)

GLASS, STROMA, HP, SSA = range(4)  # of the map of lesions
LABELS = {"HP": HP, "SSA": SSA}
Pen = Literal["black", "blue", "green", "red"]
_INKS = {"black": (0.12, 0.12, 0.14), "blue": (0.15, 0.25, 0.75), "green": (0.15, 0.6, 0.3), "red": (0.8, 0.15, 0.2)}

# In tiles:
_CELL = 4.2  # room for a piece, at least; its lesion is wider than three tiles
_PERIOD = 0.82  # from row to row of crypts: every tile shows bases
_FLOOR = 0.17  # connective tissue below the bases
_CLEFT = 0.05  # between the surface of a row and the floor of the next
_RIM = 0.24  # stroma around a lesion
_NEAR = 0.3  # a lesion is where crypts are this near
_TRUTH_UM = 8.0  # about, per pixel of the truth


@dataclass(frozen=True)
class Base:
    """The lowest point of a crypt, in pixels of level 0, and its lesion's class; severity: 0 is HP, 1 is SSA."""

    x: int
    y: int
    label: str
    severity: float


@dataclass(frozen=True)
class DrawnSlide:
    """A drawn slide and what is known about it.

    Attributes:
        pixels: uint8 (H, W, 3), RGB. mpp: µm per pixel.
        factor: pixels of level 0 along a pixel of the truth.
        lesions: uint8 (H / factor, W / factor): GLASS, STROMA, HP or SSA.
        bases: bool, of the same shape: the crypt bases, which decide the class.
        crypts: every crypt base.
    """

    pixels: NDArray[np.uint8]
    mpp: float
    factor: int
    lesions: NDArray[np.uint8]
    bases: NDArray[np.bool_]
    crypts: tuple[Base, ...]


@dataclass(frozen=True)
class _Piece:
    """A piece of tissue; x, y, px: corner and side of its square, pixels of level 0; radius and rim in tiles."""

    x: int
    y: int
    px: int
    width: float
    radius: float
    rim: float
    label: str | None


def draw_slide(
    index: int,
    *,
    label: Literal["HP", "SSA", "both"] = "both",
    seed: int = 0,
    size_px: int = 4000,
    mpp: float = 1.0,
    pen: Pen | None = None,
) -> DrawnSlide:
    """Return slide `index` of the infinite series that `seed` defines.

    Args:
        label: class of all its lesions; "both" takes turns. One piece in four, where there are four, has no lesion.
        size_px: side of level 0. mpp: µm per pixel.
        pen: colour of a line around the first piece.

    Raises:
        ValueError: it would be smaller than a tile of `sscl data synth`, with room for no crypt.
    """
    if size_px * mpp < TILE_UM:
        raise ValueError(
            f"size_px: {size_px} pixels of {mpp:g} µm are {size_px * mpp:.0f} µm, with room for no crypt; a slide "
            f"needs {TILE_UM:.0f} µm, and 4,000 µm for several pieces"
        )
    rng = np.random.default_rng([seed, index])
    look = draw_slide_look(rng)
    factor = max(round(_TRUTH_UM / mpp), 1)
    size = size_px // factor
    drawn = DrawnSlide(
        pixels=_glass(look, size_px, rng),
        mpp=mpp,
        factor=factor,
        lesions=np.full((size, size), GLASS, np.uint8),
        bases=np.zeros((size, size), np.bool_),
        crypts=(),
    )
    pieces = _pieces(size_px, mpp, label, rng)
    for number, piece in enumerate(pieces):
        # Of its own numbers: what is drawn in a piece does not depend on the others.
        drawn = _draw_piece(drawn, piece, look, np.random.default_rng([seed, index, number]))
    if pen is not None:
        _draw_pen(drawn.pixels, pieces[0], pen)
    return drawn


def _glass(look: SlideLook, size_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the pixels of glass without tissue."""
    side = min(size_px, 1024)
    light = look.background + CAMERA_NOISE * rng.standard_normal((side, side, 3), dtype=np.float32)
    patch = np.clip(light * 255 + 0.5, 0, 255).astype(np.uint8)
    times = -(-size_px // side)
    return np.ascontiguousarray(np.tile(patch, (times, times, 1))[:size_px, :size_px], dtype=np.uint8)


def _pieces(size_px: int, mpp: float, label: str, rng: np.random.Generator) -> list[_Piece]:
    """Return the pieces of a slide: one in each cell of a square grid."""
    side = size_px * mpp / TILE_UM
    n = max(int(side / _CELL), 1)
    edges = np.rint(np.linspace(0, size_px, n + 1)).astype(int).tolist()
    start = int(rng.integers(2))
    pieces = []
    for number in range(n * n):
        row, column = divmod(number, n)
        both = ("HP", "SSA")[(number + row + start) % 2]  # neighbours differ
        px = min(edges[column + 1] - edges[column], edges[row + 1] - edges[row])
        width = px * mpp / TILE_UM
        pieces.append(
            _Piece(
                x=edges[column],
                y=edges[row],
                px=px,
                width=width,
                radius=width * float(rng.uniform(0.445, 0.465)),
                rim=min(_RIM, 0.08 * width),
                label=None if n > 1 and number % 4 == 3 else both if label == "both" else label,
            )
        )
    return pieces


def _draw_piece(drawn: DrawnSlide, piece: _Piece, look: SlideLook, rng: np.random.Generator) -> DrawnSlide:
    """Draw a piece and its truth; return the slide with its crypts added."""
    per_tile = TILE_UM / drawn.mpp
    view = View(
        angle=float(rng.uniform(0, 2 * np.pi)),
        zoom=float(rng.uniform(0.95, 1.06)),
        centre_v=0.35 * piece.width,
        size=piece.px * (2 if per_tile < 400 else 1),
        width=piece.width,
    )
    ambiguity = float(rng.uniform(0, 0.4))
    severity = 1 - ambiguity / 2 if piece.label == "SSA" else ambiguity / 2
    outline = _Outline.draw(piece, rng)
    rows = _Rows(wave=float(rng.uniform(0.03, 0.09)), phase=float(rng.uniform(0, 2 * np.pi)))
    canvas = stroma(view, rng, height=rows.height)
    paint_vessels(canvas, view, rng)
    paint_stromal_cells(canvas, view, float(rng.uniform(0.035, 0.10)), rng, height=rows.height)
    crypts = []
    if piece.label is not None:
        for row in _draw_rows(severity, rows, view, outline, rng):
            _paint_surface(canvas, row, rows, view, rng)
            crypts += row
        paint_epithelium(canvas, crypts, view, look.mucin, rng)
    canvas *= outline.cover(view.size)[..., None]
    canvas = textured(canvas, view, look.blur, rng)
    if view.size != piece.px:
        canvas = np.asarray(cv2.resize(canvas, (piece.px, piece.px), interpolation=cv2.INTER_AREA))
    there = np.s_[piece.y : piece.y + piece.px, piece.x : piece.x + piece.px]
    _stain(drawn.pixels[there], canvas, look, rng)
    return _note_truth(drawn, piece, outline, crypts, view, severity)


def _stain(pixels: NDArray[np.uint8], canvas: Canvas, look: SlideLook, rng: np.random.Generator) -> None:
    """Put tissue between the light and pixels of glass, in place, by the Beer-Lambert law."""
    stains = (look.strengths * rng.uniform(0.92, 1.08, 2))[:, None] * look.vectors
    for top in range(0, len(pixels), 256):  # in strips: little memory
        part = np.exp(-canvas[top : top + 256] @ stains.astype(np.float32))
        part = 255 * look.background.astype(np.float32) * (part - 1) + pixels[top : top + 256]
        pixels[top : top + 256] = np.clip(part + 0.5, 0, 255)


@dataclass(frozen=True)
class _Outline:
    """The uneven edge of a piece: distances are to its centre, in tiles along the axes of a rounded square."""

    distance: NDArray[np.float32]
    radius: float
    rim: float

    @classmethod
    def draw(cls, piece: _Piece, rng: np.random.Generator) -> _Outline:
        """Return the outline of a piece."""
        size = 512
        grid = np.abs((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * piece.width
        square = (grid[None, :] ** 3.5 + grid[:, None] ** 3.5) ** (1 / 3.5)
        uneven = 0.05 * noise(rng, max(round(piece.width * 1.2), 3), size) + 0.015 * noise(rng, 24, size)
        # It only ever shrinks the piece, so that it stays on its cell.
        distance = square + np.clip(0.06 + uneven, 0, 0.3) * min(piece.width / 4, 1)
        return cls(np.asarray(distance, dtype=np.float32), piece.radius, piece.rim)

    def cover(self, size: int) -> NDArray[np.float32]:
        """Return how much of each pixel of a canvas is tissue, 0 to 1, (size, size)."""
        inside = np.clip((self.radius - self.distance) / 0.02, 0, 1)
        return np.asarray(cv2.resize(inside, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.float32)

    def is_lesion(self, points: Floats) -> NDArray[np.bool_]:
        """Return which points (..., 2), from 0 to 1 on the canvas, lie in the lesion."""
        place = np.floor(points * len(self.distance)).astype(int)
        on = ((place >= 0) & (place < len(self.distance))).all(axis=-1)
        x, y = np.moveaxis(place.clip(0, len(self.distance) - 1), -1, 0)
        return np.asarray(on & (self.distance[y, x] < self.radius - self.rim))


@dataclass(frozen=True)
class _Rows:
    """Rows of crypts above each other, gently waved."""

    wave: float
    phase: float

    def lift(self, u: Floats) -> Floats:
        """Return how far a row is lifted at u."""
        return np.asarray(self.wave * np.sin(2 * np.pi * u / 2.7 + self.phase))

    def height(self, u: Floats, v: Floats) -> Floats:
        """Return heights above the bases of the row that they belong to."""
        return np.asarray(np.mod(v - self.lift(u) + _FLOOR, _PERIOD) - _FLOOR, dtype=v.dtype)


_TOP = _PERIOD - _FLOOR - _CLEFT  # of the crypts, above the bases of their row


def _draw_rows(
    severity: float, rows: _Rows, view: View, outline: _Outline, rng: np.random.Generator
) -> list[list[Crypt]]:
    """Return the crypts of a lesion, row by row."""
    reach = 0.75 * view.width / view.zoom
    found = []
    for number in range(int((view.centre_v - reach) / _PERIOD) - 1, int((view.centre_v + reach) / _PERIOD) + 2):
        row = []
        for crypt in draw_crypts(severity, rng, reach=reach):
            middle = float(crypt.axis[0, 0])
            shift = np.array([0, number * _PERIOD + rows.lift(np.array(middle))])
            if outline.is_lesion(view.tile(np.array([middle, _TOP / 2]) + shift)):
                curves = (crypt.outer, crypt.lumen, crypt.axis)
                row.append(Crypt(*(curve[curve[:, 1] < _TOP] + shift for curve in curves)))
        if row:
            found.append(row)
    return found


def _paint_surface(canvas: Canvas, row: list[Crypt], rows: _Rows, view: View, rng: np.random.Generator) -> None:
    """Paint the epithelium between the mouths of a row's crypts, and the cleft above it."""
    u = np.arange(row[0].axis[:, 0].mean() - 0.25, row[-1].axis[:, 0].mean() + 0.25, 0.01)
    base = float(row[0].axis[0, 1] - rows.lift(row[0].axis[:1, 0])[0])
    surface = rows.lift(u) + base + _TOP + 0.006 * np.interp(u, u[::8], rng.normal(size=len(u[::8])))
    line = np.stack([u, surface - 0.02], axis=1)
    stain = rng.uniform([0.3, 0.32], [0.45, 0.5]).tolist()
    cv2.polylines(canvas, [view.pixels(line)], False, stain, view.brush(0.045), cv2.LINE_8, SUBPIXEL_BITS)
    places = np.arange(u[0], u[-1], 0.0155)
    n = len(places)
    centres = np.stack([places, np.interp(places, u, line[:, 1]) - 0.008], axis=1) + rng.normal(0, 0.002, (n, 2))
    axes = rng.normal([0.0118, 0.0058], [0.0019, 0.0009], (n, 2)).clip(0.003)
    directions = np.stack([rng.normal(0, 0.14, n), np.ones(n)], axis=1)
    fill(canvas, view.pixels(blobs(centres, axes, directions, rng)), nuclear_stain(rng, n))
    taper = np.clip(np.minimum(u - u[0], u[-1] - u) / 0.3, 0, 1) ** 0.5  # the cleft closes at its ends
    above = np.stack([u, surface + _CLEFT * taper], axis=1)
    cleft = np.concatenate([np.stack([u, surface], axis=1), above[::-1]])
    cv2.fillPoly(canvas, [view.pixels(cleft)], (0.01, 0.01), cv2.LINE_8, SUBPIXEL_BITS)


def _note_truth(
    drawn: DrawnSlide, piece: _Piece, outline: _Outline, crypts: list[Crypt], view: View, severity: float
) -> DrawnSlide:
    """Enter a piece in the maps of the truth, in place; return the slide with its crypts added."""
    x, y, size = (round(value / drawn.factor) for value in (piece.x, piece.y, piece.px))
    size = min(size, *(length - at for length, at in zip(drawn.lesions.shape, (y, x), strict=True)))
    there = np.s_[y : y + size, x : x + size]
    tissue = outline.cover(size) > 0.5
    drawn.lesions[there][tissue] = STROMA
    if piece.label is None:
        return drawn
    lesion = _near(crypts, view, size) & tissue
    drawn.lesions[there][lesion] = LABELS[piece.label]
    drawn.bases[there] = base_mask(crypts, view, size_px=size) & tissue
    lowest = np.array([crypt.outer[crypt.outer[:, 1].argmin()] for crypt in crypts]).reshape(-1, 2)
    places = np.floor(view.tile(lowest) * piece.px).astype(int) + (piece.x, piece.y)
    found = tuple(Base(int(x), int(y), piece.label, round(severity, 3)) for x, y in places)
    return replace(drawn, crypts=drawn.crypts + found)


def _near(crypts: list[Crypt], view: View, size: int) -> NDArray[np.bool_]:
    """Return which pixels of the truth lie in a crypt or near one, (size, size)."""
    mask = np.zeros((size, size), np.uint8)
    for crypt in crypts:
        cv2.fillPoly(mask, [np.rint(view.tile(crypt.outer) * size - 0.5).astype(np.int32)], 255)
    side = 2 * max(round(_NEAR * size / view.width), 1) + 1
    return np.asarray(cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))) > 0)


def _draw_pen(pixels: NDArray[np.uint8], piece: _Piece, pen: Pen) -> None:
    per_tile = piece.px / piece.width
    line = np.zeros((piece.px, piece.px), np.uint8)
    middle, radius = piece.px // 2, round(piece.px * 0.485)
    cv2.ellipse(line, (middle, middle), (radius, round(radius * 0.97)), 0, 20, 350, 255, max(round(0.09 * per_tile), 2))
    covered = np.asarray(cv2.GaussianBlur(line, (0, 0), max(0.01 * per_tile, 0.5)), dtype=np.float32)[..., None] / 255
    part = pixels[piece.y : piece.y + piece.px, piece.x : piece.x + piece.px]
    part[:] = part * (1 - covered * (1 - np.array(_INKS[pen], dtype=np.float32))) + 0.5
