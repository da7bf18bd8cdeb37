"""What the held-out tiles of all folds say together: folds.json, folds.png, predictions.csv and the printed table.

N tiles, K classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sscl import run
from sscl.config import DataConfig, FinetuneConfig
from sscl.data.tiles import Tiles
from sscl.evaluate import tables
from sscl.evaluate.intervals import few_groups, group_count
from sscl.evaluate.metric_intervals import Intervals, interval_method, metric_intervals
from sscl.evaluate.metrics import Metrics, classification_metrics, display_name
from sscl.evaluate.predictions import FILE, TilePredictions, joined, read_predictions, write_predictions
from sscl.models import checkpoint
from sscl.models.classifier import positive_class
from sscl.plots import comparison as comparison_plots
from sscl.records import Record, write_record

SHOWN = {key: display_name(key) for key in ("accuracy", "balanced_accuracy", "macro_f1", "auroc")}
SHARED = (
    "folds share training tiles, so their metrics are not independent: the sd over folds understates the variation "
    "with other tiles (Bengio & Grandvalet 2004)"
)
MODELS = "the pooled predictions come from different classifiers: they assess the recipe, not any one of them"


class Scores(Record):
    """Counts, mean cross-entropy (nats), metrics and their 95% intervals."""

    tiles: int
    groups: int | None
    class_counts: dict[str, int]
    loss: float
    metrics: Metrics
    intervals: Intervals

    def value(self, key: str) -> float | None:
        """Return one of the metrics that are a number; None where it is undefined."""
        found: float | None = getattr(self.metrics, key)
        return found

    def interval(self, key: str) -> tuple[float, float] | None:
        """Return its interval, if any."""
        found: tuple[float, float] | None = getattr(self.intervals, key)
        return found


class Fold(Scores):
    """A fold's held-out tiles, and the run that predicted them: its best epoch, and how many it trained."""

    fold: int
    folder: str
    epoch: int
    epochs: int


class FoldsReport(Record):
    """The content of folds.json; `pooled`, `mean` and `sd` need more than one fold."""

    folds: int
    seed: int
    split: str
    data: DataConfig
    classes: tuple[str, ...]
    positive: str | None
    runs: tuple[Fold, ...]
    interval_method: str
    pooled: Scores | None
    mean: dict[str, float | None] | None
    sd: dict[str, float | None] | None
    caveats: tuple[str, ...]
    environment: run.Environment


def build_report(
    config: FinetuneConfig, tiles: Tiles, folders: Sequence[Path], *, numbers: Sequence[int], notes: Sequence[str]
) -> FoldsReport:
    """Return the metrics of each fold, their mean and standard deviation, and those of all held-out tiles.

    Args:
        tiles: the training split.
        folders: of the folds' runs. numbers: of these folds, from 1.
        notes: further caveats.
    """
    found = [read_predictions(folder / FILE) for folder in folders]
    positive = positive_class(tiles.classes, None)
    runs = []
    for number, folder, one in zip(numbers, folders, found, strict=True):
        trained = checkpoint.load_checkpoint(folder, kind="finetune", tensors=False)
        ending = run.ending_of(folder)
        assert ending is not None  # a fold is predicted when it has ended
        scores = scores_of(one, positive=positive)
        runs.append(Fold(**dict(scores), fold=number, folder=str(folder), epoch=trained.epoch, epochs=ending.epochs))
    everything = joined(found, folds=numbers, order=[name for one in found for name in one.ids])
    notes = [*few_groups_notes(everything.groups, runs), *notes]
    pooled = mean = sd = None
    if len(runs) > 1:
        pooled = scores_of(everything, positive=positive)
        series = {"loss": [one.loss for one in runs]}
        series |= {key: [value for one in runs if (value := one.value(key)) is not None] for key in SHOWN}
        # AUROC is undefined in each fold where a class is in the test split alone.
        mean = {key: statistics.fmean(values) if values else None for key, values in series.items()}
        sd = {key: statistics.stdev(values) if len(values) > 1 else None for key, values in series.items()}
        notes = [*([SHARED] if len(runs) > 2 else []), MODELS, *notes]  # two folds share no training tile
    assert config.train.folds is not None
    return FoldsReport(
        folds=config.train.folds,
        seed=config.seed,
        split="held-out folds",
        data=config.data,
        classes=tuple(tiles.classes),
        positive=None if positive is None else tiles.classes[positive],
        runs=tuple(runs),
        interval_method=(
            f"{interval_method(everything.groups)}; they cover the sampling of held-out tiles, not retraining on other "
            "tiles"
        ),
        pooled=pooled,
        mean=mean,
        sd=sd,
        caveats=tuple(notes),
        environment=run.environment(),
    )


def few_groups_notes(groups: Sequence[str] | None, runs: Sequence[Fold]) -> list[str]:
    """Return a line where the intervals rest on few slides, for all held-out tiles and for single folds."""
    number = group_count(groups)
    if number is None:
        return []
    found = {"": few_groups(number)}
    if len(runs) > 1:
        found["single folds: "] = few_groups(min(one.groups or 0 for one in runs))
    return [f"{which}{text}" for which, text in found.items() if text is not None]


def scores_of(one: TilePredictions, *, positive: int | None) -> Scores:
    """Return the scores of some predictions; intervals go by groups where they have some."""
    counts = np.bincount(one.labels, minlength=len(one.classes)).tolist()
    return Scores(
        tiles=len(one.ids),
        groups=None if one.groups is None else len(set(one.groups)),
        class_counts=dict(zip(one.classes, counts, strict=True)),
        loss=statistics.fmean(one.losses.tolist()),
        metrics=classification_metrics(one.labels, one.probabilities, positive=positive),
        intervals=metric_intervals(one.labels, one.probabilities, positive=positive, groups=one.groups),
    )


def write_report(folder: Path, tiles: Tiles, report: FoldsReport) -> None:
    """Write the predictions of all held-out tiles in the order of the set, the picture, and the report."""
    assert report.pooled is not None
    parts = [read_predictions(Path(one.folder) / FILE) for one in report.runs]
    everything = joined(parts, folds=[one.fold for one in report.runs], order=tiles.ids)
    write_predictions(folder / FILE, everything)
    pooled = report.pooled
    comparison_plots.plot_folds(
        {name: [(one.value(key), one.interval(key)) for one in report.runs] for key, name in SHOWN.items()},
        pooled={name: (pooled.value(key), pooled.interval(key)) for key, name in SHOWN.items()},
        path=folder / "folds.png",
        title=f"{report.folds} folds of the training split, {pooled.tiles} held-out tiles",
    )
    write_record(folder / "folds.json", report)


def table(report: FoldsReport) -> str:
    """Return the report as lines for the terminal: metrics, then their intervals."""

    def cell(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.4f}"

    lines = [["held out", "tiles", *SHOWN.values(), "loss"]]
    named: dict[str, Scores] = {f"fold {one.fold}": one for one in report.runs}
    if report.pooled is not None:
        named["pooled"] = report.pooled
    for name, one in named.items():
        lines.append([name, str(one.tiles), *(cell(one.value(key)) for key in SHOWN), cell(one.loss)])
        drawn = [one.interval(key) for key in SHOWN]
        lines.append(["", "", *("" if pair is None else f"{pair[0]:.3f}-{pair[1]:.3f}" for pair in drawn), ""])
    if report.mean is not None and report.sd is not None:
        for name, values in (("mean of folds", report.mean), ("sd of folds", report.sd)):
            lines.append([name, "", *(cell(values[key]) for key in (*SHOWN, "loss"))])
    positive = "" if report.positive is None else f"; positive class {report.positive}"
    return f"\n{tables.as_text(lines)}\n{report.interval_method}{positive}"
