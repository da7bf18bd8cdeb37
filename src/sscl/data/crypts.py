"""The outlines of a row of crypts, whose lowest part differs between the classes.

Lengths are in tiles; u runs along the row of crypts, v from their bases (v = 0) to the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BASE_HEIGHT = 0.22  # the class-deciding band, from the bases of the crypts upwards
THICKNESS = 0.062  # of the epithelium


@dataclass(frozen=True)
class Crypt:
    """Curves in (u, v), each (M, 2): outlines run from one top round the base to the other, the axis upwards."""

    outer: Floats
    lumen: Floats
    axis: Floats


def _half_width(v: Floats, *, stem: float, top: float, foot: float, foot_height: float, closure: float) -> Floats:
    """Return the half-width of one side of a crypt at height v above its lowest point.

    It is that of a stem that widens to the top, plus a foot below foot_height, under a rounded closure.
    """
    rise = np.clip((v - 0.12) / 0.55, 0, 1)
    width = stem + (top - stem) * (rise * rise * (3 - 2 * rise))
    width = width + foot / (1 + np.exp(np.clip((v - foot_height) / 0.013, -30, 30)))
    return np.asarray(width * np.sqrt(1 - (1 - np.clip(v / closure, 0, 1)) ** 2))


def resample(curve: Floats, spacing: float) -> Floats:
    """Return points at even distances along a curve (M, 2)."""
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    at = np.linspace(0, length[-1], max(int(length[-1] / spacing), 8))
    return np.stack([np.interp(at, length, curve[:, 0]), np.interp(at, length, curve[:, 1])], axis=1)


def normals(outline: Floats) -> Floats:
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


def draw_crypts(severity: float, rng: np.random.Generator, *, reach: float = 0.9) -> list[Crypt]:
    """Return a row of crypts from u = -reach to reach; the reach of 0.9 fills a tile from side to side."""
    spacing = 0.36 + rng.uniform(-0.04, 0.04)
    centres = np.arange(-reach, reach, spacing) + rng.uniform(-0.5, 0.5) * spacing
    n = len(centres)
    centres += rng.normal(0, 0.02, n)
    severities = np.clip(severity + rng.normal(0, 0.09, n), 0, 1)
    stems = 0.080 + rng.normal(0, 0.003, n)
    tops = 0.119 + rng.uniform(-0.016, 0.016) + rng.normal(0, 0.006, n)
    feet = _draw_feet(severities, centres, stems, rng)
    heights = 0.13 + 0.065 * severities + rng.normal(0, 0.006, n)
    sinking = rng.normal(0, 0.013, n)
    amplitude = rng.uniform(0.026, 0.036)
    thickness = THICKNESS + rng.uniform(-0.008, 0.004)
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
            resample(np.concatenate([right[1][::-1], left[1][1:]]), 0.004),
            start=BASE_HEIGHT - 0.42 * float(severities[k]),
            amplitude=amplitude,
            rng=rng,
        )
        outer_curve = resample(np.concatenate([right[0][::-1], left[0][1:]]), 0.006)
        knots = rng.normal(0, 0.0035, 64)
        bulge = np.interp(np.arange(len(outer_curve)) * 0.006 / 0.06, np.arange(64.0), knots)
        outer_curve += normals(outer_curve) * bulge[:, None]
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
    return np.asarray(lumen - normals(lumen) * (saw * gate * reach)[:, None])
