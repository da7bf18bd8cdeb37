"""What a report says of pretraining, audits, heatmaps, comparisons and folds is what their files hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from sscl.config import GradcamConfig, PretrainConfig
from sscl.evaluate.comparison import Comparison, RowFacts, RunFacts, build
from sscl.evaluate.comparison_tables import NAMES, comparison_tables
from sscl.evaluate.predictions import TilePredictions
from sscl.explain.records import HitRates, Localisation, MapChecks
from sscl.plots import svg
from sscl.report import comparisons, heatmaps, page, studies

from .conftest import make_audit

MadeChecks = Callable[..., MapChecks]


def rendered(section: dict[str, Any]) -> str:
    content = {"title": "t", "subtitle": "s", "made": "m", "id": "0" * 16, "gallery": None}
    return page.render({**content, "sections": [section]})


def kinds(section: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [block for block in section["blocks"] if block["kind"] == kind]


class TestPretraining:
    CONFIG = PretrainConfig.model_validate(
        {
            "run": "ssl",
            "data": [{"root": "a", "size_px": 64}, {"root": "b", "size_px": 64}],
            "train": {"batch_size": 8, "epochs": 3, "warmup_epochs": 1},
        }
    )
    ROW: ClassVar[dict[str, Any]] = {
        "epoch": 2,
        "loss": 2.5,
        "loss_relative": 0.9,
        "positive_similarity": 0.8,
        "negative_similarity": 0.1,
        "effective_rank": 20.0,
        "loss_0_a": 1.0,
    }

    def test_facts_curves_and_no_collapse(self) -> None:
        section = studies.pretraining(
            "pretrain", config=self.CONFIG, log=[self.ROW | {"epoch": 1}, self.ROW], warning=None, note="n"
        )

        assert "a, b" in rendered(section)
        (verdict,) = kinds(section, "verdict")
        assert verdict["passed"] is True
        assert (
            "(0.90 of the loss at collapse), cosine similarity 0.80 of positive and 0.10 of negative pairs"
            in verdict["text"]
        )
        assert "loss of each source" in kinds(section, "figure")[0]["svg"]

    def test_collapse_is_said(self) -> None:
        section = studies.pretraining(
            "pretrain", config=self.CONFIG, log=[self.ROW], warning="different tiles look alike", note=None
        )

        (verdict,) = kinds(section, "verdict")
        assert verdict["passed"] is False
        assert verdict["text"].startswith("Different tiles look alike.")

    def test_one_set_and_no_log(self) -> None:
        config = self.CONFIG.model_copy(update={"data": self.CONFIG.data[:1]})
        section = studies.pretraining("pretrain", config=config, log=[], warning=None, note=None)

        assert "0 of 3" in rendered(section)
        assert not kinds(section, "figure")


class TestAudit:
    @pytest.mark.parametrize("pairs", [0, 3, 30])
    def test_verdict_counts_and_pairs(self, pairs: int, tmp_path: Path) -> None:
        Image.new("RGB", (20, 20)).save(tmp_path / "pairs.png")
        section = studies.audit("audit", make_audit(pairs=pairs), pairs=tmp_path / "pairs.png" if pairs else None)

        html = rendered(section)
        (verdict,) = kinds(section, "verdict")
        assert verdict["passed"] is (pairs == 0)
        assert "3 blank" in html
        assert "<a>" not in html
        assert [block["items"] for block in kinds(section, "list")] == [["no slide ids"]]
        listed = [len(block["rows"]) for block in kinds(section, "table")][1:]
        assert listed == ([min(pairs, 12)] if pairs else [])
        assert len(kinds(section, "figure")) == bool(pairs)

    def test_counts_and_sides_of_pairs_are_those_of_the_audit(self) -> None:
        report = make_audit(pairs=2)
        first, second = (
            pair.model_copy(update={"across": across, "score": 0.5})
            for across, pair in zip((True, False), report.pairs, strict=True)
        )
        numbers = {"pairs": {"exact": 5, "hash": 6, "keypoints": 7, "embedding": 8}, "pairs_across": 9}
        numbers |= {"clusters": 10, "tiles_in_clusters": 23, "largest_cluster": 4}
        counts = report.counts.model_copy(update=numbers)
        report = report.model_copy(update={"pairs": (first, second), "counts": counts})
        section = studies.audit("audit", report, pairs=None)

        facts = dict(kinds(section, "facts")[0]["rows"])
        assert facts == {
            "identical pixels": "5 pairs",
            "near-duplicates by hash": "6 pairs",
            "overlapping crops by keypoints": "7 pairs",
            "across splits": "9 pairs",
            "clusters": "10, of up to 4 tiles; 23 of 1,200 tiles",
            "outliers": "3 blank",
        }
        assert kinds(section, "table")[1]["rows"] == [
            ["train: <a>", "test: b", "exact", "yes", "0.500"],
            ["train: <a>", "test: b", "exact", "no", "0.500"],
        ]


class TestHeatmaps:
    CONFIG = GradcamConfig(checkpoint="c", threshold=0.2, method="layercam", layer=("a", "b"), fuse="max")

    @pytest.mark.parametrize("passed", [True, False])
    def test_every_check_has_its_verdict_and_chart(self, passed: bool, map_checks: MadeChecks) -> None:
        checks = map_checks(passed)
        section = heatmaps.heatmaps("gradcam", config=self.CONFIG, checks=checks, localised=None)

        assert "LayerCAM of a, b (max)" in rendered(section)
        found = {verdict["title"]: verdict["passed"] for verdict in kinds(section, "verdict")}
        assert found == {check.question: passed for check in checks.each.values()}
        figures = kinds(section, "figure")
        assert len(figures) == 3
        assert figures[0]["alt"].endswith("rank correlation head 0.40, all -0.10")

    def test_what_was_not_assessed_has_no_chart(self, map_checks: MadeChecks) -> None:
        section = heatmaps.heatmaps("gradcam", config=self.CONFIG, checks=map_checks(None), localised=None)

        assert rendered(section)
        assert not kinds(section, "figure")

    def test_localisation_beside_centre_and_random_weights(self) -> None:
        rates = HitRates(tiles=10, peak_hit=0.1, box_hit=0.2, box_hit_wilson=(0.1, 0.4), mean_box_iou=0.3)
        found = Localisation(this_model=rates, centre=rates, random_weights=rates, whole_tile=rates)
        section = heatmaps.heatmaps("gradcam", config=self.CONFIG, checks=None, localised=found)

        (table,) = kinds(section, "table")
        assert [row[0] for row in table["rows"]] == ["this model", "centre", "random weights", "whole tile"]
        assert table["rows"][0][1:] == ["0.100", "0.200 (0.100 to 0.400)", "0.300"]
        assert "10 tiles" in table["caption"]


def compare_report(*, fractions: tuple[float | None, ...] = (None,), seeds: tuple[int, ...] = (0,)) -> Comparison:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2

    def one() -> TilePredictions:
        guess = np.where(rng.random(40) < 0.3, 1 - labels, labels)
        return TilePredictions(
            tuple(map(str, range(40))), ("a", "b"), labels, guess, np.eye(2)[guess], losses=rng.random(40)
        )

    names = {f"{entry}, {share}": (entry, share) for share in fractions for entry in ("scratch", "<ssl>")}
    facts = [
        (
            RowFacts(
                name=name,
                entry=entry,
                fraction=share,
                labelled_tiles=None if share is None else round(100 * share),
                published={},
            ),
            [RunFacts(seed=seed, folder=f"runs/{name}-{seed}", epoch=1) for seed in seeds],
        )
        for name, (entry, share) in names.items()
    ]
    return build(
        {name: [one() for _ in seeds] for name in names},
        facts=facts,
        against={f"<ssl>, {share}": f"scratch, {share}" for share in fractions},
        seeds=seeds,
        split="test",
        caveats=["y"],
        samples=50,
        bootstrap_seed=0,
        environment={},
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
    def report(*, pooled: bool) -> dict[str, Any]:
        keys = comparisons.FOLD_METRICS
        one = {
            "metrics": dict.fromkeys(keys, 0.75) | {"auroc": None},
            "intervals": {key: [0.5, 1.0] for key in keys} | {"auroc": None},
            "tiles": 20,
            "loss": 0.5,
        }
        report = {
            "folds": 2,
            "data": {"root": "/data/other", "size_px": 64},
            "classes": ["benign", "cancer"],
            "runs": [{"fold": 1, **one}, {"fold": 2, **one}][: 1 + pooled],
            "interval_method": "95% intervals: x",
            "caveats": ["y"],
        }
        if pooled:
            mean, sd = (dict.fromkeys((*keys, "loss"), value) for value in (0.75, 0.125))
            metrics = dict.fromkeys(keys, 0.625) | {"auroc": 0.875}
            report |= {"pooled": one | {"tiles": 40, "metrics": metrics}, "mean": mean, "sd": sd}
        return report

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

    def test_the_chart_has_each_fold_and_the_pooled_figures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: dict[str, Any] = {}

        def keep(folds: Any, **words: Any) -> None:
            drawn.update(words, folds=folds)

        monkeypatch.setattr(comparisons.comparison_plots, "plot_folds", keep)
        monkeypatch.setattr(svg, "inline", lambda draw, prefix: draw(Path("x")) or "<svg>")
        comparisons.folds("cross-validation", self.report(pooled=True))

        assert drawn["folds"]["accuracy"] == [(0.75, [0.5, 1.0])] * 2
        assert drawn["folds"]["AUROC"] == [(None, None)] * 2
        assert drawn["pooled"] == {
            **dict.fromkeys(("accuracy", "balanced accuracy", "macro F1"), (0.625, [0.5, 1.0])),
            "AUROC": (0.875, None),
        }

    def test_a_fold_alone(self) -> None:
        section = comparisons.folds("cross-validation", self.report(pooled=False))

        assert len(kinds(section, "table")[0]["rows"]) == 1
        assert not kinds(section, "figure")


def test_further_runs_have_their_figures_each_with_its_own_interval():
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


def test_provenance_holds_commands_and_configurations():
    environment = {"command": "sscl eval <x>", "date": "d", "sscl": "1", "torch": "2", "gpu": None, "cpu_threads": 2}
    section = studies.provenance({"runs/a": (environment, "key: <value>\n"), "runs/old": ({}, "there is none")})

    html = rendered(section)
    assert "key: &lt;value&gt;" in html
    assert "<x>" not in html
    (table,) = kinds(section, "table")
    assert table["rows"] == [["runs/a", "sscl eval <x>", "d"], ["runs/old", "unknown", "unknown"]]
    assert "# torch: 2\n" in kinds(section, "code")[0]["text"]
    assert json.dumps(section)
