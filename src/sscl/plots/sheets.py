"""Sheets of tiles: samples, augmented views, tiles beside their heatmaps; N tiles, H x W pixels."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from sscl.plots import base
from sscl.plots.base import ByteArray

_ACROSS = 8  # tiles of a contact sheet


def contact_sheet(images: ByteArray, *, captions: Sequence[str], path: Path, note: str = "") -> None:
    """Draw tiles in a grid, each with its caption.

    Args:
        images: uint8 (N, H, W, 3), N >= 1.
        captions: N texts; a long one is shortened in the middle, line breaks stay.
        note: below all.
    """
    columns = min(_ACROSS, len(images))
    lines = max(caption.count("\n") for caption in captions) + 1
    _grid(
        [images[start : start + columns] for start in range(0, len(images), columns)],
        above=lambda row, column: base.caption(captions[row * columns + column], 20),
        columns=columns,
        caption_inches=0.08 + 0.15 * lines,
        path=path,
        note=note,
    )


def plot_views(
    originals: ByteArray,
    first: ByteArray,
    second: ByteArray,
    *,
    ids: Sequence[str],
    path: Path,
    note: str = "",
) -> None:
    """Draw tiles beside their two augmented views, one tile per row.

    Args:
        originals, first, second: uint8 (N, H, W, 3), N >= 1; the views may have another size than the originals.
        ids: N names of the tiles. note: below all.
    """
    _grid(
        list(zip(originals, first, second, strict=True)),
        above=lambda row, column: (base.caption(ids[row], 24), "first view", "second view")[column],
        columns=3,
        caption_inches=0.23,
        path=path,
        note=note,
    )


def plot_cam_panel(
    image: ByteArray,
    overlay: ByteArray,
    boxed: ByteArray,
    *,
    title: str,
    path: Path,
    method: str,
    scale: tuple[ByteArray, str] | None,
) -> None:
    """Draw the paper's Grad-CAM figure: original | heatmap | box.

    Args:
        image, overlay, boxed: uint8 (H, W, 3).
        method: above the heatmap.
        title: such as true and predicted class with its probability; line breaks stay.
        scale: below the heatmap, its colours from 0 to the peak, uint8 (1, N, 3), and what the peak is, with its unit;
            None: there is none.
    """
    panels = (("Original", image), (method, overlay), ("Box", boxed))
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, 84) or [""]]
    height = 3.35 + 0.2 * len(lines) + (0 if scale is None else 0.35)
    figure = Figure(figsize=(9, height), dpi=base.DPI, layout="constrained")
    figure.suptitle(base.plain("\n".join(lines)), fontsize=11)
    for axes, (name, picture) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.set_axis_off()
        if scale is not None and picture is overlay:
            bar = axes.inset_axes((0, -0.08, 1, 0.04))
            bar.imshow(scale[0], aspect="auto", extent=(0, 1, 0, 1))
            bar.set_yticks([])
            bar.set_xticks([0, 1], ["0", base.plain(scale[1])], fontsize=8)
            bar.get_xticklabels()[1].set_horizontalalignment("right")
    base.save_figure(figure, path)


def write_image(image: ByteArray, *, path: Path) -> None:
    """Write pixels, uint8 (H, W, 3), as a PNG of the same size."""
    with base.writing(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def _grid(
    rows: Sequence[Sequence[ByteArray] | ByteArray],
    *,
    above: Callable[[int, int], str],
    columns: int,
    caption_inches: float,
    path: Path,
    note: str,
) -> None:
    """Draw rows of tiles with a caption above each, at computed places: layout engines are slow here."""
    tile, gap = 224 / base.DPI, 0.08  # inches: a 224 px tile keeps its pixels
    width = columns * (tile + gap) + gap
    height = len(rows) * (tile + caption_inches) + gap
    figure = Figure(figsize=(width, height), dpi=base.DPI)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            left, top = gap + column * (tile + gap), (row + 1) * caption_inches + row * tile
            axes = figure.add_axes((left / width, 1 - (top + tile) / height, tile / width, tile / height))
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(above(row, column), fontsize=8, pad=2, linespacing=1.1)
    if note:
        figure.text(gap / width, -0.02 / height, base.plain(note), fontsize=8, va="top")
    base.save_figure(figure, path)
