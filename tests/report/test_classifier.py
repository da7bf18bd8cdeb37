"""The sections on a classifier show what its checkpoint, its log and its evaluation hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sscl.evaluate.metrics import OVERALL, display_name
from sscl.report import classifier, decisions, page
from sscl.report.subject import Subject

from .conftest import CLASSES, changed, checks_of, kinds, make_audit, rendered, subject, tables

AUDIT = make_audit()


def sections(one: Subject, **more: Any) -> list[dict[str, Any]]:
    found = [
        checks_of(one, audits=[AUDIT]),
        classifier.data(one, counts={"train": {"HP": 60, "SSA": 40}}, groups={"train": 7}),
        classifier.training(one),
        classifier.results(one),
        classifier.errors(one, shown=50),
        decisions.probabilities(one),
        decisions.decisions(one),
        decisions.caveats(one, ["another"]),
    ]
    return [section for section in found if section is not None]


@pytest.mark.parametrize("classes", [CLASSES, ("a", "b", "c")])
def test_the_page_takes_all_sections(classes):
    made = sections(subject(classes=classes))
    content = {"title": "t", "subtitle": "s", "made": "m", "id": "0" * 16, "gallery": None, "sections": made}

    assert page.render(content)

    figures = [block for section in made for block in section["blocks"] if block["kind"] == "figure"]
    assert len(figures) == (6 if len(classes) == 2 else 5)  # no decision curve without a positive class
    assert all(len(block["alt"]) > 20 and block["caption"] for block in figures)


def test_every_metric_is_shown_with_its_intervals():
    one = subject()
    shown = tables(classifier.results(one))

    rows = {row[0]: row[1:] for table in shown.values() for row in table}
    metrics, drawn = one.report.metrics, one.report.intervals
    for key in OVERALL:
        low, high = getattr(drawn, key)
        assert rows[display_name(key)][:2] == [f"{getattr(metrics, key):.3f}", f"{low:.3f} to {high:.3f}"]
    assert rows["HP recall"][0] == f"{metrics.per_class[0].recall:.3f}"
    right = int((one.found.predictions == one.found.labels).sum())
    assert rows["accuracy"][2:] == [f"{right} of 80"]
    by_agreement = next(rows for caption, rows in shown.items() if "annotator" in caption)
    assert sum(int(row[-1].split(" of ")[1]) for row in by_agreement) == 80
    for row, found in zip(by_agreement, one.report.accuracy_by_agreement, strict=True):
        low, high = found.accuracy.interval
        counts = f"{found.accuracy.count} of {found.accuracy.of}"
        name = f"accuracy, {found.agreement} agree"
        assert row == [name, f"{found.accuracy.value:.3f}", f"{low:.3f} to {high:.3f}", counts]
    of_class = [row[0] for row in shown["Per class"]]
    assert of_class == [f"{name} {key}" for name in CLASSES for key in ("precision", "recall", "F1")]


def test_charts_are_of_what_the_evaluation_found(drawn, wrap):
    wrap(svg=lambda inline, draw, prefix: draw(Path(prefix.removeprefix("figure-"))) or "<svg>")
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
    assert words["found"] == report.coverage
    curve, words = drawn["decision"]
    assert curve == report.decision_curve
    assert (words["threshold"], words["positive"]) == (report.operating_point.threshold, "SSA")
    said = [block["alt"] for section in made for block in section["blocks"] if block["kind"] == "figure"]
    assert "goes from 0.700 to 0.600 and is lowest, 0.400, in epoch 2" in said[0]


def test_a_hundred_classes_are_bounded():
    names = tuple(f"class {i}" for i in range(100))
    one = subject(classes=names)
    page = "".join(map(rendered, (classifier.errors(one, shown=80), classifier.results(one))))
    assert len(page) < 1_500_000
    assert "Most frequent errors" in page
    assert '<table class="confusion">' not in page
    assert len(kinds(classifier.results(one), "table")[1]["rows"]) == 30  # three metrics of the ten worst
    counts = {"test": dict.fromkeys(names, 1)}
    (table,) = kinds(classifier.data(one, counts=counts, groups={"test": None}), "table")
    assert len(table["rows"]) < 25
    assert ["all", "100"] in table["rows"]


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
