"""Pictures of embeddings: 2D maps coloured by class or cluster, and the contact sheet of clusters.

N tiles, k clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sscl.evaluate.metrics import MANY_CLASSES
from sscl.plots import base

_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
_GREY = ("0.7", ".")
_TURNS = 8  # points are drawn in this many rounds over the classes, so that no class hides the others


def plot_map(
    points: npt.ArrayLike,
    *,
    labels: npt.ArrayLike,
    classes: Sequence[str],
    path: Path,
    title: str,
    axis_labels: tuple[str, str] | None = None,
) -> None:
    """Draw tiles as points in the plane, each class in its colour and marker; of many the largest, the others in grey.

    Args:
        points: (N, 2), N >= 1.
        labels: (N,), index into `classes`; -1 = unlabelled, in grey beneath.
        classes: names; those without tiles are left out of the legend.
        axis_labels: what the axes mean; None if nothing (t-SNE, UMAP): no labels, no ticks.
    """
    at, label = np.asarray(points, dtype=np.float64), np.asarray(labels)
    spread = np.maximum(np.ptp(at, axis=0), 1e-9)
    figure = Figure(figsize=(6.4, 6.4 * float(np.clip(spread[1] / spread[0], 0.5, 1.5))), dpi=base.DPI)
    axes = figure.subplots()
    area = float(np.clip(12000 / len(at), 8, 40))
    sizes = np.bincount(label[label >= 0], minlength=len(classes))
    largest = np.argsort(-sizes, kind="stable")[: MANY_CLASSES if len(classes) > MANY_CLASSES else None]
    coloured = np.isin(label, largest)
    if not coloured.all():
        grey = ~coloured
        axes.scatter(at[grey, 0], at[grey, 1], s=area, linewidths=0, alpha=0.6, color=_GREY[0], marker=_GREY[1])
    order = np.random.default_rng(0).permutation(np.flatnonzero(coloured))
    for turn in np.array_split(order, _TURNS):
        for index in np.unique(label[turn]):
            rows = turn[label[turn] == index]
            colour, marker = _style(int(index))
            axes.scatter(
                at[rows, 0],
                at[rows, 1],
                s=area,
                linewidths=0.3,
                edgecolors="white",
                alpha=0.85,
                color=colour,
                marker=marker,
            )
    for index in sorted(largest[sizes[largest] > 0].tolist()):
        shown = f"{base.plain(classes[index], 28)} ({sizes[index]:,})"
        colour, marker = _style(index)
        axes.scatter([], [], s=40, linewidths=0, label=shown, color=colour, marker=marker)
    smaller = int((~coloured & (label >= 0)).sum())
    rest = {f"{np.count_nonzero(sizes) - len(largest):,} smaller ones": smaller, "unlabelled": int((label < 0).sum())}
    for what, tiles in rest.items():
        if tiles:
            axes.scatter([], [], s=40, linewidths=0, label=f"{what} ({tiles:,})", color=_GREY[0], marker=_GREY[1])
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    axes.set_title(base.plain(title), fontsize=11)
    axes.set_aspect("equal", adjustable="datalim")
    if axis_labels is None:
        axes.set(xticks=[], yticks=[])
    else:
        axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    base.save_figure(figure, path)


def cluster_sheet(rows: Sequence[base.ByteArray], *, captions: Sequence[str], path: Path, title: str) -> None:
    """Draw clusters of tiles, one per row, each with its caption on the left.

    Source: the figure of sampled clusters in the README of Ciga et al. (arXiv:2011.13971).

    Args:
        rows: k times uint8 (M, H, W, 3), M >= 1 tiles of a cluster; M may differ.
        captions: k texts; line breaks stay.
    """
    columns = max(map(len, rows))
    tile, gap = 0.9, 0.06  # inches
    text = 0.3 + 0.068 * max(len(line) for caption in captions for line in caption.split("\n"))
    width, height = text + columns * (tile + gap), len(rows) * (tile + gap) + gap
    figure = Figure(figsize=(width, height), dpi=base.DPI)
    # One axes in inches, upwards, for all: an axes for each of hundreds of tiles would take long.
    axes: Axes = figure.add_axes((0, 0, 1, 1))
    for row, (tiles, caption) in enumerate(zip(rows, captions, strict=True)):
        bottom = height - (row + 1) * (tile + gap)
        axes.text(gap, bottom + tile / 2, base.plain(caption), fontsize=8, va="center", linespacing=1.25)
        for column, image in enumerate(tiles):
            left = text + column * (tile + gap)
            axes.imshow(image, extent=(left, left + tile, bottom, bottom + tile), interpolation="antialiased")
    axes.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    axes.set_axis_off()
    figure.text(gap / width, 1 + gap / height, base.plain(title), fontsize=10, va="bottom")
    base.save_figure(figure, path)


def _style(index: int) -> tuple[str, str]:
    """Return colour and marker: 7 and 8 of them, so that 56 classes differ."""
    return base.LINE_COLOURS[index % len(base.LINE_COLOURS)], _MARKERS[index % len(_MARKERS)]
