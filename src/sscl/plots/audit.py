"""Pictures of an audit: pairs of tiles side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sscl.plots import base

_SERIOUS = "#D55E00"
_PLAIN = "#999999"


def pair_sheet(
    pairs: Sequence[tuple[base.ByteArray, base.ByteArray]],
    *,
    captions: Sequence[tuple[str, str, str]],
    serious: Sequence[bool],
    path: str | os.PathLike[str],
    title: str,
    columns: int = 5,
) -> None:
    """Draw pairs of tiles side by side, each in a frame with what is said of it below.

    Args:
        pairs: two uint8 (H, W, 3) tiles each, at least one pair.
        captions: for each pair, a line under the first tile, one under the second, and one for both.
        serious: whether to frame the pair in colour: it lies across splits.
        path: the PNG to write.
        title: above all.
        columns: pairs in a row.

    Raises:
        ValueError: wrong shapes, no pair, or not a caption and a flag for each. FileNotFoundError: no such folder.
    """
    for number, pair in enumerate(pairs):
        for image in pair:
            base.check_images(image[None], name=f"pairs[{number}]")
    if not pairs or not len(pairs) == len(captions) == len(serious):
        raise ValueError(
            f"pairs, captions, serious: {len(pairs)}, {len(captions)}, {len(serious)}, must be equally many, at least 1"
        )
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    tile, gap, text = 1.3, 0.16, 0.52  # inches
    step_x, step_y = 2 * tile + 0.04 + 2 * gap, tile + text + gap
    width, height = columns * step_x + gap, rows * step_y + gap
    figure = Figure(figsize=(width, height), dpi=base.DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    for number, (pair, (left_text, right_text, below), across) in enumerate(zip(pairs, captions, serious, strict=True)):
        row, column = divmod(number, columns)
        left, top = gap + column * step_x, height - gap - row * step_y
        for side, (image, said) in enumerate(zip(pair, (left_text, right_text), strict=True)):
            x = left + side * (tile + 0.04)
            axes.imshow(image, extent=(x, x + tile, top - tile, top), interpolation="antialiased")
            axes.text(x, top - tile - 0.05, base.caption(said, 24), fontsize=6.5, va="top")
        axes.text(left, top - tile - 0.2, base.caption(below, 50), fontsize=6.5, va="top", color="0.25")
        axes.add_patch(
            Rectangle(
                (left - 0.05, top - tile - text),
                2 * tile + 0.14,
                tile + text + 0.05,
                fill=False,
                linewidth=2.0 if across else 0.6,
                edgecolor=_SERIOUS if across else _PLAIN,
            )
        )
    axes.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    axes.set_axis_off()
    figure.text(gap / width, 1 + 0.08 / height, base.plain(title), fontsize=10, va="bottom")
    base.save_figure(figure, path)
