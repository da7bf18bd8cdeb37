"""Pictures of an audit: pairs of near-duplicates side by side, and outliers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sscl.data.audit import Findings, Parts
from sscl.data.duplicates import Pair
from sscl.data.outliers import Outlier
from sscl.data.synthetic import SAID, is_synthetic
from sscl.plots import base, sheets

_ACROSS = "#D55E00"
_WITHIN = "#999999"
_PAIRS_A_ROW = 5


def draw_pairs(parts: Parts, found: Findings, *, limit: int, path: Path) -> None:
    """Draw up to `limit` pairs, those across splits first and in a thick frame; there must be a pair."""
    shown, across = found.pairs[:limit], set(found.across)
    pair_sheet(
        [(parts.images[pair.first], parts.images[pair.second]) for pair in shown],
        captions=[
            (tile_caption(parts, pair.first), tile_caption(parts, pair.second), pair_caption(pair)) for pair in shown
        ],
        across=[pair in across for pair in shown],
        path=path,
        title=f"{len(shown)} of {len(found.pairs):,} pairs, those across splits first "
        f"({len(across):,} pairs, thick frame){'; ' * bool(_note(parts))}{_note(parts)}",
    )


def draw_outliers(parts: Parts, outliers: Sequence[Outlier], *, limit: int, path: Path) -> None:
    """Draw up to `limit` outliers, the kinds taking turns, the most extreme of each first; there must be one."""
    turn = Counter[str]()
    order = []
    for outlier in sorted(outliers, key=lambda outlier: (outlier.kind, -abs(outlier.value))):
        order.append((turn[outlier.kind], outlier))
        turn[outlier.kind] += 1
    shown = [outlier for _, outlier in sorted(order, key=lambda entry: entry[0])[:limit]]
    sheets.contact_sheet(
        np.stack([parts.images[outlier.row] for outlier in shown]),
        captions=[f"{tile_caption(parts, outlier.row)}\n{outlier_caption(outlier)}" for outlier in shown],
        path=path,
        note=_note(parts),
    )


def _note(parts: Parts) -> str:
    return SAID if is_synthetic("", parts.ids) else ""


def tile_caption(parts: Parts, row: int) -> str:
    """Return a tile's part and file name."""
    return f"{parts.part_of[row]}: {Path(parts.ids[row]).name}"


def pair_caption(pair: Pair) -> str:
    """Return the line below a pair: how it was found, the correlation, how the second tile was moved."""
    if pair.kind == "exact":
        return "identical pixels"
    if pair.kind == "embedding":
        return f"similar only: cosine {pair.score:.3f}, confidence {pair.confidence:.2f}"
    if pair.kind == "hash":
        return f"r {pair.score:.2f}, hash differs in {pair.distance} bits\n{pair.movement}"
    sure = f", confidence {pair.confidence:.2f}"
    shared = f"{100 * (pair.overlap or 0):.0f}% overlap"
    return f"r {pair.score:.2f}, {pair.keypoints} keypoints, {shared}{sure}\n{pair.movement}"


def outlier_caption(outlier: Outlier) -> str:
    """Return the short reason under an outlier."""
    if outlier.kind == "blank":
        return f"blank: {outlier.reason}"
    return f"{outlier.kind}: {abs(outlier.value):.1f} SD"  # contact_sheet has room for 20 letters


def pair_sheet(
    pairs: Sequence[tuple[base.ByteArray, base.ByteArray]],
    *,
    captions: Sequence[tuple[str, str, str]],
    across: Sequence[bool],
    path: Path,
    title: str,
) -> None:
    """Draw pairs of tiles side by side, each in a frame with its captions below.

    Args:
        pairs: two uint8 (H, W, 3) tiles each, at least one pair.
        captions: for each pair, a line under the first tile, one under the second, and one for both.
        across: whether each pair is across splits; it gets a thick frame in colour.
    """
    columns = min(_PAIRS_A_ROW, len(pairs))
    rows = -(-len(pairs) // columns)
    tile, gap, text = 1.3, 0.16, 0.52  # inches
    step_x, step_y = 2 * tile + 0.04 + 2 * gap, tile + text + gap
    width, height = columns * step_x + gap, rows * step_y + gap
    figure = Figure(figsize=(width, height), dpi=base.DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    for number, (pair, (left_text, right_text, below), crosses) in enumerate(zip(pairs, captions, across, strict=True)):
        row, column = divmod(number, columns)
        left, top = gap + column * step_x, height - gap - row * step_y
        for side, (image, text_below) in enumerate(zip(pair, (left_text, right_text), strict=True)):
            x = left + side * (tile + 0.04)
            axes.imshow(image, extent=(x, x + tile, top - tile, top), interpolation="antialiased")
            axes.text(x, top - tile - 0.05, base.caption(text_below, 24), fontsize=6.5, va="top")
        axes.text(left, top - tile - 0.2, base.caption(below, 50), fontsize=6.5, va="top", color="0.25")
        axes.add_patch(
            Rectangle(
                (left - 0.05, top - tile - text),
                2 * tile + 0.14,
                tile + text + 0.05,
                fill=False,
                linewidth=2.0 if crosses else 0.6,
                edgecolor=_ACROSS if crosses else _WITHIN,
            )
        )
    axes.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    axes.set_axis_off()
    figure.text(gap / width, 1 + 0.08 / height, base.plain(title), fontsize=10, va="bottom")
    base.save_figure(figure, path)
