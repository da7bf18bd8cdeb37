"""Pictures of heatmaps: a map over its tile, and a box; H x W pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sscl.explain.boxes import Box, Corners, normalise
from sscl.explain.kinds import METHODS, MapKind
from sscl.plots.base import ByteArray, FloatArray
from sscl.plots.sheets import plot_cam_panel, write_image

NAME_BYTES = 120  # of a tile's name, in the name of its picture
_YELLOW = (255, 221, 0)


def heatmap_rgb(map01: FloatArray) -> ByteArray:
    """Return a map in 0..1 (H, W) in the colours of viridis, which is perceptually uniform, uint8 (H, W, 3)."""
    levels = np.round(map01 * 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1])  # cv2 gives BGR


def overlay(image: ByteArray, map01: FloatArray, *, alpha: float = 0.7) -> ByteArray:
    """Return the heatmap laid over a tile, uint8 (H, W, 3).

    The opacity is alpha x map, so tissue without evidence stays as it is, and a map without evidence changes
    nothing.

    Args:
        image: the tile, uint8 (H, W, 3).
        map01: from `normalise`, (H, W).
        alpha: opacity at the peak, 0..1.

    Raises:
        ValueError: alpha is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: got {alpha}, must lie within 0 to 1")
    opacity = alpha * map01[..., None]
    blended = (1 - opacity) * image + opacity * heatmap_rgb(map01)
    rounded: ByteArray = np.round(blended).astype(np.uint8)
    return rounded


def draw_box(image: ByteArray, box: Box | None) -> ByteArray:
    """Return a copy of a tile, uint8 (H, W, 3), with the box drawn; without a box, the plain copy.

    A yellow line with a black one inside it, so that it shows on white lumen and on dark nuclei alike, also
    to the colour-blind. Further regions that `Box.shown` names have a thinner, yellow line, under that of
    the box.
    """
    drawn: ByteArray = image.copy()
    if box is None:
        return drawn
    width = max(1, round(min(image.shape[:2]) / 100))
    for corners in reversed(box.shown):
        _outline(drawn, corners, width=max(1, width // 2), colour=_YELLOW)
    x0, y0, x1, y1 = box.corners
    _outline(drawn, box.corners, width=width, colour=_YELLOW)
    _outline(drawn, (x0 + width, y0 + width, x1 - width, y1 - width), width=width, colour=(0, 0, 0))
    return drawn


def _outline(image: ByteArray, corners: Corners, *, width: int, colour: tuple[int, int, int]) -> None:
    """Draw a rectangle into an image, within its corners; nothing where they leave no pixel."""
    x0, y0, x1, y1 = corners
    if x1 <= x0 or y1 <= y0:
        return
    image[y0 : min(y0 + width, y1), x0:x1] = colour
    image[max(y1 - width, y0) : y1, x0:x1] = colour
    image[y0:y1, x0 : min(x0 + width, x1)] = colour
    image[y0:y1, max(x1 - width, x0) : x1] = colour


def short_name(name: str) -> str:
    """Return a file's name, cut so that it is not too long for a file once a suffix is added."""
    return name.encode()[:NAME_BYTES].decode(errors="ignore")


def draw_tile(
    image: ByteArray,
    raw: FloatArray,
    box: Box | None,
    *,
    title: str,
    out: Path,
    name: str,
    kind: MapKind,
) -> None:
    """Write the panel, and the heatmap and the box alone, of one tile: NAME_panel.png, _heatmap.png, _box.png.

    Args:
        image: the tile, uint8 (H, W, 3). raw: its map, (H, W), before ReLU and scaling. box: of that map.
        title: above the panel. out, name: where. kind: how it was made.
    """
    image = np.array(image)
    heat, boxed = overlay(image, normalise(raw)), draw_box(image, box)
    peak = f"{raw.max():.2g} logits per cell" if kind.in_logits else f"peak {raw.max():.2g}, without a unit"
    plot_cam_panel(
        *(image, heat, boxed),
        title=title,
        path=out / f"{name}_panel.png",
        method=METHODS[kind.method],
        scale=None if box is None else (_colour_scale(), peak),
    )
    write_image(heat, path=out / f"{name}_heatmap.png")
    write_image(boxed, path=out / f"{name}_box.png")


def _colour_scale() -> ByteArray:
    """Return the colours of a heatmap on white, from 0 to the peak, uint8 (1, 256, 3)."""
    levels = np.linspace(0, 1, 256, dtype=np.float32)[None]
    return overlay(np.full((1, 256, 3), 255, np.uint8), levels)
