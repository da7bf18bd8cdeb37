"""Charts of a comparison (curves, a grid of predictions, accuracy by labelled tiles) and of cross-validation folds.

N tiles, H x W pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from sscl.plots import base
from sscl.plots.base import ByteArray
from sscl.words import shortened

_ACROSS = 3  # tiles of the grid
_RIGHT, _WRONG = "#005A8C", "#B34700"  # beside the marks, which say the same


def plot_overlaid(
    histories: Mapping[str, Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]],
    *,
    series: Sequence[tuple[str, str]],
    path: Path,
    title: str,
) -> None:
    """Draw the logs of several rows in shared axes: one colour per row, a thin line per run, a thick one as mean.

    Args:
        histories: {title of a column: {row: [log of a run, ...]}}, a log as metrics.jsonl has it. A row has the same
            colour in every column. The mean ends where the shortest run ends.
        series: (axis title, key of the log), one row of axes each.
    """
    names = list(dict.fromkeys(row for column in histories.values() for row in column))
    width = 8 if len(histories) == 1 else 2 + 3.6 * len(histories)
    figure = Figure(figsize=(width, 0.8 + 2.8 * len(series)), dpi=base.DPI, layout="constrained")
    figure.suptitle(base.plain(title))
    grid = figure.subplots(len(series), len(histories), sharex="col", sharey="row", squeeze=False)
    for places, (heading, rows) in zip(grid.T, histories.items(), strict=True):
        for axes, (name, key) in zip(places, series, strict=True):
            for row, logs in rows.items():
                _overlay(axes, logs, key=key, label=row, style=base.line_style(names.index(row)))
            base.grid(axes)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if axes in grid[:, 0]:
                axes.set_ylabel(base.plain(name))
        places[0].set_title(base.plain(heading))
        places[-1].set_xlabel("epoch")
    handles = [
        Line2D([], [], label=base.plain(name), **{**base.line_style(index), "linewidth": 2.2})
        for index, name in enumerate(names)
    ]
    grid[0, -1].legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    figure.align_ylabels()
    base.save_figure(figure, path)


def _overlay(
    axes: Axes, logs: Sequence[Sequence[Mapping[str, Any]]], *, key: str, label: str, style: dict[str, Any]
) -> None:
    """Draw the runs of a row and their mean."""
    runs = [
        {line["epoch"]: line[key] for line in log if base.is_number(line.get(key)) and "c" not in line}  # no epochs
        for log in logs
    ]
    if len(runs) > 1:
        for run in runs:
            marker = "." if len(run) == 1 else ""
            axes.plot(list(run), list(run.values()), marker=marker, **{**style, "linewidth": 0.8}, alpha=0.45)
    shared = sorted(set.intersection(*map(set, runs))) if runs else []
    means = [statistics.fmean(run[epoch] for run in runs) for epoch in shared]
    marker = "o" if len(shared) <= 40 else ""
    axes.plot(shared, means, marker=marker, markersize=3.5, label=base.plain(label), **{**style, "linewidth": 2.2})


def plot_predictions(
    images: ByteArray,
    *,
    truths: Sequence[str],
    predicted: Mapping[str, Sequence[str]],
    path: Path,
    title: str,
) -> None:
    """Draw tiles in a grid, each with its true class above, and below what each row predicts, marked ✓ or ✗.

    Args:
        images: uint8 (N, H, W, 3), N >= 1. truths: N class names. predicted: {row: N class names}.
    """
    columns = min(_ACROSS, len(images))
    rows = -(-len(images) // columns)
    # Inches; placed by hand, so that every tile has the same size.
    wide, tile, line, head = 2.7, 1.9, 0.165, 0.45
    high = tile + 0.28 + line * len(predicted) + 0.15
    width, height = columns * wide, head + rows * high
    figure = Figure(figsize=(width, height), dpi=base.DPI)
    figure.text(0.5, 1 - 0.12 / height, base.plain(title), ha="center", va="top", fontsize=10)
    for i, image in enumerate(images):
        left, top = (i % columns) * wide + (wide - tile) / 2, head + (i // columns) * high + 0.25
        axes = figure.add_axes((left / width, 1 - (top + tile) / height, tile / width, tile / height))
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(base.plain(f"true: {shortened(truths[i], 26)}"), fontsize=9, fontweight="bold", pad=3)
        for at, (name, values) in enumerate(predicted.items()):
            right = values[i] == truths[i]
            figure.text(
                ((i % columns) * wide + 0.15) / width,
                1 - (top + tile + 0.06 + at * line) / height,
                base.plain(f"{'✓' if right else '✗'} {shortened(name, 18)}: {shortened(values[i], 22)}"),
                color=_RIGHT if right else _WRONG,
                fontsize=7.5,
                va="top",
            )
    base.save_figure(figure, path)


def plot_label_curve(
    lines: Mapping[str, Sequence[tuple[int, Sequence[float]]]],
    *,
    measure: str,
    path: Path,
    title: str,
) -> None:
    """Draw a metric against the number of labelled tiles: a line of means per row, a band of ± 1 SD, a point per run.

    Args:
        lines: {row: [(labelled tiles, values of the runs), ...]}, one entry per fraction of the labels.
        measure: name of the vertical axis.
    """
    figure = Figure(figsize=(7, 4.4), dpi=base.DPI, layout="constrained")
    axes = figure.subplots()
    counts = sorted({count for line in lines.values() for count, _ in line})
    for index, (name, line) in enumerate(lines.items()):
        style = base.line_style(index)
        points = sorted(line)
        at = [count for count, _ in points]
        means = [statistics.fmean(values) for _, values in points]
        sds = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
        axes.plot(at, means, marker="o", markersize=5, label=base.plain(name), **{**style, "linewidth": 2})
        if any(sds):
            low, high = zip(*((m - sd, m + sd) for m, sd in zip(means, sds, strict=True)), strict=True)
            axes.fill_between(at, low, high, color=style["color"], alpha=0.13, linewidth=0)
            for count, values in points:
                axes.plot([count] * len(values), values, ".", color=style["color"], markersize=4, alpha=0.7)
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="labelled tiles (log scale)", ylabel=base.plain(measure), title=base.plain(title))
    base.grid(axes)
    base.legend_beside(axes)
    base.save_figure(figure, path)


def plot_folds(
    folds: Mapping[str, Sequence[tuple[float | None, Sequence[float] | None]]],
    *,
    pooled: Mapping[str, tuple[float | None, Sequence[float] | None]],
    path: Path,
    title: str,
) -> None:
    """Draw each metric of every fold as a point with its interval, the pooled one below, and the folds' mean ± SD.

    Args:
        folds: {metric: [(value, (low, high)), ...]}, one entry per fold; None is left out.
        pooled: {metric: (value, (low, high))}, of the same metrics.
    """
    count = len(next(iter(folds.values())))
    figure = Figure(figsize=(1.2 + 2.3 * len(folds), 1.5 + 0.27 * (count + 1)), dpi=base.DPI, layout="constrained")
    figure.suptitle(base.plain(title), fontsize=10)
    fold_colour, pooled_colour = base.line_style(0)["color"], base.line_style(1)["color"]
    for axes, (name, values) in zip(
        figure.subplots(1, len(folds), sharex=True, sharey=True, squeeze=False)[0], folds.items(), strict=True
    ):
        known = [value for value, _ in values if value is not None]
        if len(known) > 1:
            mean, sd = statistics.fmean(known), statistics.stdev(known)
            axes.axvspan(mean - sd, mean + sd, color="0.9", zorder=0)
            axes.axvline(mean, color="0.6", linewidth=1, zorder=1)
        points = [*((value, fold_colour, "o") for value in values), (pooled[name], pooled_colour, "D")]
        for row, ((value, interval), colour, marker) in enumerate(points):
            if interval is not None:
                axes.plot(list(interval), [row, row], color=colour, linewidth=2)
            if value is not None:
                axes.plot([value], [row], marker=marker, color=colour, markersize=6)
        axes.set_xlabel(base.plain(name))
        base.grid(axes, axis="x", color="0.85", linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_yticks(range(count + 1), [*(f"fold {i + 1}" for i in range(count)), "pooled"])
        axes.set_ylim(count + 0.6, -0.6)
    figure.supxlabel("bars: 95% intervals; grey: mean ± SD of the folds", fontsize=8, color="0.35")
    base.save_figure(figure, path)
