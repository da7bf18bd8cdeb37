"""An evaluation in words: rows of its tables, the lines of the terminal, and notes on how to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sscl.evaluate import calibration, proportions
from sscl.evaluate.bootstrap import Interval
from sscl.evaluate.metrics import (
    MANY_CLASSES,
    OF_A_CLASS,
    OVERALL,
    confusions,
    display_name,
    shown_of,
    worst_classes,
)
from sscl.evaluate.proportions import DrawnProportion, Proportion
from sscl.evaluate.records import Evaluated, Evaluation, OperatingPoint, Results
from sscl.evaluate.verdicts import Outcome, verdict_of
from sscl.words import count, left, right, short_names, some, width_of, wrapped

MATTERS_ECE = 0.1  # a mean gap between confidence and accuracy that one would want to see
_FEW_CLASSES = 5  # named in a note
_FEW_FLAT = 5  # metrics named in a note
_NAME = 20  # columns of the name of a class in a table of the terminal
_COLUMNS = 80
OF_ABSTENTION = {"decided": "tiles decided here", "accuracy": "accuracy on these"}


class Row(NamedTuple):
    """A metric in a table: its value, the bootstrap's interval, and the proportion with Wilson's; None = undefined."""

    name: str
    value: float | None
    interval: Interval | None
    proportion: Proportion | None


def metric_rows(evaluated: Evaluated, results: Results, *, names: Sequence[str] | None = None) -> list[Row]:
    """Return the metrics of the argmax, a row each; those of `metrics.worst_classes` come last, three a class.

    Args:
        names: of the classes, as they are shown; None = their own.
    """
    names = evaluated.classes if names is None else names
    values, intervals, wilson = results.metrics, results.intervals, results.wilson
    keys: list[tuple[str, str | None]] = [(key, None) for key in OVERALL]
    if evaluated.positive is not None:
        positive = names[evaluated.classes.index(evaluated.positive)]
        keys += [(key, positive) for key in ("sensitivity", "specificity")]
    rows = [
        Row(display_name(key, of=of), getattr(values, key), getattr(intervals, key), getattr(wilson, key, None))
        for key, of in keys
    ]
    for i in worst_classes(values.per_class):
        parts = values.per_class[i], intervals.per_class[i], wilson.per_class[i]
        rows += [
            Row(display_name(key, of=names[i]), *(getattr(part, key, None) for part in parts)) for key in OF_A_CLASS
        ]
    return rows


def agreement_rows(results: Results) -> list[Row]:
    """Return accuracy by how many annotators agree, a row for each agreement that some tile has."""
    return [
        Row(f"accuracy, {row.agreement} agree", row.accuracy, None, proportions.proportion(row.correct, row.count))
        for row in results.accuracy_by_agreement or ()
        if row.count
    ]


def proportion_rows(hits: Mapping[str, DrawnProportion | None], names: Mapping[str, str]) -> list[Row]:
    """Return the proportions of an operating point or of abstention, a row each; names: {key: display name}."""
    found = []
    for key, name in names.items():
        hit = hits[key]
        found.append(Row(name, None, None, None) if hit is None else Row(name, hit.value, hit.interval, hit))
    return found


def operating_point_in_words(point: OperatingPoint, positive: str) -> str:
    """Return how a tile is called positive, as in "call SSA if p >= 0.334 (maximises Youden's index on 72 ...)"."""
    return (
        f"call {positive} if p >= {point.threshold:.3f} ({point.rule} on {count(point.chosen_on, 'validation tile')})"
    )


def abstention_in_words(results: Results) -> str:
    """Return which tiles are left undecided, as in "abstain below confidence 0.789 (14 of 72 ...)"."""
    found = results.coverage.abstention
    return (
        f"abstain below confidence {found.threshold:.3f} ({found.left_out_on_validation} of {found.chosen_on} "
        f"validation tiles; limit {100 * found.limit:g}%)"
    )


def reading_notes(evaluated: Evaluated, results: Results) -> list[str]:
    """Return how to read intervals without width, probabilities, thresholds and net benefit, a sentence each."""
    found = []
    rows = metric_rows(evaluated, results)
    flat = [row.name for row in rows if row.interval is not None and row.interval[0] == row.interval[1]]
    if flat:
        which = some(flat) if len(flat) <= _FEW_FLAT else f"{len(flat)} metrics"
        found.append(
            f"the bootstrap interval of {which} has no width, because no resample differs; that does not "
            "make the value certain: read Wilson's interval"
        )
    fitted = results.calibration
    found.append(
        "temperature and thresholds come from the validation tiles that also chose the epoch, so validation results "
        "are optimistic" + ("; they were fitted without test-time augmentation" * evaluated.test_time_augmentation)
    )
    found += miscalled_in_words(evaluated, results)
    if fitted.fitted_on < calibration.FEW:
        found.append(
            f"{fitted.fitted_on} validation tiles are few: other ones may give another temperature, operating point "
            "and abstention threshold"
        )
    if evaluated.positive is not None and results.operating_point is None:
        found.append("no operating point: all validation tiles are of one class")
    before, after = fitted.before.loss, fitted.after.loss
    if after > before:
        found.append(
            f"the temperature increased the cross-entropy here ({before:.4f} to {after:.4f}): the validation tiles "
            "are too few, or too different from these"
        )
    if fitted.temperature != 1:
        found.append("probabilities and losses are calibrated, also in predictions.csv (calibrate=false: raw)")
    if evaluated.positive is not None:
        prevalence = 100 * evaluated.class_counts[evaluated.positive] / evaluated.tiles
        found.append(
            f"PPV, NPV and net benefit hold at the prevalence of these tiles ({prevalence:.1f}% {evaluated.positive}), "
            "not at others"
        )
    return found


# --- the lines of the terminal ---


def as_text(report: Evaluation) -> str:
    """Return the evaluation as lines for the terminal, each metric with its 95% intervals."""
    names = short_names(report.classes, _NAME)
    main = metric_rows(report, report, names=names) + agreement_rows(report)
    positive = "" if report.positive is None else f"; positive class {report.positive}"
    width = max(23, *(width_of(row.name) for row in main))  # 80 columns in all
    lines = [f"{report.interval_method}{positive}"]
    lines += [f"  {'':<{width}}  {'value':<5}  {'bootstrap':<14}  {'Wilson':<14}", *_lines(main, width=width)]
    lines += [f"  ({shown_of(len(report.classes))})"] if shown_of(len(report.classes)) else []
    lines += [
        *_confusion_lines(report, names),
        *_calibration_lines(report, width=width),
        *_decision_lines(report, width=width),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _confusion_lines(report: Evaluation, names: Sequence[str]) -> list[str]:
    """Return the confusion matrix, its columns by number where the names would make it too wide; of many classes, or
    where that is too wide still, the most frequent errors."""
    matrix, what = report.confusion_matrix, "confusion matrix (rows: truth, columns:"
    numbers = [str(i) for i in range(1, len(names) + 1)]
    numbered = [f"{i} {name}" for i, name in zip(numbers, names, strict=True)]
    column = max(9, *map(width_of, names))
    if len(names) <= MANY_CLASSES:
        for title, rows, columns, width in (
            (f"{what} prediction)", names, names, column),
            (f"{what} number of the prediction)", numbered, numbers, len(str(np.max(matrix)))),
        ):
            head = max(9, *map(width_of, rows))
            lines = ["  ".join(["", " " * head, *(right(name, width) for name in columns)])]
            for name, counts in zip(rows, matrix, strict=True):
                lines.append("  ".join(["", left(name, head), *(right(str(number), width) for number in counts)]))
            if max(map(width_of, lines)) <= _COLUMNS:
                return [title, *lines]
    lines = [f"most frequent of {count(report.tiles - int(np.trace(matrix)), 'error')} (truth, prediction, tiles)"]
    for truth, predicted, tiles in confusions(matrix):
        lines.append(f"  {left(names[truth], column)}  {left(names[predicted], column)}  {tiles}")
    return [*lines, "  (all are in metrics.json)"]


def _lines(rows: Sequence[Row], *, width: int) -> list[str]:
    """Return rows as lines: value, bootstrap interval, Wilson's, counts."""

    def ends(pair: Interval | None) -> str:
        return "" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}"

    found = []
    for name, value, interval, hit in rows:
        shown = "undefined" if value is None else f"{value:.3f}"
        wilson, counts = ("", "") if hit is None else (ends(hit.wilson), f"{hit.count} of {hit.of}")
        found.append(f"  {left(name, width)}  {shown:<5}  {ends(interval):<14}  {wilson:<14}  {counts}".rstrip())
    return found


def miscalled_in_words(evaluated: Evaluated, results: Results) -> list[str]:
    """Return a sentence for each class whose probability is too low, or too high, in every bin; at most a few."""
    found = results.calibration.after.miscalled
    said = [
        f"{evaluated.classes[of.index]} is {'under' if of.under else 'over'}-called in every reliability bin: mean "
        f"probability {of.score:.3f}, true of {of.frequency:.3f} of the tiles"
        for of in found[:_FEW_CLASSES]
    ]
    more = len(found) - len(said)
    return [*said, *([f"so are {count(more, 'more class', 'more classes')}, see metrics.json"] if more else [])]


def calibrated(results: Results) -> tuple[Outcome, str]:
    """Return whether probabilities are calibrated, and why.

    No where the ECE exceeds what true probabilities would show on as many tiles; yes only where that bound is low
    enough for an ECE of MATTERS_ECE to be seen.
    """
    after = results.calibration.after
    error, (low, high), bound = after.ece, after.ece_interval, after.ece_by_chance.quantile_95
    outcome = Outcome.FAILED if error > bound else Outcome.PASSED if bound < MATTERS_ECE else Outcome.INCONCLUSIVE
    unseen = f"; so few tiles would not show an error of {MATTERS_ECE:g}" * (outcome is Outcome.INCONCLUSIVE)
    return outcome, (
        f"expected calibration error {error:.3f} ({low:.3f} to {high:.3f}): the mean gap between confidence and "
        f"accuracy; perfectly calibrated probabilities stay below {bound:.3f} in 95% of samples of this size{unseen}"
    )


def calibration_rows(results: Results) -> list[tuple[str, float, float]]:
    """Return calibration errors: what they are called, without and with the temperature."""
    found = []
    for key in ("ece", "ece_equal_mass", "brier", "loss", "soft_vote_brier"):
        name = "cross-entropy" if key == "loss" else display_name(key)
        before, after = getattr(results.calibration.before, key), getattr(results.calibration.after, key)
        if after is not None:
            found.append((name, before, after))
    return found


def _calibration_lines(report: Evaluation, *, width: int) -> list[str]:
    found = report.calibration
    lines = [f"calibration: temperature {found.temperature:.3f} ({found.method})"]
    lines.append(f"  {'':<{width}}  before  after")
    lines += [f"  {name:<{width}}  {before:<6.3f}  {after:.3f}" for name, before, after in calibration_rows(report)]
    lines.append(wrapped(f"calibrated? {verdict_of(*calibrated(report))}", indent=2))
    return lines


def _decision_lines(report: Evaluation, *, width: int) -> list[str]:
    lines = []
    point, coverage = report.operating_point, report.coverage
    if point is not None:
        lines.append(f"operating point: {operating_point_in_words(point, str(report.positive))}")
        lines += _lines(proportion_rows(point.here, {key: key for key in point.here}), width=width)
    lines.append(
        f"coverage: area under the risk-coverage curve {coverage.area:.3f} (random order {coverage.area_random:.3f}, "
        f"best order {coverage.area_best:.3f})"
    )
    rows = [
        Row(f"accuracy, coverage {100 * row.coverage:.0f}%", row.accuracy.value, None, row.accuracy)
        for row in coverage.at
        if row.coverage < 1
    ]
    lines += _lines(rows, width=width)
    lines.append(abstention_in_words(report))
    return lines + _lines(proportion_rows(coverage.abstention.here, OF_ABSTENTION), width=width)
