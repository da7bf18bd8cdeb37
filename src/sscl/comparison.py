"""Several classifiers on the same tiles: figures by run, over seeds, and paired differences with their intervals.

Every resample of the tiles is the same for all runs, so a difference loses what is easy or hard about a tile. Shape
letters: N tiles, K classes, R runs (seeds) of a row, S resamples, s of them in a chunk, M metrics.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sscl import metrics
from sscl.metrics import FloatArray, IntArray

METRICS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
}


@dataclass(frozen=True)
class Predictions:
    """What a classifier said of each tile.

    Attributes:
        ids: N names. classes: K names, in the order of the probabilities. groups: slide or patient, N, or None.
        labels, predictions: class indices, (N,). losses: cross-entropy of each tile, nats, (N,).
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: IntArray
    predictions: IntArray
    losses: FloatArray
    groups: tuple[str, ...] | None = None

    def same_tiles(self, other: Predictions) -> bool:
        """Return whether both are about the same tiles, in one order, with the same labels."""
        return (self.ids, self.classes) == (other.ids, other.classes) and bool((self.labels == other.labels).all())


def read_predictions(path: str | Path) -> Predictions:
    """Return what eval wrote to predictions.csv: id, label, prediction, loss, probability_CLASS, and group if there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, or a value in it is none.
    """
    with Path(path).open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    for needed in ("id", "label", "prediction", "loss"):
        if needed not in columns:
            raise ValueError(f"{path}: has no column {needed!r}; write it again with sscl eval")
    classes = tuple(name.removeprefix("probability_") for name in columns if name.startswith("probability_"))
    index = {name: i for i, name in enumerate(classes)}
    try:
        return Predictions(
            ids=tuple(row["id"] for row in rows),
            classes=classes,
            labels=np.array([index[row["label"]] for row in rows], dtype=np.int64),
            predictions=np.array([index[row["prediction"]] for row in rows], dtype=np.int64),
            losses=np.array([float(row["loss"]) for row in rows]),
            groups=tuple(row["group"] for row in rows) if "group" in columns else None,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: has a value that is none of sscl eval ({error}); write it again") from error


def figures(found: Predictions, weights: FloatArray | None = None) -> FloatArray:
    """Return the metrics of a run, in the order of METRICS, under each row of weights (s, N): (s, M); NaN = undefined.

    Without weights every tile counts once, and s is 1. The definitions are those of `metrics.classification_metrics`.
    """
    weights = np.ones((1, len(found.labels))) if weights is None else weights
    loss = weights @ found.losses / weights.sum(axis=1)
    return np.column_stack([loss, metrics.figures(found.labels, found.predictions, weights=weights)])


def side_by_side(
    rows: Mapping[str, Sequence[Predictions]], *, against: Mapping[str, str], samples: int, seed: int
) -> dict[str, Any]:
    """Return figures and 95% percentile intervals by run, by row over its runs, and of paired differences.

    Args:
        rows: the runs of each row, R the same and the seeds in the same order for all; all on the same tiles.
        against: which row each difference is against, {row: reference}; a row that is not in it has no difference.
        samples, seed: of the bootstrap over the tiles, which is the same for all runs.

    Returns:
        {"rows": {row: {"runs": [{"metrics", "intervals"}], "mean", "sd"}}, "differences": {row: {"against", "by_seed",
        "mean", "sd", "intervals"}}}; each of these by metric. sd is the sample's over the seeds, None for one seed; the
        interval of a difference is that of its mean over the seeds when the tiles are drawn anew.

    Raises:
        ValueError: the runs are not about the same tiles, or rows differ in their number of runs.
    """
    first = next(iter(rows.values()))[0]
    for name, runs in rows.items():
        if len(runs) != len(next(iter(rows.values()))):
            raise ValueError(f"{name}: {len(runs)} runs, other rows have {len(next(iter(rows.values())))}")
        for run in runs:
            if not run.same_tiles(first):
                raise ValueError(f"{name}: was evaluated on other tiles than {next(iter(rows))}; nothing to compare")
    point = {name: np.concatenate([figures(run) for run in runs]) for name, runs in rows.items()}  # (R, M)
    chunks: dict[str, list[FloatArray]] = {name: [] for name in rows}
    for weights in metrics.resamples(first.labels, groups=first.groups, samples=samples, seed=seed):
        for name, runs in rows.items():
            chunks[name].append(np.stack([figures(run, weights) for run in runs]))
    drawn = {name: np.concatenate(parts, axis=1) for name, parts in chunks.items()}  # (R, S, M)
    return {
        "rows": {
            name: {
                "runs": [
                    {"metrics": _by_metric(values.tolist()), "intervals": _intervals(drawn[name][i])}
                    for i, values in enumerate(point[name])
                ],
                **_over_seeds(point[name]),
            }
            for name in rows
        },
        "differences": {
            name: {
                "against": other,
                "by_seed": _by_metric((point[name] - point[other]).T.tolist()),
                **_over_seeds(point[name] - point[other]),
                "intervals": _intervals((drawn[name] - drawn[other]).mean(axis=0)),
            }
            for name, other in against.items()
        },
    }


def _by_metric(values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(METRICS, values, strict=True))


def _over_seeds(values: FloatArray) -> dict[str, Any]:
    """Return the mean and the sample's standard deviation of (R, M) over the runs."""
    columns = values.T.tolist()
    return {
        "mean": _by_metric([statistics.fmean(column) for column in columns]),
        "sd": _by_metric([statistics.stdev(column) if len(column) > 1 else None for column in columns]),
    }


def _intervals(drawn: FloatArray) -> dict[str, Any]:
    """Return the 95% percentile intervals of (S, M)."""
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0).tolist()
    return _by_metric(list(zip(low, high, strict=True)))


# --- tables ---


def tables(report: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Return the tables of a comparison, each a title and rows of cells, the header first.

    Args:
        report: what `sscl compare` writes to compare.json: `side_by_side`'s rows as a list with `name`, `published`,
            `labelled_tiles` (may be None) and each run's `seed`; its differences; `seeds`.
    """
    rows, seeds = report["rows"], report["seeds"]
    published = [metric for metric in METRICS if any(metric in row["published"] for row in rows)]
    counted = any(row["labelled_tiles"] is not None for row in rows)
    header = ["row", *(["labelled tiles"] if counted else []), *METRICS.values()]
    header += [text for metric in published for text in (f"published {METRICS[metric]}", "ours - published")]
    lines = [header]
    for row in rows:
        cells = [row["name"], *([f"{row['labelled_tiles']:,}"] if counted else [])]
        for metric in METRICS:
            interval = row["runs"][0]["intervals"][metric] if len(seeds) == 1 else None
            cells.append(_cell(row["mean"][metric], sd=row["sd"][metric], interval=interval))
        for metric in published:
            value = row["published"].get(metric)
            cells += ["", ""] if value is None else [f"{value:.4f}", f"{row['mean'][metric] - value:+.4f}"]
        lines.append(cells)
    over = f"mean ± sd over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}, 95% interval"
    found = [(f"{report['split']} split, {report['tiles']} tiles; {over}", lines)]

    if len(seeds) > 1:
        lines = [["row", "seed", *METRICS.values()]]
        for row in rows:
            for run in row["runs"]:
                cells = [_cell(run["metrics"][metric], interval=run["intervals"][metric]) for metric in METRICS]
                lines.append([row["name"], str(run["seed"]), *cells])
        found.append(("by seed, 95% interval", lines))

    if report["differences"]:
        lines = [["row - reference", *METRICS.values()]]
        for name, difference in report["differences"].items():
            cells = [
                _cell(
                    difference["mean"][metric],
                    sd=difference["sd"][metric],
                    interval=difference["intervals"][metric],
                    sign="+",
                )
                for metric in METRICS
            ]
            lines.append([f"{name} - {difference['against']}", *cells])
        over = "mean ± sd over seeds, " if len(seeds) > 1 else ""
        found.append((f"paired differences: {over}95% interval over the same tiles", lines))
    return found


def _cell(value: float, *, sd: float | None = None, interval: Sequence[float] | None = None, sign: str = "") -> str:
    text = f"{value:{sign}.4f}"
    if sd is not None:
        text += f" ± {sd:.4f}"
    if interval is not None:
        text += f" ({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"
    return text


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """Return a table for the terminal: columns of equal width, the first one flush left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in lines
    )


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    ruler = ["---"] + ["---:"] * (len(lines[0]) - 1)
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in [lines[0], ruler, *lines[1:]]
    )
