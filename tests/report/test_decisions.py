"""Calibration, thresholds and caveats are those of the evaluation."""

from __future__ import annotations

import json

import pytest

from sscl.evaluate.records import DecisionCurve
from sscl.report import decisions

from .conftest import make_audit, reported, subject, tables

AUDIT = make_audit()


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
