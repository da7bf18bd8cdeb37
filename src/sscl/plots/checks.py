"""Charts of the heatmap checks, drawn from the records that `explain.checks` returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sscl.evaluate.verdicts import Outcome
from sscl.explain.records import BoxSensitivity, DeletionInsertion, MapChecks, Randomisation, Spread
from sscl.plots import base
from sscl.records import write_record
from sscl.words import count

_MARKERS = "os^"
_DASHED: dict[str, Any] = {"color": "0.35", "linewidth": 1, "linestyle": (0, (5, 3)), "zorder": 1}


def write_checks(found: MapChecks, *, out: Path, title: str) -> list[str]:
    """Write checks.json and the charts; return the names of the files. What was not assessed has no chart."""
    write_record(out / "checks.json", found)
    names = ["checks.json"]

    def place(name: str, tiles: int) -> tuple[Path, str]:
        names.append(f"{name}.png")
        return out / names[-1], f"{title}, {count(tiles, 'tile')}"

    if found.randomisation.tiles:
        path, heading = place("randomisation", found.randomisation.tiles)
        plot_randomisation(found.randomisation, path=path, title=heading)
    if found.deletion_insertion.outcome is not Outcome.NOT_ASSESSED:
        path, heading = place("deletion_insertion", found.deletion_insertion.tiles)
        plot_deletion_insertion(found.deletion_insertion, path=path, title=heading)
    if found.box_sensitivity.tiles:
        path, heading = place("box_sensitivity", found.box_sensitivity.tiles)
        plot_box_sensitivity(found.box_sensitivity, path=path, title=heading)
    return names


def plot_randomisation(found: Randomisation, *, path: Path, title: str) -> None:
    """Draw how similar the maps remain while the model is randomised from the head down."""
    names = found.stages
    figure = Figure(figsize=(max(6.4, 1.6 + 0.48 * len(names)), 4.6), dpi=base.DPI, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names) + 1)
    series: tuple[tuple[str, Spread, bool], ...] = (
        ("|rank correlation|", found.absolute_rank_correlation, True),
        ("rank correlation", found.rank_correlation, False),  # three bands hide one another
        ("SSIM", found.ssim, True),
    )
    for index, (label, spread, with_band) in enumerate(series):
        mean, sd = np.array([1.0, *spread.mean]), np.array([0.0, *spread.sd])
        style = base.line_style(index)
        axes.plot(places, mean, marker=_MARKERS[index], markersize=4, label=label, **style)
        if with_band:
            base.band(axes, places, mean - sd, mean + sd, colour=style["color"])
    passes = f"passes if |rank correlation|\nends below {found.unrelated_below:g}"
    axes.axhline(found.unrelated_below, label=passes, **_DASHED)
    axes.set_xticks(places, ["trained", *map(base.plain, names)], rotation=55, ha="right", fontsize=8)
    axes.set(
        xlabel="Randomised from the head down to",
        ylabel="Similarity to the trained model's maps\n(mean, band: ± 1 SD over tiles)",
        title=base.plain(title),
        ylim=(min(axes.get_ylim()[0], -0.05), 1.05),
    )
    base.grid(axes)
    base.legend_beside(axes)
    base.save_figure(figure, path)


def plot_deletion_insertion(found: DeletionInsertion, *, path: Path, title: str) -> None:
    """Draw the probability of the explained class against the fraction blurred (left) or restored (right)."""
    figure = Figure(figsize=(9.4, 4), dpi=base.DPI, layout="constrained")
    figure.suptitle(base.plain(title))
    panels = (
        ("Deletion: lower is better", "blurred", found.deletion),
        ("Insertion: higher is better", "restored", found.insertion),
    )
    places = figure.subplots(1, 2, sharey=True)
    for axes, (heading, done, curves) in zip(places, panels, strict=True):
        for index, (name, of) in enumerate(curves.items()):
            ends = "" if of.interval is None else f" ({of.interval[0]:.3f} to {of.interval[1]:.3f})"
            style = base.line_style(index) | {"linewidth": 2.2 if name == "map" else 1.4}
            label = f"{name}: AUC {of.auc:.3f}{ends}"
            axes.plot(found.fractions, of.curve, marker=_MARKERS[index], markersize=3.5, label=label, **style)
        axes.set(xlabel=f"Fraction of the tile {done}, in each order", title=heading, ylim=(0, 1.02), xlim=(0, 1))
        base.grid(axes)
        base.legend_below(axes, title="Order of the pixels: area under the curve (95% over tiles)")
    places[0].set_ylabel("Probability of the explained class")
    base.save_figure(figure, path)


def plot_box_sensitivity(found: BoxSensitivity, *, path: Path, title: str) -> None:
    """Draw area, shift and overlap of the box against its threshold."""
    figure = Figure(figsize=(7.4, 4.2), dpi=base.DPI, layout="constrained")
    axes = figure.subplots()
    series = (
        ("box area / tile area", found.area_fraction),
        (f"IoU with the box at {found.threshold:g}", found.iou),
        (f"distance from the centre at {found.threshold:g} / tile side", found.centre_shift),
    )
    for index, (label, spread) in enumerate(series):
        mean, sd = np.array(spread.mean), np.array(spread.sd)
        style = base.line_style(index)
        axes.plot(found.thresholds, mean, marker=_MARKERS[index], markersize=4, label=label, **style)
        base.band(axes, found.thresholds, np.maximum(mean - sd, 0), np.minimum(mean + sd, 1), colour=style["color"])
    axes.axvline(found.threshold, label="threshold in use", **_DASHED)
    axes.set(
        xlabel="Box threshold, fraction of the map's maximum",
        ylabel="Mean over tiles (band: ± 1 SD)",
        ylim=(0, 1.03),
        title=base.plain(title),
    )
    base.grid(axes)
    base.legend_below(axes)
    base.save_figure(figure, path)
