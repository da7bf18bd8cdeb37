"""The pictures of heatmaps: a map over its tile, a box, and the charts of the checks; N tiles, H x W pixels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

from sscl.explain.cam import Box, normalise
from sscl.plots import base
from sscl.plots.base import ByteArray, FloatArray
from sscl.plots.sheets import plot_cam_panel, write_image

COLORMAPS = {
    "viridis": cv2.COLORMAP_VIRIDIS,
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "cividis": cv2.COLORMAP_CIVIDIS,
}
NAME_BYTES = 120  # of a tile's name in the name of a picture
METHOD_NAMES = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
    "eigencam": "EigenCAM",
}
# Columns of boxes.csv.
BOX_FIELDS = ("x0", "y0", "x1", "y1", "threshold", "connectivity", "components", "area_fraction", "raw_maximum")


def heatmap_rgb(map01: FloatArray, *, colormap: str = "viridis") -> ByteArray:
    """Return a map in 0..1 (H, W) as colours, uint8 (H, W, 3); the colormaps are perceptually uniform.

    Raises:
        ValueError: unknown colormap, or a map outside 0..1.
    """
    if colormap not in COLORMAPS:
        raise ValueError(f"colormap: {colormap!r}, must be one of {', '.join(COLORMAPS)}")
    _check_map01(map01)
    levels = np.round(map01 * 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, COLORMAPS[colormap])[..., ::-1])  # cv2 gives BGR


def overlay(image: ByteArray, map01: FloatArray, *, alpha: float = 0.7, colormap: str = "viridis") -> ByteArray:
    """Return the heatmap laid over a tile, uint8 (H, W, 3).

    The opacity is alpha x map, so tissue without evidence stays as it is, and a map without evidence changes
    nothing.

    Args:
        image: the tile, uint8 (H, W, 3).
        map01: from `normalise`, (H, W).
        alpha: opacity at the peak, 0..1.
        colormap: see `heatmap_rgb`.
    """
    _check_image(image)
    if image.shape[:2] != map01.shape:
        raise ValueError(f"image and map: {image.shape[:2]} and {map01.shape} pixels, must be equal (enlarge the map)")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: {alpha}, must lie within 0 to 1")
    opacity = alpha * map01[..., None]
    blended = (1 - opacity) * image + opacity * heatmap_rgb(map01, colormap=colormap)
    rounded: ByteArray = np.round(blended).astype(np.uint8)
    return rounded


def draw_box(image: ByteArray, box: Box | None) -> ByteArray:
    """Return a copy of a tile, uint8 (H, W, 3), with the box drawn; without a box, the plain copy.

    A yellow line with a black one inside it, so that it shows on white lumen and on dark nuclei alike, also
    to the colour-blind.
    """
    _check_image(image)
    drawn: ByteArray = image.copy()
    if box is None:
        return drawn
    width = max(1, round(min(image.shape[:2]) / 100))
    for inset, colour in ((0, (255, 221, 0)), (width, (0, 0, 0))):
        x0, y0, x1, y1 = box.x0 + inset, box.y0 + inset, box.x1 - inset, box.y1 - inset
        if x1 <= x0 or y1 <= y0:
            break
        drawn[y0 : min(y0 + width, y1), x0:x1] = colour
        drawn[max(y1 - width, y0) : y1, x0:x1] = colour
        drawn[y0:y1, x0 : min(x0 + width, x1)] = colour
        drawn[y0:y1, max(x1 - width, x0) : x1] = colour
    return drawn


def short_name(name: str) -> str:
    """Return a file's name cut so that what is added to it still makes a file name."""
    return name.encode()[:NAME_BYTES].decode(errors="ignore")


def draw_tile(
    image: ByteArray, raw: FloatArray, box: Box | None, *, title: str, out: Path, name: str, method: str
) -> None:
    """Write the panel, and the heatmap and the box alone, of one tile: NAME_panel.png, _heatmap.png, _box.png.

    Args:
        image: the tile, uint8 (H, W, 3). raw: its map, (H, W), before ReLU and scaling. box: of that map.
        title: above the panel. out, name: where. method: one of METHOD_NAMES.
    """
    image = np.array(image)
    heat, boxed = overlay(image, normalise(raw)), draw_box(image, box)
    plot_cam_panel(image, heat, boxed, title=title, path=out / f"{name}_panel.png", method=METHOD_NAMES[method])
    write_image(heat, path=out / f"{name}_heatmap.png")
    write_image(boxed, path=out / f"{name}_box.png")


def box_values(raw: FloatArray, box: Box | None, *, threshold: float) -> list[Any]:
    """Return the BOX_FIELDS of a map, (H, W); of one without positive evidence the raw maximum is kept."""
    if box is None:
        return [None, None, None, None, threshold, 8, 0, None, float(raw.max())]
    return [getattr(box, field) for field in BOX_FIELDS]


def _check_map01(map01: FloatArray) -> None:
    # Written so that NaN fails too.
    if map01.ndim != 2 or not (map01.min() >= 0 and map01.max() <= 1):
        raise ValueError(f"map: shape {map01.shape}, must be (height, width) with values within 0 to 1; see normalise")


def _check_image(image: ByteArray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: {image.dtype} of shape {image.shape}, must be uint8 (height, width, 3)")


def plot_randomisation(found: Mapping[str, Any], *, path: str | os.PathLike[str], title: str) -> None:
    """Draw how alike the maps stay, from the head downwards, as `cam_checks.randomisation` gives it.

    Raises:
        ValueError: nothing was measured. FileNotFoundError: the folder of path does not exist.
    """
    names = found["stages"]
    if len(found["ssim"]["mean"]) != len(names):
        raise ValueError("randomisation: holds no curve, since no map could be judged")
    figure = Figure(figsize=(max(6.4, 1.6 + 0.48 * len(names)), 4.6), dpi=base.DPI, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names) + 1)
    for index, (key, label) in enumerate(
        (
            ("absolute_rank_correlation", "|rank correlation|"),
            ("rank_correlation", "rank correlation"),
            ("ssim", "SSIM"),
        )
    ):
        mean, sd = (np.array([start, *found[key][which]]) for which, start in (("mean", 1.0), ("sd", 0.0)))
        style = base.line_style(index)
        axes.plot(places, mean, marker="os^"[index], markersize=4, label=label, **style)
        if key != "rank_correlation":  # three bands hide one another
            axes.fill_between(places, mean - sd, mean + sd, color=style["color"], alpha=0.13, linewidth=0)
    axes.axhline(found["unrelated_below"], color="0.35", linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    axes.text(
        places[-1],
        found["unrelated_below"] + 0.015,
        "|rank correlation| passes below this line, at the right end",
        color="0.35",
        fontsize=8,
        ha="right",
        va="bottom",
    )
    axes.set_xticks(places, ["as trained", *map(base.plain, names)], rotation=55, ha="right", fontsize=8)
    axes.set(
        ylabel="Agreement with the trained net's maps",
        title=base.plain(title),
        ylim=(min(axes.get_ylim()[0], -0.05), 1.05),
    )
    axes.set_xlabel("Random from the head down to")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    base.save_figure(figure, path)


def plot_deletion_insertion(found: Mapping[str, Any], *, path: str | os.PathLike[str], title: str) -> None:
    """Draw the curves of `cam_checks.deletion_insertion`, deletion on the left, insertion on the right.

    Raises:
        FileNotFoundError: the folder of path does not exist.
    """
    figure = Figure(figsize=(9.4, 4), dpi=base.DPI, layout="constrained")
    figure.suptitle(base.plain(title))
    panels = (
        ("deletion", "Deletion: lower is better", "blurred"),
        ("insertion", "Insertion: higher is better", "brought back"),
    )
    for axes, (way, heading, done) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for index, (name, entry) in enumerate(found[way].items()):
            low, high = entry["interval"]
            label = f"{name}: area {entry['auc']:.3f} ({low:.3f} to {high:.3f})"
            style = base.line_style(index) | {"linewidth": 2.2 if name == "map" else 1.4}
            axes.plot(found["fractions"], entry["curve"], marker="os^"[index], markersize=3.5, label=label, **style)
        axes.set(xlabel=f"Share of the tile {done}, in the order of each", title=heading, ylim=(0, 1.02), xlim=(0, 1))
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)
        if way == "deletion":
            axes.set_ylabel("Probability of the explained class")
    base.save_figure(figure, path)


def plot_box_sensitivity(found: Mapping[str, Any], *, path: str | os.PathLike[str], title: str) -> None:
    """Draw area, shift and overlap of the box against its threshold, as `cam_checks.box_sensitivity` gives them.

    Raises:
        ValueError: nothing was measured. FileNotFoundError: the folder of path does not exist.
    """
    if not found["tiles"]:
        raise ValueError("box sensitivity: holds no curve, since no map has a box")
    figure = Figure(figsize=(7.4, 4.2), dpi=base.DPI, layout="constrained")
    axes = figure.subplots()
    places = 100 * np.array(found["thresholds"])
    series = (
        ("area_fraction", "box area, of the tile"),
        ("iou", f"overlap (IoU) with the box at {found['threshold']:.0%}"),
        ("centre_shift", f"its centre's distance from that at {found['threshold']:.0%}, of the side"),
    )
    for index, (key, label) in enumerate(series):
        mean, sd = np.array(found[key]["mean"]), np.array(found[key]["sd"])
        style = base.line_style(index)
        axes.plot(places, mean, marker="os^"[index], markersize=4, label=label, **style)
        axes.fill_between(
            places, np.maximum(mean - sd, 0), np.minimum(mean + sd, 1), color=style["color"], alpha=0.13, linewidth=0
        )
    axes.axvline(100 * found["threshold"], color="0.35", linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    axes.set(xlabel="Threshold, percent of the map's maximum", ylabel="Mean over tiles, band ± 1 sd", ylim=(0, 1.03))
    axes.set_title(base.plain(title))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    base.save_figure(figure, path)
