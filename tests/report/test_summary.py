"""The summary says what was trained on what, and its verdicts turn with the metrics."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

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


def test_a_leak_in_any_audit_fails_and_none_is_not_assessed():
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
