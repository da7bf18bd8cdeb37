"""Charts of one run: confusion matrix, ROC and precision-recall curves, history, class distribution.

N tiles, K classes.
"""

from __future__ import annotations

import math
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

from sscl.evaluate.metrics import MANY_CLASSES, IntArray, largest_classes, one_against_rest
from sscl.plots import base
from sscl.plots.base import BoolArray, FloatArray

# Paul Tol's "muted" colours: nine areas that the colour-blind tell apart.
_AREA_COLOURS = (
    "#88CCEE", "#CC6677", "#DDCC77", "#117733", "#AA4499", "#44AA99", "#999933", "#882255", "#332288",
)  # fmt: skip
_CELLS = 200  # a side of a confusion matrix, 6 px each
_NAMED_CLASSES = 60  # beside a confusion matrix; of more, half as many in larger letters
_WORST_CLASSES = 10  # that have a curve where there are many
_HATCHES = ("", "///", "...", "xxx", "---")


def plot_confusion(matrix: npt.ArrayLike, *, classes: Sequence[str], path: Path, title: str) -> None:
    """Draw a confusion matrix twice: as counts, and each row as a percentage of its true class.

    Of more than MANY_CLASSES classes the cells have colours without numbers and the picture does not grow further; of
    more than can be read, only some are named beside it, and a cell shows the most of several: their mean would fade.

    Args:
        matrix: counts (K, K), rows = truth, as `metrics.confusion_matrix` returns.
        classes: K names.
    """
    counts = np.asarray(matrix)
    size = len(classes)
    rows = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100.0 * counts, rows, out=np.full(counts.shape, np.nan), where=rows > 0)

    few = size <= MANY_CLASSES
    upright = size > 4 or max(map(len, classes)) > 12
    side = max(3.2, 0.62 * size + 1.6) + upright if few else 9.0
    block = -(-size // _CELLS)  # classes that share a row and a column
    several = "" if block == 1 else f", the most of {block} x {block} classes"
    named = range(0, size, 1 if size <= _NAMED_CLASSES else -(-2 * size // _NAMED_CLASSES))
    letters = 9 if few else 5.5 if size <= _NAMED_CLASSES else 8
    figure = Figure(figsize=(2 * side + 1.6, side + 0.5), dpi=base.DPI, layout="constrained")
    figure.suptitle(base.plain(title))
    panels = (
        (f"Tiles{several}", counts.astype(np.float64), ".0f", max(counts.max(), 1)),
        (f"Percent of the true class{several}", percent, ".1f", 100),
    )
    for axes, (name, values, form, top) in zip(figure.subplots(1, 2), panels, strict=True):
        smooth = "nearest" if few else "antialiased"
        cells = _most_of(np.nan_to_num(values), block)
        end = len(cells) * block - 0.5
        shown = axes.imshow(cells, cmap="Blues", vmin=0, vmax=top, interpolation=smooth, extent=(-0.5, end, end, -0.5))
        if not few:
            figure.colorbar(shown, ax=axes, shrink=0.6, ticks=MaxNLocator(6, integer=True, min_n_ticks=1))
        for row, column in np.ndindex(size, size) if few else ():
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
        short = base.wrapped if few else lambda name: base.plain(name, 16)
        ticks = [short(classes[at]) for at in named]
        axes.set_xticks(named, ticks, rotation=90 if upright else 0, fontsize=letters)
        axes.set_yticks(named, ticks, fontsize=letters)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
        axes.set(xlabel="Predicted class", ylabel="True class", title=name)
    base.save_figure(figure, path)


def _most_of(values: FloatArray, block: int) -> FloatArray:
    """Return the largest value of each block x block cells; the last blocks may be smaller."""
    if block == 1:
        return values
    starts = np.arange(0, len(values), block)
    return np.maximum.reduceat(np.maximum.reduceat(values, starts, axis=0), starts, axis=1)


def plot_roc(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    classes: Sequence[str],
    positive: int | None,
    path: Path,
) -> None:
    """Draw the ROC curve of the positive class, or with positive=None that of every class against the rest.

    Of more than MANY_CLASSES only the worst have a curve, as the legend says; a class without tiles, or with all of
    them, has none.

    Args:
        labels: (N,). probabilities: (N, K). classes: K names. positive: class index or None.
    """

    from sklearn.metrics import roc_auc_score, roc_curve  # takes a second to import, and training curves do not need it

    def draw(axes: Axes, truth: BoolArray, scores: FloatArray, style: dict[str, Any]) -> str:
        false_positive, true_positive, _ = roc_curve(truth, scores, drop_intermediate=False)
        axes.plot(false_positive, true_positive, **style)
        return f"AUROC {roc_auc_score(truth, scores):.3f}"

    figure, axes = _curves(
        draw,
        labels,
        probabilities,
        ranking=lambda truth, scores: one_against_rest(truth, scores.astype(np.float64))[0],
        classes=classes,
        positive=positive,
    )
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=1)
    axes.text(0.52, 0.5, "chance", color="0.4", fontsize=8, rotation=45, va="top")
    if positive is None:
        axes.set(xlabel="False positive rate", ylabel="True positive rate", title="ROC, each class against the rest")
    else:
        name = base.plain(classes[positive], 24)
        axes.set(
            xlabel="False positive rate (1 − specificity)",
            ylabel="True positive rate (sensitivity)",
            title=f"ROC, positive class {name}",
        )
    base.save_figure(figure, path)


def plot_precision_recall(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    classes: Sequence[str],
    positive: int | None,
    path: Path,
) -> None:
    """Draw precision against recall, with the same arguments as `plot_roc`.

    For one positive class the grey line is its fraction of the tiles, the precision of guessing.
    """

    from sklearn.metrics import average_precision_score, precision_recall_curve

    def draw(axes: Axes, truth: BoolArray, scores: FloatArray, style: dict[str, Any]) -> str:
        precision, recall, _ = precision_recall_curve(truth, scores)
        axes.plot(recall, precision, drawstyle="steps-post", **style)
        return f"AP {average_precision_score(truth, scores):.3f}"

    figure, axes = _curves(
        draw,
        labels,
        probabilities,
        ranking=lambda truth, scores: one_against_rest(truth, scores.astype(np.float64))[1],
        classes=classes,
        positive=positive,
    )
    axes.set(xlabel="Recall", ylabel="Precision")
    if positive is None:
        axes.set_title("Precision and recall, each class against the rest")
    else:
        axes.set_title(f"Precision and recall, positive class {base.plain(classes[positive], 24)}")
        fraction = float(np.mean(np.asarray(labels) == positive))
        axes.axhline(fraction, color="0.6", linewidth=1, zorder=1)
        axes.text(0.01, fraction, "chance", color="0.4", fontsize=8, va="bottom")
    base.save_figure(figure, path)


def plot_history(
    rows: Sequence[Mapping[str, float | None]],
    *,
    series: Sequence[tuple[str, Sequence[str]]],
    path: Path,
    title: str,
    by_c: bool = False,
) -> None:
    """Draw logged values by epoch, one axis under another; or by the C of a logistic regression.

    Args:
        rows: the log, one dict an epoch; a key may be missing, None or not finite in any of them, that point is
        left out. series: (axis title with its unit, keys drawn there).
    """
    height = 0.8 + 2.0 * len(series)
    figure = Figure(figsize=(8, height), dpi=base.DPI)
    # Margins by hand, in inches: matplotlib's layouts take as long as a short epoch.
    figure.subplots_adjust(left=0.12, right=0.8, top=1 - 0.35 / height, bottom=0.45 / height, hspace=0.1)
    figure.suptitle(base.plain(title), y=1 - 0.08 / height)
    column = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, keys) in zip(column, series, strict=True):
        for index, key in enumerate(keys):
            points = [(row.get("c" if by_c else "epoch"), row.get(key)) for row in rows]
            drawn = [(at, value) for at, value in points if base.is_number(at) and base.is_number(value)]
            if drawn:
                # A marker shows a single point, which a line does not.
                marker = "o" if len(drawn) <= 40 else ""
                style = base.line_style(index) | {"label": key.replace("_", " ")}
                axes.plot(*zip(*drawn, strict=True), marker=marker, markersize=3.5, **style)
        if len(axes.lines) > 1:  # of a single curve the axis says what it is
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        elif not axes.lines:
            axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", va="center", color="0.4")
            axes.set_yticks([])
        axes.set_ylabel("\n".join(textwrap.wrap(base.plain(name), 24)))
        axes.yaxis.set_label_coords(-0.11, 0.5)  # one above another
        base.grid(axes)
        if by_c:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    column[-1].set_xlabel("C, inverse strength of the penalty" if by_c else "epoch")
    base.save_figure(figure, path)


def plot_class_distribution(counts: Mapping[str, Mapping[str, int]], *, path: Path, title: str) -> None:
    """Draw how many tiles each class has: a pie over all splits, and bars by split.

    Args:
        counts: {split: {class: tiles}}; a split may lack a class.

    Raises:
        ValueError: no tile at all.
    """
    counts = largest_classes(counts, most=2 * MANY_CLASSES)
    splits = list(counts)
    classes = list(dict.fromkeys(name for split in splits for name in counts[split]))
    totals = [sum(counts[split].get(name, 0) for split in splits) for name in classes]
    everything = sum(totals)
    if not everything:
        raise ValueError("counts: no class has a tile, so there is nothing to draw")
    colours = [_AREA_COLOURS[index % len(_AREA_COLOURS)] for index in range(len(classes))]

    height = max(3.6, 1.4 + 0.22 * len(classes) * (len(splits) + 0.8))
    figure = Figure(figsize=(11, height), dpi=base.DPI, layout="constrained")
    figure.suptitle(base.plain(title))
    pie, bars = figure.subplots(1, 2, width_ratios=(1, 1.5))

    wedge = {"edgecolor": "white", "linewidth": 1}
    pie.pie(totals, colors=colours, startangle=90, counterclock=False, wedgeprops=wedge)
    entries = [
        f"{base.plain(name, 20)}: {total:,} ({100 * total / everything:.1f}%)"
        for name, total in zip(classes, totals, strict=True)
    ]
    patches = [Patch(facecolor=colour) for colour in colours]
    pie.legend(patches, entries, loc="upper center", bbox_to_anchor=(0.5, 0.02), frameon=False, fontsize=9)
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
    bars.set_yticks(range(len(classes)), [base.wrapped(name) for name in classes])
    bars.invert_yaxis()  # first class and first split on top
    bars.margins(x=0.12, y=0.02)
    bars.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    bars.set(xlabel="Tiles", title="By split")
    bars.spines[["top", "right"]].set_visible(False)
    keys = [
        Patch(facecolor="0.55", edgecolor="white", linewidth=0, hatch=_HATCHES[index % len(_HATCHES)])
        for index in range(len(splits))
    ]
    names = [base.plain(split) for split in splits]
    bars.legend(keys, names, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    base.save_figure(figure, path)


def _curves(
    draw: Callable[[Axes, BoolArray, FloatArray, dict[str, Any]], str],
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    ranking: Callable[[IntArray, FloatArray], FloatArray],
    classes: Sequence[str],
    positive: int | None,
) -> tuple[Figure, Axes]:
    """Return a figure with one curve per class asked for, and its axes.

    Args:
        ranking: returns of each class how good its curve is, (K,); of many classes the worst are drawn.
    """
    truth, scores = np.asarray(labels), np.asarray(probabilities)
    wanted: Sequence[int] = range(len(classes)) if positive is None else (positive,)
    note = ""
    if len(wanted) > MANY_CLASSES:
        rank = np.nan_to_num(ranking(truth, scores), nan=np.inf)
        wanted = np.argsort(rank, kind="stable")[:_WORST_CLASSES].tolist()
        note = f"the {_WORST_CLASSES} worst of {len(classes):,} classes"
    figure = Figure(figsize=(5.4, 5.4), dpi=base.DPI)
    axes = figure.subplots()
    for index, label in enumerate(wanted):
        is_class = truth == label
        name = base.plain(classes[label], 28)
        style = base.line_style(index)
        if is_class.any() and not is_class.all():
            summary = draw(axes, is_class, scores[:, label], style)
            axes.lines[-1].set_label(f"{name}: {summary}, {is_class.sum():,} of {len(truth):,} tiles")
        else:
            axes.plot([], [], label=f"{name}: no curve, {is_class.sum():,} of {len(truth):,} tiles", **style)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), frameon=False, fontsize=8, title=note)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    base.grid(axes)
    return figure, axes
