"""A set that was not trained on is evaluated whole, and its numbers stand beside the run's own test metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sscl.evaluate import card_results


@pytest.fixture
def run(finetuned3: Path, tmp_path: Path) -> Path:
    """The run of three classes, with test metrics in its card."""
    run = Path(shutil.copytree(finetuned3, tmp_path / "run"))
    assert card_results.refresh(run / card_results.FILE, "the run's own test metrics") is None
    return run


@pytest.fixture
def cohort(folder3: Path, tmp_path: Path) -> Path:
    """Another hospital: CLASS/* of two of the three classes, 8 tiles each, one of them a training tile."""
    root = tmp_path / "other" / "cohort"
    for name in ("stroma", "benign"):
        shutil.copytree(folder3 / "test" / name, root / name)
        for i, file in enumerate(sorted((folder3 / "test" / name).iterdir())[:3]):
            shutil.copy(file, root / name / f"more_{i}.png")
    shutil.copy(folder3 / "train/benign/benign_0.png", root / "benign/more_0.png")
    return root


def metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def test_another_set_is_evaluated_whole_beside_the_own_test_metrics(cli: Any, run: Path, cohort: Path) -> None:
    result = cli.evaluate(run, f"data.root={cohort}")
    assert result.code == 0, result.err
    assert result.out.endswith(f"\nnext: sscl gradcam {run} data.root={cohort}\n")
    report = metrics(run / "eval_cohort_all")
    assert (report["tiles"], report["split"], report["external"]) == (16, "all", True)
    assert report["classes"] == ["benign", "cancer", "stroma"]
    assert report["class_counts"] == {"benign": 8, "cancer": 0, "stroma": 8}
    said = " | ".join(report["caveats"])
    for part in (
        "cohort is not the set of training: all its tiles were evaluated",
        "(benign, stroma) were matched by name",
        "no tile of cancer",
        "1 of 16 evaluated tiles are training tiles too, pixel for pixel (such as benign/more_0.png",
    ):
        assert part in said
        assert part.split()[-1] in result.out
    card = (run / card_results.FILE).read_text(encoding="utf-8")
    assert "the run's own test metrics" in card
    assert card.index("the run's own") < card.index("## External: cohort") < card.index("## Limits")

    assert cli.evaluate(run, f"data.root={cohort}", "--overwrite").code == 0
    again = (run / card_results.FILE).read_text(encoding="utf-8")
    assert again.count("## External: cohort") == again.count("By `sscl eval`") == 1
    maps = cli.gradcam(run, f"data.root={cohort}", "per_class=1")
    assert maps.code == 0, maps.err
    assert maps.out.endswith(f"\nnext: sscl report {run} data.root={cohort}\n")
    assert (run / "gradcam_cohort_all/boxes.csv").is_file()


def test_the_set_of_training_under_another_path_is_no_other_set(
    cli: Any, run: Path, folder3: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(folder3, tmp_path / "elsewhere" / folder3.name)
    assert cli.evaluate(run, f"data.root={moved}").code == 0
    assert metrics(run / "eval_test")["tiles"] == 15
    card = (run / card_results.FILE).read_text(encoding="utf-8")
    assert "## External" not in card
    assert "the run's own test metrics" not in card


def test_classes_that_training_does_not_know_and_tiles_without_labels_are_refused(
    cli: Any, run: Path, cohort: Path
) -> None:
    unlabelled = cli.evaluate(run, f"data.root={cohort / 'benign'}")
    (cohort / "benign").rename(cohort / "benin")
    unknown = cli.evaluate(run, f"data.root={cohort}")
    assert (unlabelled.code, unknown.code) == (2, 2)
    assert "sscl predict" in unlabelled.err
    assert "benin is not among them: did you mean benign?" in unknown.err
    assert not list(run.glob("eval_*"))


def test_sets_of_one_name_have_folders_of_their_own(cli: Any, run: Path, cohort: Path, tmp_path: Path) -> None:
    others = [tmp_path / "third" / "cohort", tmp_path / "nested" / "third" / "cohort"]
    for other in others:
        shutil.copytree(cohort, other)
    for root in (cohort, *others, cohort):
        result = cli.evaluate(run, f"data.root={root}", "--overwrite")
        assert result.code == 0, result.err
    found = {path.name: Path(metrics(path)["data"]["root"]) for path in sorted(run.glob("eval_*_all"))}
    assert (found.pop("eval_cohort_all"), found.pop("eval_third-cohort_all")) == (cohort, others[0])
    assert list(found.values()) == [others[1]]
    card = (run / card_results.FILE).read_text(encoding="utf-8")
    assert card.count("## External: ") == 3
