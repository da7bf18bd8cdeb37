"""The report of an evaluation: which tiles choose, which are drawn, and what is said."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss

from sscl.config import DataConfig
from sscl.data.tiles import Tiles
from sscl.evaluate import calibration, evaluation, evaluation_text
from sscl.evaluate.decisions import choose_threshold
from sscl.evaluate.lineage import INDEPENDENT, interval_caveats
from sscl.evaluate.proportions import proportion_interval
from sscl.evaluate.records import Evaluation
from sscl.models.calibration import KeptCalibration
from sscl.records import read_record, write_record


def some(
    *, tiles: int = 120, classes: int = 2, groups: int | None = None, votes: bool = False, seed: int = 0
) -> tuple[Tiles, torch.Tensor]:
    """Return tiles and overconfident logits; tiles of a group share a shift, so that they are not independent."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, tiles)
    member = None if groups is None else rng.integers(0, groups, tiles)
    logits = rng.normal(0, 1, (tiles, classes))
    logits[np.arange(tiles), labels] += 1.0
    if groups is not None:
        logits[:, 1] += rng.normal(0, 2, groups)[member]
    found = Tiles(
        images=np.zeros((tiles, 2, 2, 3), dtype=np.uint8),
        labels=labels,
        classes=("HP", "SSA", "TA")[:classes],
        ids=tuple(f"tile{i}" for i in range(tiles)),
        groups=None if member is None else np.array([f"slide{g}" for g in member]),
        votes=np.where(labels == 1, rng.integers(4, 8, tiles), rng.integers(0, 4, tiles)) if votes else None,
    )
    return found, torch.from_numpy(4 * logits)


def kept_of(tiles: Tiles, logits: torch.Tensor, *, positive: int | None = 1) -> KeptCalibration:
    return calibration.fit_calibration(logits, tiles.labels, classes=tiles.classes, positive=positive)


def report_of(tiles: Tiles, logits: torch.Tensor, *, positive: int | None = 1, tta: bool = False, **words: Any) -> Any:
    """Return the evaluation as the command completes it."""
    words = {"kept": words.pop("kept", None) or kept_of(tiles, logits, positive=positive), **words}
    results = evaluation.evaluate(tiles, logits, positive=positive, **words)
    return Evaluation(
        checkpoint="run",
        epoch=1,
        data=DataConfig(root="tiles", source="folder"),
        split="test",
        protocol=None,
        tiles=len(tiles),
        classes=tiles.classes,
        class_counts=tiles.class_counts(),
        positive=None if positive is None else tiles.classes[positive],
        data_fingerprint=tiles.fingerprint,
        test_time_augmentation=tta,
        precision="fp32",
        caveats=(),
        notes=(),
        **dict(results),
    )


def notes_of(report: Evaluation) -> list[str]:
    return evaluation_text.reading_notes(report)


def test_calibration_before_and_after_is_sklearns_of_raw_and_scaled_logits() -> None:
    tiles, logits = some(votes=True)
    kept = kept_of(*some(seed=1))
    found = report_of(tiles, logits, kept=kept).calibration
    assert found.temperature == kept.temperature > 1.5
    for stage, temperature in (("before", 1.0), ("after", kept.temperature)):
        p = calibration.softmax(logits, temperature=temperature)
        assert getattr(found, stage).loss == pytest.approx(log_loss(tiles.labels, p))
        assert getattr(found, stage).brier_positive == pytest.approx(brier_score_loss(tiles.labels, p[:, 1]))
        assert getattr(found, stage).brier == pytest.approx(2 * brier_score_loss(tiles.labels, p[:, 1]))
        assert getattr(found, stage).soft_vote_brier == pytest.approx(np.mean((tiles.votes / 7 - p[:, 1]) ** 2))
        assert getattr(found, stage).ece == pytest.approx(calibration.expected_calibration_error(tiles.labels, p))
    assert found.after.loss < found.before.loss


@pytest.mark.parametrize("positive", [0, 1, None])
def test_calibration_is_of_the_positive_class_or_of_the_top_label(positive: int | None) -> None:
    tiles, logits = some()
    kept = kept_of(*some(seed=1))
    found = report_of(tiles, logits, kept=kept, positive=positive).calibration
    assert found.validation_ece == evaluation.BeforeAfter(before=kept.ece_before, after=kept.ece_after)
    for stage, temperature in (("before", 1.0), ("after", kept.temperature)):
        p = calibration.softmax(logits, temperature=temperature)
        right = p.argmax(1) == tiles.labels
        outcomes, scores = (right, p.max(1)) if positive is None else (tiles.labels == positive, p[:, positive])
        one = getattr(found, stage)
        assert one.reliability == calibration.reliability_curve(outcomes, scores)
        assert one.ece == pytest.approx(calibration.calibration_error(right, p.max(1)))
        assert one.ece_equal_mass == pytest.approx(calibration.calibration_error(right, p.max(1), equal_mass=True))
        if positive is not None:
            assert one.ece_positive == pytest.approx(calibration.calibration_error(outcomes, scores))
        true = calibration.calibration_error_by_chance(p.max(1))
        assert one.ece_by_chance.quantile_95 == pytest.approx(np.quantile(true, 0.95))
        assert 0 < one.ece_by_chance.power <= 1
        assert len({one.ece, one.ece_equal_mass, one.ece_positive}) == 3


def test_calibrating_changes_no_prediction_and_can_be_left_out() -> None:
    tiles, logits = some()
    kept = kept_of(*some(seed=1))
    scaled, raw = report_of(tiles, logits, kept=kept), report_of(tiles, logits, kept=kept, calibrate=False)
    assert scaled.confusion_matrix == raw.confusion_matrix
    assert raw.calibration.temperature == 1
    assert "calibrate=false" in raw.calibration.method
    assert scaled.metrics.auroc == pytest.approx(raw.metrics.auroc)
    assert raw.loss == scaled.calibration.before.loss > scaled.loss


@pytest.mark.parametrize(("positive", "sensitivity"), [(1, None), (0, None), (1, 0.97)])
def test_operating_point_is_chosen_on_validation_and_counted_here(positive: int, sensitivity: float | None) -> None:
    tiles, logits = some()
    there, its_logits = some(seed=1, tiles=70)
    kept = kept_of(there, its_logits)
    report = report_of(tiles, logits, positive=positive, kept=kept, sensitivity=sensitivity)
    point = report.operating_point

    validation = calibration.softmax(its_logits, temperature=kept.temperature)[:, positive]
    assert point.threshold == pytest.approx(
        choose_threshold(there.labels == positive, validation, sensitivity=sensitivity), abs=1e-6
    )
    assert point.chosen_on == 70
    if sensitivity is not None:
        assert point.on_validation["sensitivity"] >= sensitivity
    p = calibration.softmax(logits, temperature=kept.temperature)[:, positive]
    (tn, fp), (fn, tp) = confusion_matrix(tiles.labels == positive, p >= point.threshold)
    found = {name: (share.count, share.of) for name, share in point.here.items()}
    assert found == {
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "PPV": (tp, tp + fp),
        "NPV": (tn, tn + fn),
        "accuracy": (tp + tn, 120),
    }
    for share in point.here.values():
        assert share.interval == pytest.approx(proportion_interval(share.count, share.of))


@pytest.mark.parametrize("positive", [0, 1])
def test_decision_curve_is_that_of_the_positive_class_beside_calling_all(positive: int) -> None:
    tiles, logits = some()
    curve = report_of(tiles, logits, positive=positive, calibrate=False).decision_curve
    truth, p = tiles.labels == positive, calibration.softmax(logits)[:, positive]
    t = np.array(curve.threshold)
    odds = t / (1 - t)
    benefit = (p[:, None] >= t) * np.where(truth[:, None], 1.0, -odds)
    assert curve.model == pytest.approx(benefit.mean(0))
    assert curve.treat_all == pytest.approx(truth.mean() - (1 - truth.mean()) * odds)
    steps = np.maximum(1, odds) / 120  # one tile more
    half = 1.98 * np.sqrt(benefit.var(0, ddof=1) / 120 + steps**2)
    assert curve.low == pytest.approx(benefit.mean(0) - half, rel=1e-3, abs=1e-3)
    assert curve.high == pytest.approx(np.minimum(benefit.mean(0) + half, 1), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("positive", "said"), [(0, "30.0% HP"), (1, "70.0% SSA")])
def test_what_depends_on_the_prevalence_says_it(positive: int, said: str) -> None:
    tiles, logits = some()
    kept = np.r_[np.flatnonzero(tiles.labels == 0)[:15], np.flatnonzero(tiles.labels == 1)[:35]]
    report = report_of(tiles.subset(kept), logits[kept], positive=positive)
    (note,) = [note for note in notes_of(report) if "PPV" in note]
    assert said in note


def test_abstention_is_chosen_on_validation() -> None:
    tiles, logits = some()
    kept = kept_of(*some(seed=1, tiles=70))
    found = report_of(tiles, logits, kept=kept, abstain=0.5).coverage
    there = calibration.softmax(kept.logits, temperature=kept.temperature).max(1)
    assert (there >= found.abstention.threshold).sum() == 35
    assert found.abstention.left_out_on_validation == len(there) - 35
    p = calibration.softmax(logits, temperature=kept.temperature)
    decided = p.max(1) >= found.abstention.threshold
    here = found.abstention.here
    assert (here["decided"].count, here["decided"].of) == (decided.sum(), 120)
    assert here["accuracy"].count == (decided & (p.argmax(1) == tiles.labels)).sum()
    assert here["accuracy"].of == decided.sum()


def test_accuracy_at_a_coverage_is_that_of_the_most_confident_tiles() -> None:
    tiles, logits = some()
    found = report_of(tiles, logits).coverage
    p = calibration.softmax(logits)
    confident = np.argsort(-p.max(1))[:60]
    half = found.at[-1]
    assert half.coverage == 0.5
    assert half.accuracy.count == (p.argmax(1) == tiles.labels)[confident].sum()
    assert found.at[0].accuracy.value == (p.argmax(1) == tiles.labels).mean()


def test_slides_widen_all_intervals() -> None:
    """Tiles of a slide err together, so the honest intervals are wider than those of tiles for themselves."""
    tiles, logits = some(tiles=400, groups=12)
    kept = kept_of(*some(seed=1))
    alone = Tiles(tiles.images, tiles.labels, tiles.classes, tiles.ids)
    grouped, apart = (report_of(t, logits, kept=kept) for t in (tiles, alone))

    def width(interval: Any) -> float:
        return float(interval[1] - interval[0])

    assert width(grouped.intervals.sensitivity) > 1.5 * width(apart.intervals.sensitivity)
    ours, theirs = (r.operating_point.here["sensitivity"] for r in (grouped, apart))
    assert width(ours.interval) > 1.5 * width(theirs.interval)
    assert (ours.count, ours.of) == (theirs.count, theirs.of)
    bands = [np.subtract(r.decision_curve.high, r.decision_curve.low).mean() for r in (grouped, apart)]
    assert bands[0] > 1.3 * bands[1]
    assert "12 groups (slides, patients or clusters of near-duplicates)" in grouped.interval_method
    assert "independent" in apart.interval_method
    assert (grouped.groups, apart.groups) == (12, None)


def test_what_is_said_of_few_slides_or_of_none_known() -> None:
    assert interval_caveats(None) == [INDEPENDENT]
    assert interval_caveats([f"slide{i // 2}" for i in range(60)]) == []
    assert "12 slides" in interval_caveats([f"slide{i // 2}" for i in range(24)])[0]
    assert interval_caveats([f"slide{i}" for i in range(12)]) == []  # tiles of 12 slides are as good as independent
    few, logits = some(groups=4)
    report = report_of(few, logits, kept=kept_of(*some(seed=1)))
    assert {share.interval for share in report.operating_point.here.values()} == {None}
    assert report.decision_curve.low is report.intervals.accuracy is None
    assert "too few slides" in interval_caveats(few.groups)[0]
    (line,) = [line for line in evaluation_text.as_text(report).splitlines() if line.startswith("  balanced accuracy")]
    assert "too few slides" in line
    assert any("too few slides" in note for note in notes_of(report))


def test_too_few_tiles_of_a_class_are_named() -> None:
    tiles, logits = some()
    kept = np.r_[np.flatnonzero(tiles.labels == 0)[:3], np.flatnonzero(tiles.labels == 1)[:40]]
    report = report_of(tiles.subset(kept), logits[kept], kept=kept_of(tiles, logits))
    assert report.intervals.auroc is None
    assert report.intervals.accuracy is not None
    assert any("too few tiles of HP (3)" in note for note in notes_of(report))


def test_a_class_that_is_called_of_one_tile_alone_is_named() -> None:
    """Whether macro F1 is a mean of two classes or of three hangs on it."""
    tiles, logits = some(tiles=80)
    three = dataclasses.replace(tiles, classes=("HP", "SSA", "TA"))
    wide = torch.cat([logits, torch.full((80, 1), -9.0)], 1)
    wide[0, 2] = 99
    report = report_of(three, wide, kept=kept_of(three, wide, positive=None), positive=None)
    assert report.intervals.macro_f1 is None
    assert any("too few tiles of TA (1)" in note for note in notes_of(report))


def test_notes_name_validation_calibration_and_augmentation() -> None:
    kept = kept_of(*some(seed=1))
    scaled, raw = (" ".join(notes_of(report_of(*some(), kept=kept, calibrate=c))) for c in (True, False))
    augmented = " ".join(notes_of(report_of(*some(), kept=kept, tta=True)))
    assert "optimistic" in scaled
    assert "optimistic" in raw
    assert "calibrate=false" in scaled
    assert "calibrate=false" not in raw
    assert "test-time augmentation" in augmented
    assert "test-time augmentation" not in scaled


@pytest.mark.parametrize(("tiles", "said"), [(49, True), (50, False)])
def test_few_validation_tiles_are_said(tiles: int, said: bool) -> None:
    found = notes_of(report_of(*some(), kept=kept_of(*some(seed=1, tiles=tiles))))
    assert any(f"{tiles} validation tiles are few" in note for note in found) == said


def test_an_error_free_class_has_an_interval() -> None:
    tiles, logits = some()
    logits[tiles.labels == 0] = torch.tensor([9.0, 0.0], dtype=torch.float64)
    report = report_of(tiles, logits)
    recall = report.proportions.per_class[0].recall
    assert recall.value == 1
    assert recall.interval == report.intervals.per_class[0].recall == (pytest.approx(0.93, abs=0.03), 1)
    line = next(line for line in evaluation_text.as_text(report).splitlines() if line.startswith("  SSA specificity"))
    assert f"{recall.interval[0]:.3f} to 1.000" in line


def test_a_temperature_that_harms_is_reported() -> None:
    tiles, logits = some()
    kept = dataclasses.replace(kept_of(*some(seed=1)), temperature=0.2)
    report = report_of(tiles, logits, kept=kept)
    assert any("increased the cross-entropy" in note for note in notes_of(report))
    assert not any("increased" in note for note in notes_of(report_of(tiles, logits, kept=kept_of(*some(seed=1)))))


def test_table_has_an_interval_beside_every_accuracy() -> None:
    tiles, logits = some(votes=True)
    report = report_of(tiles, logits, kept=kept_of(*some(seed=1)))
    lines = evaluation_text.as_text(report).splitlines()
    shown = [line for line in lines if line.startswith("  accuracy")]
    shown += [line for line in lines if line.startswith("    accuracy")]
    assert len(shown) == 1 + 4 + 1  # all, by agreement, abstention
    for line in shown:
        *_, low, to, high, count, of, total = line.split()
        assert (to, of) == ("to", "of")
        assert (float(low), float(high)) == pytest.approx(proportion_interval(int(count), int(total)), abs=6e-4)
    text = "\n".join(lines)
    for part in (
        "SSA sensitivity",
        "before",
        ": by chance up to 0.",
        "SSA if its probability is at least 0.",
        "PPV",
        "undecided if its confidence is below 0.",
    ):
        assert part in text
    assert f"temperature {report.calibration.temperature:.3f} " in text
    assert len(lines) <= 41
    assert max(map(len, lines[: lines.index("Notes")])) <= 80


def test_sections_stand_apart_and_the_notes_come_last() -> None:
    for classes in (2, 3):
        tiles, logits = some(classes=classes)
        positive = 1 if classes == 2 else None
        report = report_of(
            tiles, logits, positive=positive, kept=kept_of(*some(classes=classes, seed=1), positive=positive)
        )
        report = report.model_copy(update={"caveats": ("a long caveat " * 12,)})
        lines = evaluation_text.as_text(report).splitlines()
        heads = [line.split()[0].strip(",;") for line in lines if line and not line.startswith(" ")]
        perhaps = ["Classes"] if classes == 3 else []
        assert heads == ["Metrics", *perhaps, "Confusion", "Calibration", "Decisions", "Notes"]
        assert all(lines[lines.index(line) - 1] == "" for line in lines[1:] if line and not line.startswith(" "))
        assert max(map(len, lines[: lines.index("Notes")])) <= 80  # a terminal folds sentences
        assert lines[lines.index("Notes") + 1].count("a long caveat") == 12


def test_classes_of_three_have_a_line_each_with_their_intervals() -> None:
    report = report_of(*some(classes=3), positive=None, kept=kept_of(*some(classes=3, seed=1), positive=None))
    (line,) = [line for line in evaluation_text.as_text(report).splitlines() if re.match(r"  TA +\d\.\d\d \(", line)]
    metrics, ends = report.metrics.per_class[2], report.intervals.per_class[2]
    for key in ("precision", "recall", "f1"):
        low, high = getattr(ends, key)
        assert f"{getattr(metrics, key):.2f} ({low:.2f} to {high:.2f})" in line


def test_table_says_calibration_before_and_after_and_what_abstention_gives() -> None:
    report = report_of(*some(votes=True), kept=kept_of(*some(seed=1)))
    lines = evaluation_text.as_text(report).splitlines()
    before, after = (report.calibration.before, report.calibration.after)
    names = {"ECE": "ece", "Brier score": "brier"}
    for name, key in names.items():
        (line,) = [line for line in lines if re.match(rf"  {re.escape(name)}  ", line)]
        assert line[len(name) + 2 :].split()[:2] == [f"{getattr(part, key):.3f}" for part in (before, after)]
    here = report.coverage.abstention.here
    (line,) = [line for line in lines if line.startswith("  undecided ")]
    assert line.endswith(f" {here['decided'].count} of {here['decided'].of} are decided")
    (line,) = [line for line in lines if line.startswith("    accuracy on these ")]
    assert line.endswith(f" {here['accuracy'].count} of {here['accuracy'].of}")


def test_table_has_the_truth_in_the_rows_of_the_confusion_matrix() -> None:
    report = report_of(*some(classes=3), positive=None).model_copy(
        update={"confusion_matrix": ((1, 2, 3), (4, 5, 6), (7, 8, 9))}
    )
    lines = evaluation_text.as_text(report).splitlines()
    start = lines.index("Confusion matrix (rows: truth, columns: prediction)") + 1
    expected = [["HP", "SSA", "TA"], ["HP", "1", "2", "3"], ["SSA", "4", "5", "6"], ["TA", "7", "8", "9"]]
    assert [line.split() for line in lines[start : start + 4]] == expected


@pytest.mark.parametrize(
    ("names", "tiles", "head"),
    [
        ([chr(97 + i) * 200 for i in range(9)], 99, "number of the prediction"),
        ([f"class {i}" for i in range(20)], 9, "Most frequent of 3,420 errors"),
        ([f"class {i}" for i in range(300)], 2, "Most frequent of 179,400 errors"),
    ],
)
def test_a_confusion_matrix_fits_a_terminal(names: list[str], tiles: int, head: str) -> None:
    matrix = np.full((len(names), len(names)), tiles)
    few = report_of(*some(classes=3), positive=None)
    changes = {"classes": tuple(names), "confusion_matrix": matrix.tolist(), "tiles": int(matrix.sum())}
    metrics = few.metrics.model_copy(update={"per_class": few.metrics.per_class[:1]})
    report = few.model_copy(update={**changes, "metrics": metrics})
    lines = evaluation_text.as_text(report).splitlines()
    start = next(i for i, line in enumerate(lines) if head in line)
    end = next(i for i, line in enumerate(lines) if line.startswith("Calibration"))
    assert end - start <= 13
    assert max(map(len, lines[start:end])) <= 80


def test_metrics_of_a_class_are_named_after_it() -> None:
    report = report_of(*some())
    rows = {row.name: row for row in evaluation_text.class_rows(report)}
    for i, name in enumerate(("HP", "SSA")):
        for key, label in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
            parts = (
                getattr(part.per_class[i], key, None) for part in (report.metrics, report.intervals, report.proportions)
            )
            assert rows[f"{name} {label}"][1:4] == tuple(parts)
    assert len(rows) == 6


def test_three_classes_have_no_operating_point_and_a_file_reads_as_it_was_written(tmp_path: Path) -> None:
    tiles, logits = some(classes=3)
    kept = kept_of(*some(classes=3, seed=1), positive=None)
    report = report_of(tiles, logits, positive=None, kept=kept)
    assert report.operating_point is report.decision_curve is None
    assert report.calibration.after.ece_positive is None
    assert report.coverage.abstention is not None
    for written in (report, report_of(*some(votes=True, groups=12), kept=kept_of(*some(seed=1)))):
        write_record(tmp_path / "metrics.json", written)
        assert read_record(Evaluation, tmp_path / "metrics.json", made_by="sscl eval") == written
        assert evaluation_text.as_text(written)


def test_one_class_of_validation_or_of_test_leaves_undefined_what_is(tmp_path: Path) -> None:
    tiles, logits = some()
    there, its_logits = some(seed=1)
    only = there.subset(np.flatnonzero(there.labels == 0))
    kept = kept_of(only, its_logits[there.labels == 0])
    report = report_of(tiles, logits, kept=kept)
    assert report.operating_point is None
    assert any("of one class" in note for note in notes_of(report))
    negatives = tiles.subset(np.flatnonzero(tiles.labels == 0))
    report = report_of(negatives, logits[tiles.labels == 0], kept=kept_of(there, its_logits))
    assert report.operating_point.here["sensitivity"] is None
    assert "undefined" in evaluation_text.as_text(report)
    write_record(tmp_path / "metrics.json", report)  # which refuses NaN
