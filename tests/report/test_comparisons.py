"""Comparisons, cross-validations and further runs are shown as they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from sscl import run
from sscl.config import DataConfig
from sscl.evaluate.comparison import Comparison, RowFacts, RunFacts, build
from sscl.evaluate.comparison_tables import NAMES, comparison_tables
from sscl.evaluate.metric_intervals import Intervals
from sscl.evaluate.metrics import Metrics
from sscl.evaluate.predictions import TilePredictions
from sscl.explain.records import MapChecks
from sscl.report import comparisons
from sscl.train.fold_report import Fold, FoldsReport, Scores

from .conftest import kinds, rendered

MadeChecks = Callable[..., MapChecks]


def compare_report(*, fractions: tuple[float | None, ...] = (None,), seeds: tuple[int, ...] = (0,)) -> Comparison:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2

    def one() -> TilePredictions:
        guess = np.where(rng.random(40) < 0.3, 1 - labels, labels)
        return TilePredictions(
            tuple(map(str, range(40))), ("a", "b"), labels, guess, np.eye(2)[guess], losses=rng.random(40)
        )

    names = {f"{entry}, {fraction}": (entry, fraction) for fraction in fractions for entry in ("scratch", "<ssl>")}
    facts = [
        (
            RowFacts(
                name=name,
                entry=entry,
                fraction=fraction,
                labelled_tiles=None if fraction is None else round(100 * fraction),
                published={},
            ),
            [RunFacts(seed=seed, folder=f"runs/{name}-{seed}", epoch=1) for seed in seeds],
        )
        for name, (entry, fraction) in names.items()
    ]
    return build(
        {name: [one() for _ in seeds] for name in names},
        facts=facts,
        against={f"<ssl>, {fraction}": f"scratch, {fraction}" for fraction in fractions},
        seeds=seeds,
        split="test",
        caveats=["y"],
        environment=run.environment(),
    )


class TestComparison:
    LOG: ClassVar[list[dict[str, Any]]] = [{"epoch": 1, "validation_accuracy": 0.5, "validation_loss": 0.7}]

    def test_tables_are_those_of_compare(self) -> None:
        report = compare_report()
        section = comparisons.compared("comparison", report, logs={})

        assert "<ssl>" not in rendered(section)
        found = kinds(section, "table")
        expected = comparison_tables(report)
        assert [[block["header"], *block["rows"]] for block in found] == [table.lines for table in expected]
        assert not kinds(section, "figure")
        assert kinds(section, "facts")[0]["rows"] == [["classes", "a, b"]]
        assert kinds(section, "list")[-1]["items"][-1] == "y"

    def test_curves_of_rows_whose_logs_are_all_there_and_the_worth_of_labels(self) -> None:
        report = compare_report(fractions=(0.1, 1.0), seeds=(0, 1))
        logs = {one.folder: self.LOG for row in report.rows for one in row.runs}
        del logs["runs/scratch, 1.0-1"]

        section = comparisons.compared("comparison", report, logs=logs)

        assert rendered(section)
        first, second, labels = kinds(section, "figure")
        assert "scratch" in first["alt"]
        assert "scratch" not in second["alt"]
        mean = np.mean([one.metrics["balanced_accuracy"] for one in report.rows[0].runs])
        assert f"scratch: {mean:.3f} with 10" in labels["alt"]

    def test_metrics_are_all_there(self) -> None:
        section = comparisons.compared("comparison", compare_report(), logs={})

        assert kinds(section, "table")[0]["header"] == ["row", *NAMES]


class TestFolds:
    @staticmethod
    def report(*, pooled: bool) -> FoldsReport:
        classes = {"benign": 10, "cancer": 10}

        def scores(value: float, auroc: float | None, *, tiles: int) -> Scores:
            return Scores(
                tiles=tiles,
                groups=None,
                class_counts=classes,
                loss=0.5,
                metrics=Metrics(
                    **dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), value),
                    **dict.fromkeys(("average_precision", "mcc")),
                    auroc=auroc,
                    per_class=(),
                ),
                intervals=Intervals(
                    **dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), (0.5, 1.0)),
                    **dict.fromkeys(("auroc", "average_precision", "mcc")),
                    per_class=(),
                ),
            )

        one = dict(scores(0.75, None, tiles=20))
        runs = [Fold(**one, fold=i, folder=f"fold_{i}", epoch=1, epochs=2) for i in (1, 2)]
        keys = (*comparisons.FOLD_METRICS, "loss")
        return FoldsReport(
            folds=2,
            seed=0,
            split="held-out folds",
            data=DataConfig(root="/data/other", size_px=64),
            classes=tuple(classes),
            positive=None,
            runs=tuple(runs[: 1 + pooled]),
            interval_method="95% intervals: x",
            pooled=scores(0.625, 0.875, tiles=40) if pooled else None,
            mean=dict.fromkeys(keys, 0.75) if pooled else None,
            sd=dict.fromkeys(keys, 0.125) if pooled else None,
            caveats=("y",),
            environment=run.environment(),
        )

    def test_folds_pooled_mean_and_sd(self) -> None:
        section = comparisons.folds("cross-validation", self.report(pooled=True))

        assert rendered(section)
        (table,) = kinds(section, "table")
        assert table["caption"] == "2 folds of the training split of other, 64 px (benign, cancer)"
        first, _, pooled, drawn, over = table["rows"]
        assert [row[0] for row in table["rows"]][2:] == ["all, pooled", "95% interval", "mean ± sd of folds"]
        assert first == ["fold 1", "20", *["0.750"] * 3, "undefined", "0.500"]
        assert pooled == ["all, pooled", "40", *["0.625"] * 3, "0.875", "0.500"]
        assert drawn[2:] == [*["0.500 to 1.000"] * 3, "", ""]
        assert over[2] == "0.750 ± 0.125"
        (figure,) = kinds(section, "figure")
        assert "pooled accuracy 0.625" in figure["alt"]
        assert kinds(section, "list")[-1]["items"][-1] == "y"

    def test_the_chart_has_each_fold_and_the_pooled_metrics(self, wrap: Any) -> None:
        drawn: dict[str, Any] = {}

        def keep(plot: Any, folds: Any, **words: Any) -> None:
            drawn.update(words, folds=folds)

        wrap(folds_chart=keep, svg=lambda inline, draw, prefix: draw(Path("x")) or "<svg>")
        comparisons.folds("cross-validation", self.report(pooled=True))

        assert drawn["folds"]["accuracy"] == [(0.75, (0.5, 1.0))] * 2
        assert drawn["folds"]["AUROC"] == [(None, None)] * 2
        assert drawn["pooled"] == {
            **dict.fromkeys(("accuracy", "balanced accuracy", "macro F1"), (0.625, (0.5, 1.0))),
            "AUROC": (0.875, None),
        }

    def test_a_fold_alone(self) -> None:
        section = comparisons.folds("cross-validation", self.report(pooled=False))

        assert len(kinds(section, "table")[0]["rows"]) == 1
        assert not kinds(section, "figure")


def test_further_runs_have_their_metrics_each_with_its_own_interval():
    keys = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
    intervals = {key: [0.4 + i / 10, 0.6 + i / 10] for i, key in enumerate(keys)} | {"auroc": None}
    found = SimpleNamespace(
        tiles=1200,
        metrics=SimpleNamespace(**{key: 0.5 + i / 10 for i, key in enumerate(keys)}),
        intervals=SimpleNamespace(**intervals),
    )
    (table,) = kinds(comparisons.others({"runs/a": found}), "table")
    assert table["header"] == ["run", "tiles", "accuracy", "balanced accuracy", "macro F1", "AUROC"]
    assert table["rows"] == [
        ["runs/a", "1,200", "0.500 (0.400 to 0.600)", "0.600 (0.500 to 0.700)", "0.700 (0.600 to 0.800)", "0.800"]
    ]
