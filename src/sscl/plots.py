"""Every picture of the program: each function draws one figure and writes it as a PNG, all or nothing.

Charts are also written as SVG, where the path ends so.

Only matplotlib's object interface is used (no pyplot, no global state), so it works without a display and in
threads. Shape letters: N tiles, K classes, H x W pixels.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image

ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating[Any]]

_DPI = 140
# Okabe & Ito's colours without yellow, which is lost on white; after seven lines the dash pattern changes.
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
# Paul Tol's "muted" colours: nine areas that the colour-blind tell apart.
_AREA_COLOURS = (
    "#88CCEE", "#CC6677", "#DDCC77", "#117733", "#AA4499", "#44AA99", "#999933", "#882255", "#332288",
)  # fmt: skip
_HATCHES = ("", "///", "...", "xxx", "---")


def plot_confusion(matrix: npt.ArrayLike, *, classes: Sequence[str], path: str | os.PathLike[str], title: str) -> None:
    """Draw a confusion matrix twice: as counts, and each row as percent of its true class.

    Args:
        matrix: counts (K, K), rows = truth, as `metrics.confusion_matrix` returns.
        classes: K names.
        path: the PNG to write.
        title: above both.

    Raises:
        ValueError: the matrix is not (K, K).
        FileNotFoundError: the folder of path does not exist.
    """
    counts = np.asarray(matrix)
    size = len(classes)
    if counts.shape != (size, size):
        raise ValueError(f"matrix: shape {counts.shape}, must be ({size}, {size}) for {size} classes")
    rows = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100.0 * counts, rows, out=np.full(counts.shape, np.nan), where=rows > 0)

    upright = size > 4 or max(map(len, classes)) > 12
    side = max(3.2, 0.62 * size + 1.6) + upright
    figure = Figure(figsize=(2 * side + 1.6, side + 0.5), dpi=_DPI, layout="constrained")
    figure.suptitle(_plain(title))
    panels = (
        ("Tiles", counts.astype(np.float64), ".0f", max(counts.max(), 1)),
        ("Percent of the true class", shares, ".1f", 100),
    )
    for axes, (name, values, form, top) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.imshow(np.nan_to_num(values), cmap="Blues", vmin=0, vmax=top)
        for row, column in np.ndindex(size, size):
            value = values[row, column]
            axes.text(
                column,
                row,
                "–" if math.isnan(value) else format(value, form),
                ha="center",
                va="center",
                fontsize=13 if size <= 3 else 8,
                color="white" if value > 0.55 * top else "black",
            )
        ticks = [_wrapped(label) for label in classes]
        axes.set_xticks(range(size), ticks, rotation=90 if upright else 0)
        axes.set_yticks(range(size), ticks)
        axes.set(xlabel="Predicted class", ylabel="True class", title=name)
    _save(figure, path)


def plot_roc(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    classes: Sequence[str],
    positive: int | None,
    path: str | os.PathLike[str],
) -> None:
    """Draw the ROC curve of the positive class, or with positive=None that of every class against the rest.

    Args:
        labels: (N,). probabilities: (N, K). classes: K names. positive: class index or None.
        path: the PNG to write. A class without tiles, or with all of them, has no curve; the legend says so.

    Raises:
        ValueError: the shapes do not agree. FileNotFoundError: the folder of path does not exist.
    """

    from sklearn.metrics import roc_auc_score, roc_curve  # takes a second, and curves of training need none of it

    def draw(axes: Axes, truth: BoolArray, scores: FloatArray, style: dict[str, Any]) -> str:
        false_positive, true_positive, _ = roc_curve(truth, scores, drop_intermediate=False)
        axes.plot(false_positive, true_positive, **style)
        return f"AUROC {roc_auc_score(truth, scores):.3f}"

    figure, axes = _curves(draw, labels, probabilities, classes=classes, positive=positive)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=1)
    axes.text(0.52, 0.5, "chance", color="0.4", fontsize=8, rotation=45, va="top")
    if positive is None:
        axes.set(xlabel="False positive rate", ylabel="True positive rate", title="ROC, class against rest")
    else:
        name = _plain(_shortened(classes[positive], 24))
        axes.set(
            xlabel="False positive rate (1 − specificity)",
            ylabel="True positive rate (sensitivity)",
            title=f"ROC, positive class {name}",
        )
    _save(figure, path)


def plot_precision_recall(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    classes: Sequence[str],
    positive: int | None,
    path: str | os.PathLike[str],
) -> None:
    """Draw precision against recall, with the same arguments and errors as `plot_roc`.

    For one positive class the grey line is its share of the tiles, the precision of guessing.
    """

    from sklearn.metrics import average_precision_score, precision_recall_curve

    def draw(axes: Axes, truth: BoolArray, scores: FloatArray, style: dict[str, Any]) -> str:
        precision, recall, _ = precision_recall_curve(truth, scores)
        axes.plot(recall, precision, drawstyle="steps-post", **style)
        return f"AP {average_precision_score(truth, scores):.3f}"

    figure, axes = _curves(draw, labels, probabilities, classes=classes, positive=positive)
    axes.set(xlabel="Recall", ylabel="Precision")
    if positive is None:
        axes.set_title("Precision and recall, class against rest")
    else:
        axes.set_title(f"Precision and recall, positive class {_plain(_shortened(classes[positive], 24))}")
        share = float(np.mean(np.asarray(labels) == positive))
        axes.axhline(share, color="0.6", linewidth=1, zorder=1)
        axes.text(0.01, share, "chance", color="0.4", fontsize=8, va="bottom")
    _save(figure, path)


def plot_history(
    rows: Sequence[Mapping[str, Any]],
    *,
    series: Sequence[tuple[str, Sequence[str]]],
    path: str | os.PathLike[str],
    title: str,
    x: str = "epoch",
) -> None:
    """Draw logged values over time, one axis under another.

    Args:
        rows: the log, one dict a step; a key may be missing, None or not finite in any of them, that point is
        left out. series: (axis title with its unit, keys drawn there). path: the PNG to write. title: above
        all axes. x: the key on the horizontal axis.

    Raises:
        ValueError: series is empty. FileNotFoundError: the folder of path does not exist.
    """
    if not series:
        raise ValueError("series: is empty, must hold at least one (axis title, keys)")
    figure = Figure(figsize=(8, 0.8 + 2.0 * len(series)), dpi=_DPI, layout="constrained")
    figure.suptitle(_plain(title))
    column = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, keys) in zip(column, series, strict=True):
        for index, key in enumerate(keys):
            points = [(row.get(x), row.get(key)) for row in rows]
            drawn = [(at, value) for at, value in points if _is_number(at) and _is_number(value)]
            if drawn:
                # A marker shows a single point, which a line does not.
                marker = "o" if len(drawn) <= 40 else ""
                style = _line_style(index)
                axes.plot(*zip(*drawn, strict=True), marker=marker, markersize=3.5, label=_plain(key), **style)
        if axes.lines:
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        else:
            axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", va="center", color="0.4")
            axes.set_yticks([])
        axes.set_ylabel("\n".join(textwrap.wrap(_plain(name), 24)))
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    column[-1].set_xlabel(_plain(x))
    figure.align_ylabels()
    _save(figure, path)


def plot_class_distribution(
    counts: Mapping[str, Mapping[str, int]], *, path: str | os.PathLike[str], title: str
) -> None:
    """Draw how many tiles each class has: a pie over all splits, and bars by split.

    Args:
        counts: {split: {class: tiles}}; a class may be missing from a split.
        path: the PNG to write.
        title: above both.

    Raises:
        ValueError: no tile at all. FileNotFoundError: the folder of path does not exist.
    """
    splits = list(counts)
    classes = list(dict.fromkeys(name for split in splits for name in counts[split]))
    totals = [sum(counts[split].get(name, 0) for split in splits) for name in classes]
    everything = sum(totals)
    if not everything:
        raise ValueError("counts: no class has a tile, so there is no distribution to draw")
    colours = [_AREA_COLOURS[index % len(_AREA_COLOURS)] for index in range(len(classes))]

    height = max(3.6, 1.4 + 0.22 * len(classes) * (len(splits) + 0.8))
    figure = Figure(figsize=(11, height), dpi=_DPI, layout="constrained")
    figure.suptitle(_plain(title))
    pie, bars = figure.subplots(1, 2, width_ratios=(1, 1.5))

    wedge = {"edgecolor": "white", "linewidth": 1}
    pie.pie(totals, colors=colours, startangle=90, counterclock=False, wedgeprops=wedge)
    shares = [
        f"{_plain(_shortened(name, 20))}: {total:,} ({100 * total / everything:.1f}%)"
        for name, total in zip(classes, totals, strict=True)
    ]
    patches = [Patch(facecolor=colour) for colour in colours]
    pie.legend(patches, shares, loc="upper center", bbox_to_anchor=(0.5, 0.02), frameon=False, fontsize=9)
    pie.set_title(f"All {everything:,} tiles")

    thickness = 0.8 / len(splits)
    for index, split in enumerate(splits):
        sizes = [counts[split].get(name, 0) for name in classes]
        positions = np.arange(len(classes)) + (index - (len(splits) - 1) / 2) * thickness
        hatch = _HATCHES[index % len(_HATCHES)]
        drawn = bars.barh(
            positions, sizes, thickness * 0.92, color=colours, hatch=hatch, edgecolor="white", linewidth=0
        )
        bars.bar_label(drawn, [f"{size:,}" for size in sizes], padding=3, fontsize=8)
    bars.set_yticks(range(len(classes)), [_wrapped(name) for name in classes])
    bars.invert_yaxis()  # first class and first split on top
    bars.margins(x=0.12, y=0.02)
    bars.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    bars.set(xlabel="Tiles", title="By split")
    bars.spines[["top", "right"]].set_visible(False)
    keys = [
        Patch(facecolor="0.55", edgecolor="white", linewidth=0, hatch=_HATCHES[index % len(_HATCHES)])
        for index in range(len(splits))
    ]
    names = [_plain(split) for split in splits]
    bars.legend(keys, names, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _save(figure, path)


def contact_sheet(
    images: ByteArray, *, captions: Sequence[str], path: str | os.PathLike[str], columns: int = 8
) -> None:
    """Draw tiles in a grid, each with its caption.

    Args:
        images: uint8 (N, H, W, 3), N >= 1.
        captions: N texts; a long one loses its middle, a line break stays.
        path: the PNG to write.
        columns: tiles in a row.

    Raises:
        ValueError: wrong shapes, or columns < 1. FileNotFoundError: the folder of path does not exist.
    """
    _check_images(images, name="images")
    if len(captions) != len(images):
        raise ValueError(f"captions: {len(captions)} for {len(images)} tiles, must be equally many")
    if columns < 1:
        raise ValueError(f"columns: {columns}, must be at least 1")
    columns = min(columns, len(images))
    lines = max(caption.count("\n") for caption in captions) + 1
    _grid(
        [images[start : start + columns] for start in range(0, len(images), columns)],
        above=lambda row, column: _caption(captions[row * columns + column], 20),
        columns=columns,
        caption_inches=0.08 + 0.15 * lines,
        path=path,
    )


def plot_views(
    originals: ByteArray,
    first: ByteArray,
    second: ByteArray,
    *,
    ids: Sequence[str],
    path: str | os.PathLike[str],
) -> None:
    """Draw tiles beside their two augmented views, one tile a row.

    Args:
        originals, first, second: uint8 (N, H, W, 3), N >= 1; the views may have another size than the
        originals. ids: N names of the tiles. path: the PNG to write.

    Raises:
        ValueError: the numbers of tiles differ. FileNotFoundError: the folder of path does not exist.
    """
    for name, images in (("originals", originals), ("first", first), ("second", second)):
        _check_images(images, name=name)
    if not len(originals) == len(first) == len(second) == len(ids):
        raise ValueError(
            f"originals, first, second, ids: {len(originals)}, {len(first)}, {len(second)}, {len(ids)} "
            "entries, must be equally many"
        )
    _grid(
        list(zip(originals, first, second, strict=True)),
        above=lambda row, column: (_caption(ids[row], 24), "first view", "second view")[column],
        columns=3,
        caption_inches=0.23,
        path=path,
    )


def plot_cam_panel(
    image: ByteArray,
    overlay: ByteArray,
    boxed: ByteArray,
    *,
    title: str,
    path: str | os.PathLike[str],
    method: str = "Grad-CAM",
) -> None:
    """Draw the paper's Grad-CAM figure: original | heatmap | box.

    Args:
        image, overlay, boxed: uint8 (H, W, 3).
        method: above the heatmap.
        title: such as true and predicted class with its probability; a line break stays.
        path: the PNG to write.

    Raises:
        ValueError: wrong shapes. FileNotFoundError: the folder of path does not exist.
    """
    panels = (("Original", image), (method, overlay), ("Box", boxed))
    for name, picture in panels:
        _check_images(picture[None], name=name)
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, 84) or [""]]
    figure = Figure(figsize=(9, 3.35 + 0.2 * len(lines)), dpi=_DPI, layout="constrained")
    figure.suptitle(_plain("\n".join(lines)), fontsize=11)
    for axes, (name, picture) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.set_axis_off()
    _save(figure, path)


def _curves(
    draw: Callable[[Axes, BoolArray, FloatArray, dict[str, Any]], str],
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    classes: Sequence[str],
    positive: int | None,
) -> tuple[Figure, Axes]:
    """Return a figure with one curve per class asked for, and its axes."""
    truth, scores = np.asarray(labels), np.asarray(probabilities)
    if scores.shape != (len(truth), len(classes)):
        raise ValueError(
            f"probabilities: shape {scores.shape}, must be ({len(truth)}, {len(classes)}) for {len(truth)} "
            f"labels and {len(classes)} classes"
        )
    wanted = range(len(classes)) if positive is None else (positive,)
    figure = Figure(figsize=(5.4, 5.4), dpi=_DPI)
    axes = figure.subplots()
    for index, label in enumerate(wanted):
        is_class = truth == label
        name = _plain(_shortened(classes[label], 28))
        style = _line_style(index)
        if is_class.any() and not is_class.all():
            summary = draw(axes, is_class, scores[:, label], style)
            axes.lines[-1].set_label(f"{name}: {summary}, {is_class.sum():,} of {len(truth):,} tiles")
        else:
            axes.plot([], [], label=f"{name}: no curve, {is_class.sum():,} of {len(truth):,} tiles", **style)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), frameon=False, fontsize=8)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _grid(
    rows: Sequence[Sequence[ByteArray] | ByteArray],
    *,
    above: Callable[[int, int], str],
    columns: int,
    caption_inches: float,
    path: str | os.PathLike[str],
) -> None:
    """Draw rows of tiles with a caption above each, placed by hand: layout engines are slow here."""
    tile, gap = 224 / _DPI, 0.08  # inches: a 224 px tile keeps its pixels
    width = columns * (tile + gap) + gap
    height = len(rows) * (tile + caption_inches) + gap
    figure = Figure(figsize=(width, height), dpi=_DPI)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            left, top = gap + column * (tile + gap), (row + 1) * caption_inches + row * tile
            axes = figure.add_axes((left / width, 1 - (top + tile) / height, tile / width, tile / height))
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(above(row, column), fontsize=8, pad=2, linespacing=1.1)
    _save(figure, path)


def write_image(image: ByteArray, *, path: str | os.PathLike[str]) -> None:
    """Write pixels, uint8 (H, W, 3), as a PNG of the same size, whole or not at all.

    Raises:
        ValueError: wrong shape. FileNotFoundError: the folder of path does not exist.
    """
    _check_images(image[None], name="image")
    _write(path, lambda partial: Image.fromarray(image).save(partial, format="PNG"))


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    form = "svg" if Path(path).suffix == ".svg" else "png"
    # "tight" keeps what stands outside the axes, such as a long legend, inside the picture.
    _write(path, lambda partial: figure.savefig(partial, format=form, bbox_inches="tight", pad_inches=0.08))


def _write(path: str | os.PathLike[str], draw: Callable[[Path], None]) -> None:
    """Have a file written whole or not at all."""
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist; create it first")
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        draw(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _line_style(index: int) -> dict[str, Any]:
    return {
        "color": _LINE_COLOURS[index % len(_LINE_COLOURS)],
        "linewidth": 1.5,
        "linestyle": _DASHES[index // len(_LINE_COLOURS) % len(_DASHES)],
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(text: str) -> str:
    """Return text that matplotlib draws as it is: a folder named a$b$c is no formula."""
    return text.replace("$", r"\$")


def _shortened(text: str, length: int) -> str:
    """Return text of at most `length` characters, its middle left out: file names differ at both ends."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def _wrapped(name: str) -> str:
    """Return a class name for a tick: on lines of about 16 characters, at most two."""
    short = _shortened(name, 30)
    if len(short) <= 16:
        return _plain(short)
    # Class names are folder names: they break at _ and - as well as at spaces.
    breaks = [at + 1 for at, letter in enumerate(short[:17]) if letter in " _-/."]
    at = breaks[-1] if breaks and len(short) - breaks[-1] <= 18 else (len(short) + 1) // 2
    return _plain(f"{short[:at]}\n{short[at:]}")


def _caption(text: str, length: int) -> str:
    return "\n".join(_plain(_shortened(line, length)) for line in text.split("\n"))


def _check_images(images: ByteArray, *, name: str) -> None:
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(
            f"{name}: {images.dtype} of shape {images.shape}, must be uint8 (tiles, height, width, 3) with "
            "at least one tile"
        )
