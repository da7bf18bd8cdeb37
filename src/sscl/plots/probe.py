"""The charts of a probe: bars by encoder, and balanced accuracy against labels or pretraining images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from sscl.evaluate.intervals import Interval
from sscl.evaluate.probe_results import Classifier, OverRuns, Part, Place, Summary
from sscl.evaluate.probe_shots import FewShot
from sscl.evaluate.probe_tables import percent
from sscl.plots import base
from sscl.words import shortened

Point = tuple[float, Interval | None]  # value, and the ends of its whisker or band where it has some


@dataclass(frozen=True)
class BarPanel:
    """The bars of one set and part.

    Attributes:
        title: above the panel.
        chance: balanced accuracy of guessing.
        linear, knn: of each row. few: of SimpleShot with `shots`; None leaves a row out, empty all.
        runs: the values behind each row's linear probe; empty leaves them out.
    """

    title: str
    chance: float
    linear: Sequence[Point]
    knn: Sequence[float]
    runs: Sequence[Sequence[float]] = ()
    few: Sequence[float | None] = ()


@dataclass(frozen=True)
class CurvePanel:
    """The lines of one set and part.

    Attributes:
        title: above the panel.
        chance: balanced accuracy of guessing.
        lines: by name, (x, point) from the smallest x on.
        levels: by name, a value that holds for every x.
    """

    title: str
    chance: float
    lines: Mapping[str, Sequence[tuple[float, Point]]]
    levels: Mapping[str, float] = field(default_factory=dict)


def draw_charts(
    summary: Sequence[Summary],
    *,
    few_shot: Sequence[FewShot] = (),
    chance: Mapping[Part, float],
    images: Mapping[str, int | None],
    folder: Path,
) -> list[str]:
    """Draw the charts of a probe and return the names of the files.

    probe.png always; labels.png for several fractions; shots.png for several numbers of shots; images.png where rows
    say on how many tiles they were pretrained.

    Args:
        chance: balanced accuracy of guessing, by set and part. images: by the name of each row. folder: exists.
    """
    found = {(row.encoder, row.place): row.balanced_accuracy for row in summary}
    fractions = sorted({row.fraction for row in summary})
    labels = {(row.set, row.fraction): row.labels for row in summary}
    most = fractions[-1]

    def of(name: str, part: Part, fraction: float, classifier: Classifier = "linear") -> OverRuns:
        return found[name, Place(*part, fraction, classifier)]

    def bar(name: str, part: Part) -> Point:
        over = of(name, part, most)
        return over.mean, over.interval

    def point(name: str, part: Part, fraction: float) -> Point:
        over = of(name, part, fraction)
        mean, sd = over.mean, over.sd
        return mean, over.interval if sd is None else (mean - sd, mean + sd)

    single, several = any(row.runs == 1 for row in summary), any(row.runs > 1 for row in summary)
    band = "± 1 SD over runs, 95% interval of a single run" if single else "± 1 SD over runs"
    band = band if several else "95% interval"
    shots = max((row.shots for row in few_shot), default=0)
    shot = {(row.encoder, (row.set, row.part)): row.balanced_accuracy.mean for row in few_shot if row.shots == shots}
    bars = [
        BarPanel(
            ", ".join(place),
            chance[place],
            linear=[bar(name, place) for name in images],
            knn=[of(name, place, most, "knn").mean for name in images],
            runs=[of(name, place, most).values for name in images] if several else (),
            few=[shot.get((name, place)) for name in images] if shot else (),
        )
        for place in chance
    ]
    title = f"Frozen features, {percent(most)} of the training labels"
    plot_bars(
        bars,
        rows=list(images),
        path=folder / "probe.png",
        title=title,
        whiskers="95% interval of the mean",
        shots=shots,
    )
    written = ["probe.png"]
    if len(fractions) > 1:
        curves = [
            CurvePanel(
                ", ".join(place),
                chance[place],
                {name: [(labels[place[0], f], point(name, place, f)) for f in fractions] for name in images},
            )
            for place in chance
        ]
        title, x_label = "Linear probe by the number of labels", "Labelled training tiles"
        plot_curves(curves, x_label=x_label, path=folder / "labels.png", title=title, band=band)
        written.append("labels.png")
    written += draw_shots(few_shot, chance=chance, folder=folder)
    grown = sorted((count, name) for name, count in images.items() if count is not None)
    if grown:
        curves = [
            CurvePanel(
                ", ".join(place),
                chance[place],
                {
                    f"pretrained, {percent(f)} of the labels": [(count, point(name, place, f)) for count, name in grown]
                    for f in fractions
                },
                {
                    f"{shortened(name, 24)}, {percent(most)} of the labels": of(name, place, most).mean
                    for name, count in images.items()
                    if count is None
                },
            )
            for place in chance
        ]
        title, x_label = "Linear probe by the number of pretraining tiles", "Pretraining tiles"
        plot_curves(curves, x_label=x_label, path=folder / "images.png", title=title, band=band)
        written.append("images.png")
    return written


def draw_shots(found: Sequence[FewShot], *, chance: Mapping[Part, float], folder: Path) -> list[str]:
    """Draw balanced accuracy of SimpleShot over the number of shots, shots.png, where there are several; return names.

    Args:
        chance: balanced accuracy of guessing, by set and part. folder: exists.
    """
    numbers = sorted({row.shots for row in found})
    if len(numbers) < 2:
        return []
    panels = []
    for place, guessing in chance.items():
        lines: dict[str, list[tuple[float, Point]]] = {}
        for row in sorted((row for row in found if (row.set, row.part) == place), key=lambda row: row.shots):
            over = row.balanced_accuracy
            lines.setdefault(row.encoder, []).append((row.shots, (over.mean, over.interval)))
        panels.append(CurvePanel(", ".join(place), guessing, lines))
    title = f"SimpleShot: nearest class mean, {found[0].draws} draws"
    plot_curves(
        panels,
        x_label="Labelled tiles a class",
        path=folder / "shots.png",
        title=title,
        band="95% interval of the mean",
        ticks=numbers,
    )
    return ["shots.png"]


def plot_bars(
    panels: Sequence[BarPanel],
    *,
    rows: Sequence[str],
    path: Path,
    title: str,
    whiskers: str,
    shots: int = 0,
) -> None:
    """Draw balanced accuracy by encoder: bars of the linear probe, diamonds of k-NN, triangles of SimpleShot.

    There is a panel for each set and part.

    Args:
        panels: at least one. rows: names of the bars, top down.
        whiskers: what they show, for the legend. shots: of SimpleShot, for the legend.
    """
    figure, places, _ = _figure(panels, width=3.4, height=0.9 + 0.42 * len(rows), title=title, extra=1.6)
    for axes, panel in zip(places, panels, strict=True):
        for row, ((linear, ends), knn) in enumerate(zip(panel.linear, panel.knn, strict=True)):
            axes.barh(row, linear, 0.62, color=_colour(row), alpha=0.75)
            if ends is not None:
                reach = [[max(linear - ends[0], 0)], [max(ends[1] - linear, 0)]]
                axes.errorbar(linear, row, xerr=reach, color="black", linewidth=1.2, capsize=3)
            end = max(linear, linear if ends is None else ends[1])
            axes.text(end + 0.015, row, f"{linear:.2f}", va="center", fontsize=8)
            axes.plot(knn, row + 0.2, marker="D", markersize=4.5, color="white", markeredgecolor="black")
        for row, few in enumerate(panel.few):
            if few is not None:
                axes.plot(few, row + 0.2, marker="^", markersize=5, color="0.75", markeredgecolor="black")
        for row, values in enumerate(panel.runs):
            axes.plot(values, [row - 0.2] * len(values), "k|", markersize=5, alpha=0.8)
        axes.axvline(panel.chance, color="0.35", linewidth=1, linestyle=":")
        axes.set(xlim=(0, 1.1), ylim=(len(rows) - 0.5, -0.5), title=base.plain(panel.title))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
        axes.set_yticks(range(len(rows)), [base.wrapped(name) for name in rows])  # shared: shown in the first column
        axes.tick_params(axis="y", length=0)
        base.grid(axes, axis="x", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("Balanced accuracy")
    triangle = Line2D([], [], linestyle="", marker="^", color="0.75", markeredgecolor="black", label=f"{shots} shots")
    interval = Line2D([], [], color="black", linewidth=1.2, label=whiskers)
    runs = [Line2D([], [], marker="|", markersize=6, color="black", linestyle="", label="its runs")]
    figure.legend(
        handles=[
            Patch(color="0.6", label="linear probe"),
            *(runs if any(panel.runs for panel in panels) else []),
            *([interval] if any(ends for panel in panels for _, ends in panel.linear) else []),
            Line2D([], [], marker="D", markersize=5, color="white", markeredgecolor="black", label="k-NN"),
            *([triangle] if any(panel.few for panel in panels) else []),
            Line2D([], [], color="0.35", linewidth=1, linestyle=":", label="chance"),
        ],
        loc="outside lower center",
        ncols=5 if len(panels) < 2 else 6,
        frameon=False,
        fontsize=8,
    )
    base.save_figure(figure, path)


def plot_curves(
    panels: Sequence[CurvePanel],
    *,
    x_label: str,
    path: Path,
    title: str,
    band: str,
    ticks: Sequence[float] = (),
) -> None:
    """Draw balanced accuracy over a logarithmic axis, a line a name, a panel for each set and part.

    Args:
        panels: at least one. x_label: of the horizontal axis.
        band: what the shaded bands show, for the legend. ticks: of the horizontal axis; empty = 1, 2, 5, 10, ...
    """
    names = list(dict.fromkeys(name for panel in panels for name in (*panel.lines, *panel.levels)))
    figure, places, columns = _figure(panels, width=3.6, height=3.2, title=title, extra=0.9)
    for index, (axes, panel) in enumerate(zip(places, panels, strict=True)):
        for name, points in panel.lines.items():
            style = base.line_style(names.index(name))
            xs = [x for x, _ in points]
            axes.plot(xs, [value for _, (value, _) in points], marker="o", markersize=4, **style)
            edges = [(x, *ends) for x, (_, ends) in points if ends is not None]
            if len(edges) > 1:
                at, low, high = zip(*edges, strict=True)
                axes.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
            for x, low_end, high_end in edges if len(edges) == 1 else []:
                axes.plot([x, x], [low_end, high_end], color=style["color"], linewidth=1)
        for name, level in panel.levels.items():
            axes.axhline(level, **_dashed(names.index(name)))
        axes.axhline(panel.chance, color="0.35", linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
        axes.tick_params(axis="x", labelrotation=35 if _decades(panel) > 1.5 else 0)
        base.grid(axes, color="0.92")
        axes.set(title=base.plain(panel.title), xlabel=x_label)
        if index % columns == 0:
            axes.set_ylabel("Balanced accuracy")
    lines = [
        Line2D([], [], marker="o", markersize=4, label=base.plain(name, 48), **base.line_style(i))
        if any(name in panel.lines for panel in panels)
        else Line2D([], [], label=base.plain(name, 48), **_dashed(i))
        for i, name in enumerate(names)
    ]
    drawn = any(ends for panel in panels for points in panel.lines.values() for _, (_, ends) in points)
    rest = [
        *([Patch(color="0.8", label=band)] if drawn else []),
        Line2D([], [], color="0.35", linewidth=1, linestyle=":", label="chance"),
    ]
    figure.legend(
        handles=[*lines, *rest], loc="outside lower center", ncols=2 + (columns > 1), frameon=False, fontsize=8
    )
    base.save_figure(figure, path)


def _figure(
    panels: Sequence[BarPanel] | Sequence[CurvePanel], *, width: float, height: float, title: str, extra: float
) -> tuple[Figure, list[Axes], int]:
    """Return a figure with axes for each panel and how many stand in a row; `extra` inches wider, for names."""
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(columns * width + extra, lines * height + 1.1), dpi=base.DPI, layout="constrained")
    figure.suptitle(base.plain(title))
    places = list(figure.subplots(lines, columns, squeeze=False, sharey=True).ravel())
    for axes in places[len(panels) :]:
        axes.remove()
    return figure, places[: len(panels)], columns


def _colour(index: int) -> str:
    return base.LINE_COLOURS[index % (len(base.LINE_COLOURS) - 1)]  # not the black of the whiskers


def _dashed(index: int) -> dict[str, Any]:
    return {**base.line_style(index), "linestyle": "--", "linewidth": 1.2}


def _decades(panel: CurvePanel) -> float:
    xs = [x for points in panel.lines.values() for x, _ in points]
    return math.log10(max(xs) / min(xs)) if xs else 0.0
