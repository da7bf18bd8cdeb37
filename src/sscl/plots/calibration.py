"""The charts of calibration and decisions: reliability, net benefit, accuracy against coverage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sscl.evaluate.decisions import RiskCoverage
from sscl.evaluate.records import CalibrationErrors, Coverage, DecisionCurve
from sscl.plots import base

_BLUE, _ORANGE, _GREEN = base.LINE_COLOURS[:3]
_POINTS = 300  # of a coverage curve that are drawn, from _FEWEST tiles on: fewer say nothing
_FEWEST = 10


def plot_reliability(
    stages: Mapping[str, CalibrationErrors],
    *,
    temperature: float,
    positive: str | None,
    path: Path,
    title: str,
) -> None:
    """Draw how often each predicted probability came true, with the 95% intervals found, above the counts of its bins.

    Args:
        stages: one or two panels side by side, by their headings.
        temperature: said in the title where there are two. positive: whose probability it is; None = the top label's.
    """
    what = "top label" if positive is None else base.plain(positive, 20)
    score = "confidence" if positive is None else f"probability of {what}"
    fraction = "fraction correct" if positive is None else f"fraction that is {what}"
    figure = Figure(figsize=(4.4 * len(stages) + 0.4, 5.4), dpi=base.DPI, layout="constrained")
    figure.suptitle(base.plain(title) + (f", temperature {temperature:.3g}" if len(stages) > 1 else ""))
    grid = figure.subplots(2, len(stages), sharex=True, sharey="row", squeeze=False, height_ratios=(3.2, 1))
    for (upper, lower), (heading, stage) in zip(grid.T, stages.items(), strict=True):
        rows = stage.reliability
        x, y = [row.score for row in rows], [row.frequency for row in rows]
        upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=1)
        bars = np.array([(row.score, *row.interval) for row in rows if row.interval is not None]).reshape(-1, 3)
        upper.vlines(*bars.T, color=_BLUE, linewidth=1.4, alpha=0.6)
        upper.plot(x, y, marker="o", markersize=5, color=_BLUE, linewidth=1.5)
        upper.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), title=f"{heading}: top-label ECE {stage.ece:.3f}")
        lower.bar(
            [row.low for row in rows],
            [row.count for row in rows],
            width=[row.high - row.low for row in rows],
            align="edge",
            color=_BLUE,
            edgecolor="white",
            linewidth=0.8,
        )
        lower.set(xlabel=f"predicted {score}")
        lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        for axes in (upper, lower):
            base.grid(axes)
    if any(row.interval is not None for stage in stages.values() for row in stage.reliability):
        grid[0, 0].text(0.03, 0.97, "bars: 95% interval", color="0.35", fontsize=8, va="top")
    grid[0, 0].set_ylabel(fraction)
    grid[1, 0].set_ylabel("tiles")
    figure.align_ylabels()
    base.save_figure(figure, path)


def plot_decision_curve(
    curve: DecisionCurve, *, threshold: float | None, positive: str, path: Path, title: str
) -> None:
    """Draw net benefit of the model against calling all tiles positive, or none.

    Args:
        curve: net benefit at T thresholds.
        threshold: the operating point, a dotted line; None = none. positive: name of the class.
    """
    figure = Figure(figsize=(6.4, 4.6), dpi=base.DPI, layout="constrained")
    axes = figure.subplots()
    x, name = curve.threshold, base.plain(positive, 20)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(x, curve.low, curve.high, color=_BLUE, alpha=0.15, linewidth=0)
    axes.plot(
        x, curve.model, color=_BLUE, linewidth=2, label="model, 95% interval" if curve.low is not None else "model"
    )
    axes.plot(x, curve.treat_all, color=_ORANGE, linewidth=1.5, linestyle="--", label=f"all called {name}")
    axes.plot([0, 1], [0, 0], color="0.25", linewidth=1.2, linestyle=":", label=f"none called {name}")
    top = max(*(curve.high or curve.model), *curve.treat_all, 0.01)
    axes.set(
        xlim=(0, 1),
        ylim=(-0.25 * top, 1.06 * top),  # calling all falls without end
        xlabel=f"threshold: probability of {name} at which you would act",
        ylabel="net benefit, per tile",
        title=base.plain(title),
    )
    if threshold is not None:
        axes.axvline(threshold, color=_GREEN, linewidth=1.2, label=f"operating point {threshold:.3f}")
    base.grid(axes)
    base.legend_beside(axes)
    base.save_figure(figure, path)


def plot_coverage(curve: RiskCoverage, *, found: Coverage, path: Path, title: str) -> None:
    """Draw accuracy on the 10 or more most confident tiles against the fraction they make up.

    Args:
        curve: of these tiles.
        found: 95% intervals at some fractions, and what the abstention threshold does here: no point is drawn where it
            decides no tile.
    """
    count, correct = np.array(curve.count), np.array(curve.correct)
    first = int(np.argmax(count >= min(_FEWEST, count[-1])))
    at = np.unique(np.linspace(first, len(count) - 1, _POINTS).round().astype(int))
    value = correct[at] / count[at]
    figure = Figure(figsize=(6.4, 4.4), dpi=base.DPI, layout="constrained")
    axes = figure.subplots()
    x = count[at] / count[-1]
    bars = [(row.coverage, *row.accuracy.interval) for row in found.at if row.accuracy.interval is not None]
    axes.vlines(*np.reshape(bars, (-1, 3)).T, color=_BLUE, linewidth=1.4, alpha=0.6)
    marker = "." if len(x) < 20 else ""
    named = "most confident tiles" + (", 95% intervals" if bars else "")
    axes.plot(x, value, color=_BLUE, linewidth=1.8, marker=marker, label=named)
    axes.axhline(value[-1], color="0.5", linewidth=1, linestyle="--", label=f"all tiles, {value[-1]:.3f}")
    fraction, accuracy = found.abstention.here["decided"], found.abstention.here["accuracy"]
    if fraction is not None and accuracy is not None:
        axes.plot(
            fraction.value,
            accuracy.value,
            marker="D",
            markersize=7,
            linestyle="",
            color=_ORANGE,
            label=f"abstention threshold, {accuracy.value:.3f}",
        )
    axes.set(
        xlim=(0, 1.01),
        ylim=(max(0.0, min([value.min(), *(low for _, low, _ in bars)]) - 0.1), 1.01),
        xlabel="coverage: fraction of the tiles decided",
        ylabel="accuracy on these tiles",
        title=base.plain(title)
        + f"\narea under the risk-coverage curve {curve.area:.3f}, random order {curve.area_random:.3f}",
    )
    base.grid(axes)
    base.legend_beside(axes)
    base.save_figure(figure, path)
