"""Sections on what may be done with the classifier: its probabilities, its thresholds, the caveats."""

from __future__ import annotations

from collections.abc import Sequence

from sscl.evaluate import evaluation_text
from sscl.evaluate.decisions import risk_coverage
from sscl.evaluate.records import DecisionCurve
from sscl.plots import calibration as calibration_plots
from sscl.report import blocks
from sscl.report.blocks import Block, Section, number
from sscl.report.classifier import rows_of_metrics
from sscl.report.subject import Subject


def probabilities(subject: Subject) -> Section:
    """Return how well calibrated the probabilities are."""
    found = subject.report.calibration
    before, after = found.before, found.after
    lines = [["", "as trained", "calibrated"]]
    lines += [[name, number(b), number(a)] for name, b, a in evaluation_text.calibration_rows(subject.report)]
    changed = found.temperature != 1
    stages = {"before": before, "after": after} if changed else {"as trained": after}
    worded = "; ".join(f"{row.score:.2f}: {row.frequency:.2f} of {row.count}" for row in after.reliability)
    return blocks.section(
        "probabilities",
        "Calibration",
        [
            blocks.paragraph(f"Temperature {found.temperature:.3f}: {found.method}. {found.definition}."),
            blocks.table("Calibration errors on these tiles", lines),
            blocks.figure(
                "reliability",
                lambda path: calibration_plots.plot_reliability(
                    stages,
                    temperature=found.temperature,
                    positive=subject.report.positive,
                    path=path,
                    title=subject.title,
                ),
                alt=f"Reliability diagram: predicted probability and observed frequency: {worded}",
                caption="Points on the diagonal are calibrated, points below it overconfident. The bars count the "
                "tiles.",
            ),
        ],
        hint="can its probabilities be taken at their word?",
    )


def decisions(subject: Subject) -> Section:
    """Return operating point, abstention and net benefit."""
    report = subject.report
    point, abstention, curve = report.operating_point, report.coverage.abstention, report.decision_curve
    header = ["", "value", "95% interval", "tiles"]
    found: list[Block] = []
    if point is not None:
        text = f"Operating point: {evaluation_text.operating_point_in_words(point, str(report.positive))}."
        rows = evaluation_text.proportion_rows(point.here, {key: key for key in point.here})
        found += [blocks.paragraph(text), blocks.table("At the operating point", [header, *rows_of_metrics(rows)])]
    text = f"Abstention: {evaluation_text.abstention_in_words(report)}. Review these tiles by eye."
    rows = evaluation_text.proportion_rows(abstention.here, evaluation_text.OF_ABSTENTION)
    found += [blocks.paragraph(text), blocks.table("With abstention", [header, *rows_of_metrics(rows)])]
    most_confident = [f"{row.coverage:.0%}: {number(row.accuracy.value)}" for row in report.coverage.at]
    found.append(
        blocks.figure(
            "coverage",
            lambda path: calibration_plots.plot_coverage(
                risk_coverage(subject.found.predictions == subject.found.labels, subject.found.probabilities.max(1)),
                found=report.coverage,
                path=path,
                title=subject.title,
            ),
            alt=f"Accuracy on the most confident tiles: {', '.join(most_confident)}",
            caption="Accuracy on the most confident tiles against the fraction of tiles kept. A curve that rises to "
            "the left means that low confidence identifies the tiles to review by eye.",
        )
    )
    if curve is not None:
        found.append(
            blocks.figure(
                "decision",
                lambda path: calibration_plots.plot_decision_curve(
                    curve,
                    threshold=None if point is None else point.threshold,
                    positive=str(report.positive),
                    path=path,
                    title=subject.title,
                ),
                alt=_benefit(curve, str(report.positive)),
                caption="Net benefit: true positives minus false positives, weighted by the odds of the threshold. "
                "Where the classifier is not above both other lines, calling all tiles or none is as good.",
            )
        )
    return blocks.section(
        "decisions", "Operating point and abstention", found, hint="from which probability it decides, or leaves a tile"
    )


def _benefit(curve: DecisionCurve, positive: str) -> str:
    above = [
        threshold
        for threshold, model, everything in zip(curve.threshold, curve.model, curve.treat_all, strict=True)
        if model > max(everything, 0)
    ]
    where = f"from {min(above):.2f} to {max(above):.2f}" if above else "nowhere"
    return f"Net benefit of calling tiles {positive}: the classifier beats calling all or none {where}"


def caveats(subject: Subject, more: Sequence[str]) -> Section:
    """Return what to know before trusting the results. more: sentences from elsewhere."""
    found = [*subject.report.caveats, *subject.report.notes, *more]
    listed = blocks.bullets(list(dict.fromkeys(found)))
    return blocks.section("caveats", "Caveats", [listed], hint="what to know before using any of this")
