"""Pretraining, audits and provenance are shown as they were written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from sscl import run
from sscl.config import PretrainConfig
from sscl.explain.records import MapChecks
from sscl.records import write_record
from sscl.report import studies

from .conftest import kinds, make_audit, rendered

MadeChecks = Callable[..., MapChecks]


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
        assert verdict["outcome"] == "passed"
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
        assert verdict["outcome"] == "failed"
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
        assert verdict["outcome"] == ("failed" if pairs else "passed")
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
        numbers = {"pairs": {"exact": 5, "hash": 1, "keypoints": 7, "embedding": 8}, "pairs_across": 9}
        numbers |= {"clusters": 10, "tiles_in_clusters": 23, "largest_cluster": 4}
        counts = report.counts.model_copy(update=numbers)
        report = report.model_copy(update={"pairs": (first, second), "counts": counts})
        section = studies.audit("audit", report, pairs=None)

        facts = dict(kinds(section, "facts")[0]["rows"])
        assert facts == {
            "identical pixels": "5 pairs",
            "near-duplicates by hash": "1 pair",
            "overlapping crops by keypoints": "7 pairs",
            "across splits": "9 pairs",
            "clusters": "10, of up to 4 tiles; 23 of 1,200 tiles",
            "outliers": "3 blank",
        }
        assert kinds(section, "table")[1]["rows"] == [
            ["train: <a>", "test: b", "identical pixels", "yes", "1.000", "0.500"],
            ["train: <a>", "test: b", "identical pixels", "no", "1.000", "0.500"],
        ]


def test_provenance_holds_commands_and_configurations(tmp_path):
    environment = run.environment().model_copy(update={"command": "sscl eval <x>", "date": "d", "torch": "2"})
    folders = [tmp_path / "a", tmp_path / "old"]
    folders[0].mkdir()
    write_record(folders[0] / "env.json", environment)
    (folders[0] / "config.yaml").write_text("key: <value>\n")
    section = studies.provenance(folders)

    html = rendered(section)
    assert "key: &lt;value&gt;" in html
    assert "<x>" not in html
    (table,) = kinds(section, "table")
    assert table["rows"] == [[str(folders[0]), "sscl eval <x>", "d"], [str(folders[1]), "unknown", "unknown"]]
    assert "# torch: 2\n" in kinds(section, "code")[0]["text"]
    assert json.dumps(section)
