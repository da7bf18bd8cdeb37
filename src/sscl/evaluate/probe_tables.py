"""What a probe found: figures over seeds, paired differences, and the tables that show them.

A run is a dict of `encoder`, `seed`, `set`, `part`, `fraction`, `label_seed`, `labels`, `classifier`; `measure` adds
`metrics` {name: value} and `intervals` {name: (low, high)}. `Found` holds the runs and what each of them predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sscl.evaluate.metrics import FIGURES, FloatArray, figures, resamples

CLASSIFIERS = ("linear", "knn")
PLACE = ("set", "part", "fraction", "classifier")


@dataclass(frozen=True, eq=False)
class Found:
    """The runs of a probe.

    Attributes:
        runs: as the module says.
        predictions: what each run said of its part's tiles, class indices, (N,), in the order of `runs`.
        labels: true classes of the tiles, (N,), by (set, part).
        groups: their slides or patients, (N,), or None, by (set, part).
        drawn: figures of each run in each resample of its tiles, (S, 3), in the order of `runs`; of `measure`.
    """

    runs: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[NDArray[np.int64]] = field(default_factory=list)
    labels: dict[tuple[str, str], NDArray[np.int64]] = field(default_factory=dict)
    groups: dict[tuple[str, str], NDArray[np.str_] | None] = field(default_factory=dict)
    drawn: list[FloatArray] = field(default_factory=list)


def measure(found: Found, *, samples: int, seed: int, progress: bool = False) -> None:
    """Give each run its metrics and their 95% bootstrap intervals, and keep in `drawn` what each resample gave.

    All runs on a part meet the same resamples: tiles within each class, or whole groups where there are any.
    """
    of: dict[tuple[str, str], list[int]] = {}
    for index, entry in enumerate(found.runs):
        of.setdefault((entry["set"], entry["part"]), []).append(index)
    drawn: list[list[FloatArray]] = [[] for _ in found.runs]
    with tqdm(total=samples * len(found.runs), desc="intervals", disable=not progress, leave=False) as bar:
        for where, indices in of.items():
            labels = found.labels[where]
            for weights in resamples(labels, groups=found.groups[where], samples=samples, seed=seed):
                for index in indices:
                    drawn[index].append(figures(labels, found.predictions[index], weights=weights))
                    bar.update(len(weights))
    for entry, predictions, parts in zip(found.runs, found.predictions, drawn, strict=True):
        (point,) = figures(found.labels[entry["set"], entry["part"]], predictions).tolist()
        found.drawn.append(np.concatenate(parts))
        entry["metrics"] = dict(zip(FIGURES, point, strict=True))
        entry["intervals"] = _intervals(found.drawn[-1])


def _intervals(drawn: FloatArray) -> dict[str, tuple[float, float]]:
    """Return the 95% percentile intervals of (S, 3), by name."""
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0).tolist()
    return dict(zip(FIGURES, zip(low, high, strict=True), strict=True))


def summarise(found: Found) -> list[dict[str, Any]]:
    """Return each encoder's figures at each set, part, fraction and classifier, over its runs.

    For each metric the `values` of the runs, their `mean` and `sd` (None for one), and the `interval` of the mean when
    the tiles are drawn anew.
    """
    keys = ("encoder", *PLACE)
    rows: dict[tuple[Any, ...], list[int]] = {}
    for index, entry in enumerate(found.runs):
        rows.setdefault(tuple(entry[key] for key in keys), []).append(index)
    summary = []
    for place, indices in rows.items():
        runs = [found.runs[index] for index in indices]
        intervals = _intervals(np.mean([found.drawn[index] for index in indices], axis=0))
        row: dict[str, Any] = {**dict(zip(keys, place, strict=True)), "labels": runs[0]["labels"], "runs": len(runs)}
        for metric in FIGURES:
            values = [entry["metrics"][metric] for entry in runs]
            row[metric] = {**_over_runs(values), "interval": intervals[metric]}
        summary.append(row)
    return summary


def _over_runs(values: list[float]) -> dict[str, Any]:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "values": values}


def differences(found: Found, *, reference: str) -> list[dict[str, Any]]:
    """Return how much better each encoder is than the reference, run by run of the same seed and label seed.

    An encoder of one seed meets every seed of the other. For each metric the `values` of the pairs, their `mean` and
    `sd` (None for one), and the `interval` of the mean when the tiles are drawn anew, for both sides alike: it tells
    what other tiles would give, the sd what other seeds would.
    """
    keys = ("encoder", *PLACE)
    rows: dict[tuple[Any, ...], dict[tuple[int, int], int]] = {}
    for index, entry in enumerate(found.runs):
        rows.setdefault(tuple(entry[key] for key in keys), {})[entry["seed"], entry["label_seed"]] = index
    report = []
    for (encoder, *place), ours in rows.items():
        if encoder == reference:
            continue
        theirs = (reference, *place)  # Python 3.10 takes no star within brackets
        pairs = _pairs(ours, rows[theirs])
        where = (place[0], place[1])
        row = {"encoder": encoder, "reference": reference, **dict(zip(PLACE, place, strict=True)), "pairs": len(pairs)}
        row["resampled"] = "tiles of each class" if found.groups[where] is None else "whole groups"
        intervals = _intervals(np.mean([found.drawn[a] - found.drawn[b] for a, b in pairs], axis=0))
        for metric in FIGURES:
            gains = [found.runs[a]["metrics"][metric] - found.runs[b]["metrics"][metric] for a, b in pairs]
            row[metric] = {**_over_runs(gains), "interval": intervals[metric]}
        report.append(row)
    return report


def _pairs(ours: dict[tuple[int, int], int], theirs: dict[tuple[int, int], int]) -> list[tuple[int, int]]:
    """Return (our run, their run) of the same seed and label seed; a single seed meets all of the other side."""
    seeds, other = {seed for seed, _ in ours}, {seed for seed, _ in theirs}
    alone = len(seeds) == 1 or len(other) == 1
    return [
        (index, match)
        for (seed, label_seed), index in ours.items()
        for (their_seed, their_label_seed), match in theirs.items()
        if label_seed == their_label_seed and (alone or seed == their_seed)
    ]


@dataclass(frozen=True)
class Table:
    """A table of texts: one heading, names of the columns, rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return it for the terminal, in aligned columns."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [
            "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in (self.header, *self.rows)
        ]
        return "\n".join([self.title, *(f"  {line}".rstrip() for line in lines)])

    def markdown(self) -> str:
        """Return it for a document."""

        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

        rule = f"|{'---|' * len(self.header)}"
        return "\n".join([f"**{self.title}**", "", line(self.header), rule, *map(line, self.rows)])


def tables(summary: Sequence[dict[str, Any]], gains: Sequence[dict[str, Any]], *, reference: str | None) -> list[Table]:
    """Return a table for each set and fraction: rows are encoders; columns, for each part, what it is worth.

    Linear probe (balanced accuracy), its macro F1, kNN (balanced accuracy), and with a reference the difference of the
    linear probe's balanced accuracy to it.
    """
    by_place = {(row["encoder"], *(row[key] for key in PLACE)): row for row in summary}
    gain_of = {(row["encoder"], *(row[key] for key in PLACE)): row["balanced_accuracy"] for row in gains}
    names = list(dict.fromkeys(row["encoder"] for row in summary))
    found = []
    for where, fraction in dict.fromkeys((row["set"], row["fraction"]) for row in summary):
        here = [row for row in summary if (row["set"], row["fraction"]) == (where, fraction)]
        parts = list(dict.fromkeys(row["part"] for row in here))
        header = ["encoder"]
        for part in parts:
            header += [f"{part}: linear", "macro F1", "kNN"] + ([f"linear − {reference}"] if reference else [])
        rows = []
        for name in names:
            cells = [name]
            for part in parts:
                linear = by_place[name, where, part, fraction, "linear"]
                knn = by_place[name, where, part, fraction, "knn"]
                cells += [_figure(linear["balanced_accuracy"]), _figure(linear["macro_f1"], interval=False)]
                cells.append(_figure(knn["balanced_accuracy"], interval=False))
                if reference:
                    gain = gain_of.get((name, where, part, fraction, "linear"))
                    cells.append("" if gain is None else _figure(gain, sign="+"))
            rows.append(cells)
        title = f"{where}: {percent(fraction)} of the training labels ({here[0]['labels']:,} tiles)"
        found.append(Table(title, header, rows))
    return found


def _figure(value: dict[str, Any], *, interval: bool = True, sign: str = "") -> str:
    """Return 0.731 (0.702 to 0.760), with ± sd in between where there are several runs."""
    text = f"{value['mean']:{sign}.3f}" + ("" if value["sd"] is None else f" ± {value['sd']:.3f}")
    low, high = value["interval"]
    return f"{text} ({low:{sign}.3f} to {high:{sign}.3f})" if interval else text


def legend(*, neighbours: int, samples: int, seed: int, reference: str | None) -> list[str]:
    """Return what the figures of the tables are, a sentence each."""
    lines = [
        "linear: balanced accuracy of logistic regression on frozen features, C chosen on validation; macro F1 of the "
        f"same; kNN: balanced accuracy, k = {neighbours}, cosine",
        "± sd over seeds and label seeds (with all labels these differ in validation alone); in brackets the mean's "
        f"95% interval by bootstrap of the tiles ({resampled(samples=samples, seed=seed)})",
    ]
    if reference is not None:
        lines.append(
            f"linear − {reference}: mean difference over pairs of the same seed and label seed, ± their sd, and the "
            "95% interval over the same resamples of the tiles for both"
        )
    return lines


def resampled(*, samples: int, seed: int) -> str:
    """Return how the tiles were drawn."""
    return (
        "within each class, or whole groups (slides, patients or clusters of near-duplicates) where these are known; "
        f"{samples} resamples, seed {seed}, the same for all encoders"
    )


def percent(fraction: float) -> str:
    """Return a fraction as 100%, 2.5%."""
    return f"{100 * fraction:.6g}%"
