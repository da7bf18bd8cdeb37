"""The model card from command to command: finetune writes it, eval fills in the test figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sscl.evaluate import card_results
from sscl.evaluate.lineage import NO_SLIDE_IDS


@pytest.fixture
def run(finetuned: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose card no other test writes to."""
    copy = Path(shutil.copytree(finetuned, tmp_path / "run", ignore=shutil.ignore_patterns("eval_*")))
    path = copy / card_results.FILE
    card_results.refresh(path, "none")
    return copy


def test_finetune_writes_the_card_of_its_best_checkpoint(finetuned: Path, pretrained: Path, tiles: Path) -> None:
    text = (finetuned / card_results.FILE).read_text(encoding="utf-8")
    content = torch.load(finetuned / "checkpoints/best.pt", weights_only=True)
    accuracy = content["validation"]["validation_accuracy"]
    counts = np.bincount(content["calibration"]["labels"], minlength=2).tolist()

    assert f"| epoch | {content['epoch']} of at most 3," in text
    assert f"| accuracy | {accuracy:.3f} |" in text
    assert f"the run `{pretrained.name}`, pretrained without labels, epoch 4" in text
    assert f"| trained before on | `{tiles.name}` (mhist, protocol official) |" in text
    assert f"| `SSA` | {16 - counts[1]} | {counts[1]} |" in text
    assert "kept whole: slides or patients" in text
    assert NO_SLIDE_IDS[1:] not in text
    assert str(tiles) not in text


def test_eval_fills_in_the_test_metrics(cli: Any, run: Path) -> None:
    path = run / card_results.FILE
    path.write_text(path.read_text(encoding="utf-8") + "My own words.\n", encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    first = cli.evaluate(run)
    after = path.read_text(encoding="utf-8")
    report = json.loads((run / "eval_test/metrics.json").read_text())

    assert first.code == 0, first.err
    assert f"updated the test metrics in {path}" in first.out
    assert before.partition(card_results.BEGIN)[0] == after.partition(card_results.BEGIN)[0]
    assert before.partition(card_results.END)[2] == after.partition(card_results.END)[2]
    assert f"| accuracy | {report['metrics']['accuracy']:.3f} |" in after.partition(card_results.BEGIN)[2]
    assert report["caveats"]
    assert "| test-time augmentation | none |" in after

    assert cli.evaluate(run, "tta=true", "--overwrite").code == 0
    again = path.read_text(encoding="utf-8")
    assert "| test-time augmentation | 8 flips and rotations |" in again
    assert again.count("By `sscl eval`") == before.count("By `sscl eval`") + 1  # those before are of external sets


def test_other_splits_leave_the_card_alone(cli: Any, run: Path) -> None:
    before = (run / card_results.FILE).read_bytes()
    assert cli.evaluate(run, "split=train").code == 0
    assert (run / card_results.FILE).read_bytes() == before


def test_a_run_without_a_card_or_markers_is_evaluated_all_the_same(cli: Any, run: Path) -> None:
    path = run / card_results.FILE
    path.write_text("rewritten by hand", encoding="utf-8")
    rewritten = cli.evaluate(run)
    assert rewritten.code == 0, rewritten.err
    assert "two marker lines" in rewritten.out
    assert path.read_text(encoding="utf-8") == "rewritten by hand"

    path.unlink()
    none = cli.evaluate(run, "--overwrite")
    assert none.code == 0, none.err
    assert "updated" not in none.out
    assert not path.exists()


def test_three_classes_without_slides(finetuned3: Path) -> None:
    text = (finetuned3 / card_results.FILE).read_text(encoding="utf-8")

    assert "tells `benign`, `cancer` and `stroma` apart" in text
    assert "`stroma` recall" in text
    assert NO_SLIDE_IDS[1:] in text
    assert "| started from | random weights |" in text
