"""What a report says of a classifier is what its evaluation found, and its verdicts turn with the figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sscl.config import DataConfig, FinetuneConfig
from sscl.data.tiles import Tiles
from sscl.evaluate import calibration, evaluation, evaluation_text
from sscl.evaluate.evaluation import DecisionCurve, Evaluated, Evaluation
from sscl.evaluate.metrics import OVERALL, display_name
from sscl.evaluate.predictions import predictions_of
from sscl.models.checkpoint import build_checkpoint
from sscl.plots import svg
from sscl.report import classifier, decisions, page, summary
from sscl.report.subject import Subject

from .conftest import make_audit

CLASSES = ("HP", "SSA")
AUDIT = make_audit()


def subject(*, skill: float = 2.0, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Subject:
    """A classifier of 80 tiles; the larger `skill`, the better it tells the classes apart; 0 = not at all."""
    rng = np.random.default_rng(seed)
    count, kinds = 80, len(classes)
    labels = np.arange(count) % kinds
    logits = torch.from_numpy(rng.normal(size=(count, kinds)) + skill * np.eye(kinds)[labels])
    tiles = Tiles(
        images=np.zeros((count, 4, 4, 3), dtype=np.uint8),
        labels=labels,
        classes=classes,
        ids=tuple(f"t{i}" for i in range(count)),
        votes=rng.integers(0, 8, count) if kinds == 2 else None,
    )
    positive = 1 if kinds == 2 else None
    kept = calibration.fit_calibration(logits[:40], labels[:40], classes=classes, positive=positive)
    found = evaluation.evaluate(tiles, logits, positive=positive, kept=kept, samples=100)
    evaluated = Evaluated(
        checkpoint="runs/x",
        epoch=2,
        data=DataConfig(source="folder", root="/data/colon", size_px=64),
        split="test",
        protocol=None,
        tiles=count,
        classes=classes,
        class_counts=tiles.class_counts(),
        positive=None if positive is None else classes[positive],
        data_fingerprint="f",
        test_time_augmentation=False,
    )
    notes = tuple(evaluation_text.reading_notes(evaluated, found))
    report = Evaluation(**dict(evaluated), **dict(found), caveats=("a caveat",), notes=notes)
    probabilities = calibration.softmax(logits, temperature=report.calibration.temperature)
    config = FinetuneConfig(
        run="runs/x",
        data={"root": "/data/colon"},
        model={"name": "resnet18", "weights": "runs/ssl"},
        train={"batch_size": 8, "learning_rate": 1e-3, "select": "loss"},
    )
    blank = build_checkpoint(
        config,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        pooling="mean",
        classes=classes,
        lineage=(DataConfig(root="/data/unlabelled"),),
        fingerprint="f",
        precision="fp32",
    )
    epoch = {"validation_accuracy": 0.8, "validation_balanced_accuracy": 0.75, "validation_loss": 0.5}
    return Subject(
        folder=Path("runs/x"),
        trained=replace(blank, epoch=2, validation=epoch, calibration=kept),
        log=[{"epoch": i, "train_loss": 1.0 - i / 10, "train_accuracy": 0.5, **epoch} for i in (1, 2, 3)],
        evaluated=Path("runs/x/eval_test"),
        report=report,
        found=predictions_of(tiles, probabilities),
    )


def changed(one: Subject, section: str, **keys: Any) -> Subject:
    """The same with keys of a section of its configuration changed."""
    config = one.trained.config
    part = getattr(config, section).model_copy(update=keys)
    return replace(one, trained=replace(one.trained, config=config.model_copy(update={section: part})))


def reported(one: Subject, **keys: Any) -> Subject:
    """The same with other results of its evaluation."""
    return replace(one, report=one.report.model_copy(update=keys))


def sections(one: Subject, **more: Any) -> list[dict[str, Any]]:
    found = [
        summary.summary(one, training_tiles=100, audits=[AUDIT], checks=None),
        classifier.data(one, counts={"train": {"HP": 60, "SSA": 40}}, groups={"train": 7}),
        classifier.training(one),
        classifier.results(one),
        classifier.errors(one, shown=50),
        decisions.probabilities(one),
        decisions.decisions(one),
        decisions.caveats(one, ["another"]),
    ]
    return [section for section in found if section is not None]


def verdicts(section: dict[str, Any]) -> dict[str, bool | None]:
    return {block["title"]: block["passed"] for block in section["blocks"] if block["kind"] == "verdict"}


def tables(section: dict[str, Any]) -> dict[str, list[list[str]]]:
    return {block["caption"]: block["rows"] for block in section["blocks"] if block["kind"] == "table"}


@pytest.mark.parametrize("classes", [CLASSES, ("a", "b", "c")])
def test_the_page_takes_all_sections(classes):
    made = sections(subject(classes=classes))
    content = {"title": "t", "subtitle": "s", "made": "m", "id": "0" * 16, "gallery": None, "sections": made}

    assert page.render(content)

    figures = [block for section in made for block in section["blocks"] if block["kind"] == "figure"]
    assert len(figures) == (6 if len(classes) == 2 else 5)  # no decision curve without a positive class
    assert all(len(block["alt"]) > 20 and block["caption"] for block in figures)


def test_the_summary_says_what_was_trained_on_what():
    one = subject()
    text = summary.summary(one, training_tiles=100, audits=[], checks=None)["blocks"][0]["text"]

    right = int((one.found.predictions == one.found.labels).sum())
    assert "resnet18 encoder was initialised with weights from ssl (trained on unlabelled)" in text
    assert "training split of colon (100 tiles) to classify HP and SSA" in text
    assert "Epoch 2 was selected on 40 validation tiles held out" in text
    assert f"Of the 80 tiles of the test split of colon, {right} are" in text


def test_the_summary_says_which_tiles_it_was_not_trained_on():

    def said(section: str, **keys: Any) -> str:
        one = changed(subject(), section, **keys)
        return summary.summary(one, training_tiles=100, audits=[], checks=None)["blocks"][0]["text"]

    few = said("train", folds=5, fold=2, label_fraction=0.5)
    assert "colon (100 tiles, without fold 2 of 5, 50% of the labels)" in few
    assert "40 validation tiles of the data set's own validation split" in said("data", source="pathmnist")


@pytest.mark.parametrize(
    ("weights", "said"), [(None, "with random weights and"), ("imagenet", "with ImageNet weights and")]
)
def test_where_the_weights_come_from(weights, said):
    one = changed(subject(), "model", weights=weights)
    one = replace(one, trained=replace(one.trained, lineage=()))

    text = summary.summary(one, training_tiles=None, audits=[], checks=None)

    assert said in text["blocks"][0]["text"]


def test_every_metric_is_shown_with_its_intervals():
    one = subject()
    shown = tables(classifier.results(one))

    rows = {row[0]: row[1:] for table in shown.values() for row in table}
    metrics, drawn = one.report.metrics, one.report.intervals
    for key in OVERALL:
        low, high = getattr(drawn, key)
        assert rows[display_name(key)][:2] == [f"{getattr(metrics, key):.3f}", f"{low:.3f} to {high:.3f}"]
    assert rows["HP recall"][0] == f"{metrics.per_class[0].recall:.3f}"
    low, high = one.report.wilson.accuracy.wilson
    right = int((one.found.predictions == one.found.labels).sum())
    assert rows["accuracy"][2:] == [f"{low:.3f} to {high:.3f}", f"{right} of 80"]
    by_agreement = next(rows for caption, rows in shown.items() if "annotator" in caption)
    assert sum(int(row[-1].split(" of ")[1]) for row in by_agreement) == 80
    for row, found in zip(by_agreement, one.report.accuracy_by_agreement, strict=True):
        low, high = found.interval
        counts = f"{found.correct} of {found.count}"
        assert row == [found.agreement, f"{found.accuracy:.3f}", f"{low:.3f} to {high:.3f}", counts]
    of_class = [row[0] for row in shown["Per class"]]
    assert of_class == [f"{name} {key}" for name in CLASSES for key in ("precision", "recall", "F1")]
    headline = dict(summary.summary(one, training_tiles=1, audits=[], checks=None)["blocks"][1]["rows"])
    keys = {
        "accuracy": "accuracy",
        "AUROC": "auroc",
        "sensitivity for SSA": "sensitivity",
        "specificity": "specificity",
    }
    for name, key in keys.items():
        low, high = getattr(drawn, key)
        assert headline[name] == f"{getattr(metrics, key):.3f} ({low:.3f} to {high:.3f})"


def test_the_summary_has_the_caveats_of_the_evaluation_if_any():
    one = subject()

    def listed(of: Subject) -> list[list[str]]:
        found = summary.summary(of, training_tiles=1, audits=[], checks=None)["blocks"]
        return [block["items"] for block in found if block["kind"] == "list"]

    assert [list(items) for items in listed(one)] == [["a caveat"]]
    assert listed(reported(one, caveats=())) == []


def test_charts_are_of_what_the_evaluation_found(monkeypatch):
    drawn: dict[str, tuple[Any, ...]] = {}

    def keep(*given: Any, path: Path, **words: Any) -> None:
        drawn[path.name] = (*given, words)

    for module in (classifier.charts, decisions.calibration_plots):
        for name in [name for name in vars(module) if name.startswith("plot_")]:
            monkeypatch.setattr(module, name, keep)
    monkeypatch.setattr(svg, "inline", lambda draw, prefix: draw(Path(prefix.removeprefix("figure-"))) or "<svg>")
    one = subject()
    log = [{**row, "validation_loss": loss} for row, loss in zip(one.log, (0.7, 0.4, 0.6), strict=True)]
    made = sections(replace(one, log=log))

    report, found = one.report, one.found
    assert set(drawn) == {"training", "roc", "precision-recall", "reliability", "coverage", "decision"}
    for name in ("roc", "precision-recall"):
        labels, scores, words = drawn[name]
        assert labels is found.labels
        assert scores is found.probabilities
        assert words == {"classes": CLASSES, "positive": 1}
    stages, words = drawn["reliability"]
    assert stages == {"before": report.calibration.before, "after": report.calibration.after}
    assert (words["temperature"], words["positive"]) == (report.calibration.temperature, "SSA")
    curve, words = drawn["coverage"]
    assert curve.area == pytest.approx(report.coverage.area)
    assert words["decided"] == report.coverage.abstention.here
    curve, words = drawn["decision"]
    assert curve == report.decision_curve
    assert (words["threshold"], words["positive"]) == (report.operating_point.threshold, "SSA")
    said = [block["alt"] for section in made for block in section["blocks"] if block["kind"] == "figure"]
    assert "goes from 0.700 to 0.600 and is lowest, 0.400, in epoch 2" in said[0]


def test_calibration_is_shown_before_and_after():
    one = subject()
    rows = {row[0]: row[1:] for row in tables(decisions.probabilities(one))["Calibration errors on these tiles"]}
    before, after = one.report.calibration.before, one.report.calibration.after
    for name, key in {"ECE": "ece", "Brier score": "brier", "cross-entropy": "loss"}.items():
        assert rows[name] == [f"{getattr(before, key):.3f}", f"{getattr(after, key):.3f}"]
    assert before.loss != pytest.approx(after.loss, abs=1e-3)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ([0.3, 0.2, 0.1, -0.1], "from 0.20 to 0.30"),
        ([0.3, 0.1, -0.05, -0.1], "nowhere"),
        ([0.4] * 4, "from 0.10 to 0.40"),
    ],
)
def test_where_the_classifier_is_of_use_it_beats_calling_all_and_calling_none(model, said):
    one = subject()
    curve = DecisionCurve(
        threshold=(0.1, 0.2, 0.3, 0.4), model=model, treat_all=(0.35, 0.1, -0.1, -0.2), low=model, high=model
    )
    one = reported(one, decision_curve=curve)
    (alt,) = [block["alt"] for block in decisions.decisions(one)["blocks"] if "Net benefit" in block.get("alt", "")]
    assert alt.endswith(f"beats calling all or none {said}")


def test_better_than_chance_turns_with_the_figures():
    title = "Is it better than chance?"
    for skill, passed in ((2.0, True), (0.0, False)):
        found = verdicts(summary.summary(subject(skill=skill), training_tiles=1, audits=[], checks=None))
        assert found[title] is passed


def test_a_calibration_error_beyond_chance_fails():
    one = subject()
    title = "Are its probabilities calibrated?"
    chance = one.report.calibration.after.ece_by_chance.quantile_95
    for error, passed in ((chance, True), (chance + 0.001, False)):
        found = one.report.calibration
        after = found.after.model_copy(update={"ece": error})
        changed = reported(one, calibration=found.model_copy(update={"after": after}))
        assert verdicts(summary.summary(changed, training_tiles=1, audits=[], checks=None))[title] is passed


@pytest.mark.parametrize("split", ["train", "all"])
def test_training_tiles_are_not_new_whatever_an_audit_says(split):
    one = subject()
    one = reported(one, split=split)
    title = "Are the evaluated tiles new to the model?"

    def said(of: Subject) -> bool | None:
        return verdicts(summary.summary(of, training_tiles=None, audits=[AUDIT], checks=None))[title]

    assert said(one) is False
    elsewhere = one.report.data.model_copy(update={"root": "/data/elsewhere"})
    assert said(reported(one, data=elsewhere)) is True


def test_a_leak_in_any_audit_fails_and_none_is_not_judged():
    title = "Are the evaluated tiles new to the model?"
    leak = make_audit(leakage=True, verdict="THE SPLIT LEAKS: 3")
    for audits, passed in (([], None), ([AUDIT], True), ([AUDIT, leak], False)):
        section = summary.summary(subject(), training_tiles=1, audits=audits, checks=None)
        assert verdicts(section)[title] is passed
    assert "THE SPLIT LEAKS: 3" in json.dumps(section)


def test_the_verdicts_on_heatmaps_are_those_of_the_checks(map_checks):
    checks = map_checks(randomisation=False, deletion_insertion=None)
    found = verdicts(summary.summary(subject(), training_tiles=1, audits=[], checks=checks))

    assert found[checks.randomisation.question] is False
    assert found[checks.deletion_insertion.question] is None
    without = verdicts(summary.summary(subject(), training_tiles=1, audits=[], checks=None))
    assert without["Can the heatmaps be trusted?"] is None


def test_operating_point_and_abstention_are_those_of_the_evaluation():
    one = subject()
    shown = json.dumps(decisions.decisions(one))

    assert f"p >= {one.report.operating_point.threshold:.3f}" in shown
    assert f"confidence {one.report.coverage.abstention.threshold:.3f}" in shown
    assert one.decided_from == one.report.coverage.abstention.threshold
    found = tables(decisions.decisions(one))
    here = one.report.coverage.abstention.here
    assert [[row[0], row[-1]] for row in found["With abstention"]] == [
        ["tiles decided here", f"{here['decided'].count} of 80"],
        ["accuracy on these", f"{here['accuracy'].count} of {here['decided'].count}"],
    ]
    here = one.report.operating_point.here
    counts = {name: f"{share.count} of {share.of}" for name, share in here.items()}
    assert {row[0]: row[-1] for row in found["At the operating point"]} == counts


def test_caveats_come_once_and_all():
    one = subject()
    (block,) = decisions.caveats(one, ["a caveat", "another"])["blocks"]

    assert block["items"] == ["a caveat", *one.report.notes, "another"]


def test_the_data_table_counts_classes_and_slides():
    section = classifier.data(
        subject(), counts={"train": {"HP": 1234, "SSA": 40}, "test": {"HP": 1, "SSA": 2}}, groups={"train": 7}
    )

    assert tables(section)["Tiles per class"] == [
        ["train", "1,234", "40", "1,274", "7"],
        ["test", "1", "2", "3", "unknown"],
    ]
    assert "held out from the training split" in str(section)
    own = changed(subject(), "data", source="pathmnist")  # brings a validation split
    assert "the validation split of the data set" in str(classifier.data(own, counts={}, groups={}))
