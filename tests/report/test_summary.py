"""The summary says what was trained on what, and its verdicts turn with the metrics."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sscl.evaluate.records import ByChance
from sscl.report.subject import Subject

from .conftest import changed, checks_of, first_screen, make_audit, reported, subject, verdicts

AUDIT = make_audit()


def test_three_sentences_say_what_was_learned_how_good_and_what_not_to_rely_on():
    one = subject()
    learned, good, rely = first_screen(one)

    right = int((one.found.predictions == one.found.labels).sum())
    low, high = one.report.intervals.accuracy
    assert "resnet18 network, starting from the weights of ssl, which were trained on unlabelled" in learned
    assert "100 labelled image tiles of colon to tell HP and SSA apart" in learned
    assert f"80 tiles of the test split of colon, it classified {right} correctly: {right / 80:.0%}" in good
    assert f"(95% interval {low:.0%} to {high:.0%})" in good
    for name, found in zip(one.report.classes, one.report.metrics.per_class, strict=True):
        assert f"{found.recall:.0%} of {name}" in good
    for doubt in ("heatmaps (not checked)", "the intervals", "new to it", "hospitals"):
        assert doubt in rely
    assert all(text.endswith(".") and ". " not in text for text in (learned, good, rely))


def test_the_first_screen_doubts_what_failed_and_not_what_passed(map_checks):
    one = reported(subject(), groups=40)
    passed = first_screen(one, audits=[AUDIT], checks=map_checks(True))[2]
    assert passed.count("(") == 0
    leak = make_audit(leakage=True)
    failed = first_screen(one, audits=[leak], checks=map_checks(False), unfinished=True)[2]
    assert "interrupted" in failed
    assert "copies" in failed
    assert "4 of 4 checks failed" in failed
    optimistic = reported(one, caveats=("3 slides are in both: the metrics are optimistic",))
    assert "new tiles" in first_screen(optimistic, audits=[AUDIT], checks=map_checks(True))[2]
    guesses = first_screen(reported(subject(skill=-1.0), groups=40), audits=[AUDIT], checks=map_checks(True))[2]
    assert "no better than guesses" in guesses


def test_the_first_screen_of_many_classes_and_without_intervals():
    many = subject(classes=tuple("abcdefg"), skill=1.0)
    learned, good, _ = first_screen(many)
    worst = min(range(7), key=lambda row: many.report.metrics.per_class[row].recall)
    assert "7 classes" in learned
    assert f"least of one class, {many.report.metrics.per_class[worst].recall:.0%} of {'abcdefg'[worst]}" in good
    one = subject()
    none = one.report.intervals.model_copy(update={"accuracy": None})
    assert "(too few tiles for an interval)" in first_screen(reported(one, intervals=none))[1]
    assert "(too few slides for an interval)" in first_screen(reported(one, intervals=none, groups=3))[1]


def test_the_first_screen_says_which_tiles_it_was_not_trained_on():
    few = changed(subject(), "train", folds=5, fold=2, label_fraction=0.5)
    assert "(50% of the labels, without fold 2 of 5)" in first_screen(few)[0]
    assert "the labelled image tiles of colon" in first_screen(few, tiles=None)[0]


@pytest.mark.parametrize(
    ("weights", "said"), [(None, "starting from random weights"), ("imagenet", "photographs (ImageNet)")]
)
def test_where_the_weights_come_from(weights, said):
    one = changed(subject(), "model", weights=weights)
    one = replace(one, trained=replace(one.trained, lineage=()))

    assert said in first_screen(one)[0]


def test_the_checks_have_the_caveats_of_the_evaluation_if_any():
    one = subject()

    def listed(of: Subject) -> list[list[str]]:
        return [block["items"] for block in checks_of(of)["blocks"] if block["kind"] == "list"]

    assert [list(items) for items in listed(one)] == [["a caveat"]]
    assert checks_of(one)["hint"].endswith("1 limitation")
    assert listed(reported(one, caveats=())) == []


def test_better_than_chance_turns_with_the_metrics():
    title = "Is it better than chance?"
    for skill, outcome in ((2.0, "passed"), (-1.0, "failed"), (0.1, "inconclusive")):
        found = verdicts(checks_of(subject(skill=skill)))
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
        assert verdicts(checks_of(changed, audits=[], checks=None))[title] == outcome


@pytest.mark.parametrize("split", ["train", "all"])
def test_training_tiles_are_not_new_whatever_an_audit_says(split):
    one = subject()
    one = reported(one, split=split)
    title = "Are the evaluated tiles new to the model?"

    def said(of: Subject) -> str:
        return verdicts(checks_of(of, audits=[AUDIT], checks=None))[title]

    assert said(one) == "failed"
    elsewhere = one.report.data.model_copy(update={"root": "/data/elsewhere"})
    assert said(reported(one, data=elsewhere)) == "passed"


def test_failed_checks_come_first_whichever_they_are(map_checks):
    checks = map_checks(True, box_sensitivity=False, equivariance=None)
    found = verdicts(checks_of(subject(), audits=[AUDIT], checks=checks))
    assert next(iter(found)) == checks.box_sensitivity.question
    assert set(found) >= {check.question for check in checks.each.values()}
    order = [("failed", "inconclusive", "not assessed", "passed").index(outcome) for outcome in found.values()]
    assert order == sorted(order)


def test_a_leak_in_any_audit_fails_and_none_is_not_assessed():
    title = "Are the evaluated tiles new to the model?"
    leak = make_audit(leakage=True, verdict="THE SPLIT LEAKS: 3")
    for audits, passed in (([], "not assessed"), ([AUDIT], "passed"), ([AUDIT, leak], "failed")):
        section = checks_of(subject(), audits=audits, checks=None)
        assert verdicts(section)[title] == passed
    assert "THE SPLIT LEAKS: 3" in json.dumps(section)


def test_the_verdicts_on_heatmaps_are_those_of_the_checks(map_checks):
    checks = map_checks(randomisation=False, deletion_insertion=None)
    found = verdicts(checks_of(subject(), audits=[], checks=checks))

    assert found[checks.randomisation.question] == "failed"
    assert found[checks.deletion_insertion.question] == "not assessed"
    without = verdicts(checks_of(subject()))
    assert without["Can the heatmaps be trusted?"] == "not assessed"


def test_synthetic_tiles_are_called_so():
    one = reported(subject(), synthetic=True)
    assert "synthetic" in one.split
    assert "synthetic" in one.title
    learned, good, rely = first_screen(one)
    assert "drawn by a program" in learned
    assert "synthetic set" in good
    assert "real tissue" in rely
    assert "drawn" not in "".join(first_screen(subject()))
