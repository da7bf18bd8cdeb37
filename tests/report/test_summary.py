"""The summary says what was trained on what, and its verdicts turn with the metrics."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sscl.evaluate.records import ByChance
from sscl.report import summary
from sscl.report.subject import Subject

from .conftest import changed, make_audit, reported, subject, verdicts

AUDIT = make_audit()


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


def test_the_summary_has_the_caveats_of_the_evaluation_if_any():
    one = subject()

    def listed(of: Subject) -> list[list[str]]:
        found = summary.summary(of, training_tiles=1, audits=[], checks=None)["blocks"]
        return [block["items"] for block in found if block["kind"] == "list"]

    assert [list(items) for items in listed(one)] == [["a caveat"]]
    assert listed(reported(one, caveats=())) == []


def test_better_than_chance_turns_with_the_metrics():
    title = "Is it better than chance?"
    for skill, outcome in ((2.0, "passed"), (-1.0, "failed"), (0.1, "inconclusive")):
        found = verdicts(summary.summary(subject(skill=skill), training_tiles=1, audits=[], checks=None))
        assert found[title] == outcome


def test_a_calibration_error_beyond_chance_fails():
    one = subject()
    title = "Are its probabilities calibrated?"
    for error, bound, outcome in (
        (0.05, 0.05, "passed"),
        (0.06, 0.05, "failed"),
        (0.11, 0.12, "inconclusive"),  # so few tiles would not show an error of 0.1
        (0.13, 0.12, "failed"),
    ):
        found = one.report.calibration
        by_chance = ByChance(mean=0.02, quantile_95=bound, power=0.9 if bound < 0.1 else 0.5)
        after = found.after.model_copy(update={"ece": error, "ece_by_chance": by_chance})
        changed = reported(one, calibration=found.model_copy(update={"after": after}))
        assert verdicts(summary.summary(changed, training_tiles=1, audits=[], checks=None))[title] == outcome


@pytest.mark.parametrize("split", ["train", "all"])
def test_training_tiles_are_not_new_whatever_an_audit_says(split):
    one = subject()
    one = reported(one, split=split)
    title = "Are the evaluated tiles new to the model?"

    def said(of: Subject) -> str:
        return verdicts(summary.summary(of, training_tiles=None, audits=[AUDIT], checks=None))[title]

    assert said(one) == "failed"
    elsewhere = one.report.data.model_copy(update={"root": "/data/elsewhere"})
    assert said(reported(one, data=elsewhere)) == "passed"


def test_failed_checks_come_first_whichever_they_are(map_checks):
    checks = map_checks(True, box_sensitivity=False, equivariance=None)
    found = verdicts(summary.summary(subject(), training_tiles=1, audits=[AUDIT], checks=checks))
    assert next(iter(found)) == checks.box_sensitivity.question
    assert set(found) >= {check.question for check in checks.each.values()}
    order = [("failed", "inconclusive", "not assessed", "passed").index(outcome) for outcome in found.values()]
    assert order == sorted(order)


def test_a_leak_in_any_audit_fails_and_none_is_not_assessed():
    title = "Are the evaluated tiles new to the model?"
    leak = make_audit(leakage=True, verdict="THE SPLIT LEAKS: 3")
    for audits, passed in (([], "not assessed"), ([AUDIT], "passed"), ([AUDIT, leak], "failed")):
        section = summary.summary(subject(), training_tiles=1, audits=audits, checks=None)
        assert verdicts(section)[title] == passed
    assert "THE SPLIT LEAKS: 3" in json.dumps(section)


def test_the_verdicts_on_heatmaps_are_those_of_the_checks(map_checks):
    checks = map_checks(randomisation=False, deletion_insertion=None)
    found = verdicts(summary.summary(subject(), training_tiles=1, audits=[], checks=checks))

    assert found[checks.randomisation.question] == "failed"
    assert found[checks.deletion_insertion.question] == "not assessed"
    without = verdicts(summary.summary(subject(), training_tiles=1, audits=[], checks=None))
    assert without["Can the heatmaps be trusted?"] == "not assessed"


def test_synthetic_tiles_are_called_so():
    one = reported(subject(), synthetic=True)
    assert "synthetic" in one.split
    assert "synthetic" in one.title
    first = summary.summary(one, training_tiles=1, audits=[], checks=None)["blocks"][0]
    assert "drawn by a program" in first["text"]
    assert "synthetic" not in json.dumps(summary.summary(subject(), training_tiles=1, audits=[], checks=None))
