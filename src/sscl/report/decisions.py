"""Sections on what may be done with the classifier: its probabilities, its thresholds, the caveats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sscl.evaluate import calibration, evaluation, metrics
from sscl.evaluate.predictions import Predictions
from sscl.plots import calibration as calibration_plots
from sscl.report import blocks
from sscl.report.blocks import Block, Section, number
from sscl.report.classifier import rows_of_metrics
from sscl.report.subject import Subject


def probabilities(subject: Subject) -> Section | None:
    """Return what the probabilities are worth; None where the evaluation is from before that was asked."""
    found = subject.report.get("calibration")
    if found is None:
        return None
    before, after = found["before"], found["after"]
    names = {"ece": "ECE", "ece_equal_mass": "ECE, bins of equal mass", "brier": "Brier score", "loss": "cross-entropy"}
    names |= {"soft_vote_brier": f"Brier score against votes / {metrics.ANNOTATORS}"}
    lines = [["", "as trained", "calibrated"]]
    lines += [[name, number(before[key]), number(after[key])] for key, name in names.items() if after[key] is not None]
    changed = found["temperature"] != 1
    stages = {"before": before, "after": after} if changed else {"as trained": after}
    worded = "; ".join(f"{row['score']:.2f}: {row['share']:.2f} of {row['count']}" for row in after["reliability"])
    return blocks.section(
        "probabilities",
        "Probabilities",
        [
            blocks.paragraph(f"Temperature {found['temperature']:.3f}: {found['method']}. {found['definition']}."),
            blocks.table("Calibration on these tiles", lines),
            blocks.figure(
                "reliability",
                lambda path: calibration_plots.plot_reliability(
                    stages,
                    temperature=found["temperature"],
                    positive=subject.report["positive"],
                    path=path,
                    title=subject.title,
                ),
                alt=f"Reliability diagram: predicted probability and how often it came true: {worded}",
                caption="Points on the diagonal: what is given a probability comes true as often. Below it: "
                "too high a probability. The bars below count the tiles.",
            ),
        ],
    )


def decisions(subject: Subject) -> Section | None:
    """Return operating point, abstention and net benefit; None where the evaluation is from before these."""
    report = subject.report
    coverage = report.get("coverage")
    if coverage is None:
        return None
    point, abstention, curve = report["operating_point"], coverage["abstention"], report["decision_curve"]
    header = ["", "value", "95% bootstrap", "95% Wilson", "tiles"]
    found: list[Block] = []
    if point is not None:
        there = " and ".join(f"{name} {value:.3f}" for name, value in point["on_validation"].items())
        text = (
            f"Operating point: a tile is called {report['positive']} from a probability of {point['threshold']:.4f} "
            f"on, chosen by {point['rule']} on {point['chosen_on']} validation tiles ({there} there)."
        )
        rows = evaluation.share_rows(point["here"], {key: key for key in point["here"]})
        found += [blocks.paragraph(text), blocks.table("At the operating point", [header, *rows_of_metrics(rows)])]
    if abstention is not None:
        text = (
            f"Abstention: tiles of a confidence below {abstention['threshold']:.4f} are left to a person. That leaves "
            f"out at most {100 * abstention['share_on_validation']:g}% of {abstention['chosen_on']} validation tiles."
        )
        rows = evaluation.share_rows(
            abstention["here"], {"decided": "tiles decided here", "accuracy": "accuracy on these"}
        )
        found += [blocks.paragraph(text), blocks.table("Where it abstains", [header, *rows_of_metrics(rows)])]
    sure = [
        (f"accuracy on the surest {100 * row['coverage']:.0f}%", row["accuracy"]["value"], None, row["accuracy"])
        for row in coverage["at"]
    ]
    found.append(
        blocks.figure(
            "coverage",
            lambda path: calibration_plots.plot_coverage(
                calibration.risk_coverage(
                    subject.found.predictions == subject.found.labels, _confidence(subject.found)
                ),
                decided=None if abstention is None else abstention["here"],
                path=path,
                title=subject.title,
            ),
            alt="; ".join(f"{name}: {number(value)}" for name, value, *_ in sure),
            caption="Accuracy on the tiles it is surest about, against their share. A curve that rises to the left "
            "means that its confidence tells which tiles to look at oneself.",
        )
    )
    if curve is not None:
        found.append(
            blocks.figure(
                "decision",
                lambda path: calibration_plots.plot_decision_curve(
                    curve,
                    threshold=None if point is None else point["threshold"],
                    positive=report["positive"],
                    path=path,
                    title=subject.title,
                ),
                alt=_benefit(curve, report["positive"]),
                caption="Net benefit: tiles rightly called, less those wrongly called, weighed by the threshold. Where "
                "the classifier's line is not above both others, calling all or none serves as well.",
            )
        )
    return blocks.section("decisions", "Decisions", found)


def _confidence(found: Predictions) -> Any:
    assert found.probabilities is not None  # read from a file, it has them
    return found.probabilities.max(1)


def _benefit(curve: Mapping[str, Sequence[float]], positive: str) -> str:
    above = [
        threshold
        for threshold, model, everything in zip(curve["threshold"], curve["model"], curve["treat_all"], strict=True)
        if model > max(everything, 0)
    ]
    where = f"from {min(above):.2f} to {max(above):.2f}" if above else "nowhere"
    return f"Net benefit of calling tiles {positive}: the classifier does better than calling all or none {where}"


def caveats(subject: Subject, more: Sequence[str]) -> Section:
    """Return what to know before believing the figures. more: sentences from elsewhere."""
    found = [*subject.report["caveats"], *subject.report.get("notes", ()), *more]
    if "calibration" not in subject.report:
        found.append(
            "evaluated by an earlier version, without calibration, thresholds and Wilson's intervals: sscl eval "
            "--overwrite makes them"
        )
    return blocks.section("caveats", "Caveats", [blocks.bullets(list(dict.fromkeys(found)))])
