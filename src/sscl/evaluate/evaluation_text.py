"""An evaluation in words: rows of its tables, the lines of the terminal, and notes on how to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sscl.evaluate import by_place, calibration, verdicts
from sscl.evaluate.intervals import FEWEST, Interval, ends_text, with_interval
from sscl.evaluate.metric_intervals import ClassIntervals, Intervals
from sscl.evaluate.metrics import (
    MANY_CLASSES,
    OF_A_CLASS,
    OVERALL,
    ClassMetrics,
    Metrics,
    confusions,
    display_name,
    shown_of,
    worst_classes,
)
from sscl.evaluate.proportions import ClassProportions, Proportion, Proportions
from sscl.evaluate.records import Evaluation, OperatingPoint
from sscl.evaluate.verdicts import Outcome
from sscl.metrics_log import kind_of_row
from sscl.words import count, left, right, short_names, shortened, some, width_of

_FEW_CLASSES = 5  # named in a note
_NAME = 20  # columns of the name of a class in a table of the terminal
_SHORT_NAME = 12  # the same beside three values with intervals
_COLUMNS = 80
TOO_FEW_SLIDES, TOO_FEW_TILES = "too few slides", "too few tiles"
CROSS_ENTROPY = "cross-entropy"
OF_ABSTENTION = {"decided": "tiles decided here", "accuracy": "accuracy on these"}


class Row(NamedTuple):
    """A metric in a table: its value, its interval, and what it is a proportion of; None = undefined, or none.

    missing: why a defined value has no interval.
    """

    name: str
    value: float | None
    interval: Interval | None
    proportion: Proportion | None
    missing: str = ""

    @classmethod
    def of(cls, name: str, hit: Proportion | None) -> Row:
        """Return the row of a proportion; None = of no tile."""
        if hit is None:
            return cls(name, None, None, None)
        return cls(name, hit.value, hit.interval, hit, TOO_FEW_SLIDES)

    @property
    def counts(self) -> str:
        """The tiles counted, as in "12 of 15"."""
        return "" if self.proportion is None else f"{self.proportion.count} of {self.proportion.of}"

    @property
    def ends(self) -> str:
        """The interval, or why there is none."""
        if self.interval is None:
            return self.missing if self.value is not None else ""
        return ends_text(self.interval)


def rows_of(
    values: Metrics | ClassMetrics,
    intervals: Intervals | ClassIntervals,
    shares: Proportions | ClassProportions,
    keys: Sequence[str],
    *,
    groups: object,
    of: str | None = None,
) -> list[Row]:
    """Return the metrics of these keys, a row each. groups: of the tiles, or None. of: the class they are of."""
    missing = TOO_FEW_TILES if groups is None else TOO_FEW_SLIDES
    return [
        Row(
            display_name(key, of=of), getattr(values, key), getattr(intervals, key), getattr(shares, key, None), missing
        )
        for key in keys
    ]


def overall_rows(report: Evaluation, *, names: Sequence[str] | None = None) -> list[Row]:
    """Return the metrics of the argmax on all tiles, a row each.

    Args:
        names: of the classes, as they are shown; None = their own.
    """
    names = report.classes if names is None else names
    given = report.metrics, report.intervals, report.proportions
    found = rows_of(*given, OVERALL, groups=report.groups)
    if report.positive is not None:
        positive = names[report.classes.index(report.positive)]
        found += rows_of(*given, ("sensitivity", "specificity"), of=positive, groups=report.groups)
    return found


def class_rows(report: Evaluation, *, names: Sequence[str] | None = None) -> list[Row]:
    """Return the metrics of `metrics.worst_classes`, three rows a class; names: as for `overall_rows`."""
    names = report.classes if names is None else names
    values, intervals, shares = report.metrics.per_class, report.intervals.per_class, report.proportions.per_class
    return [
        row
        for i in worst_classes(values)
        for row in rows_of(values[i], intervals[i], shares[i], OF_A_CLASS, of=names[i], groups=report.groups)
    ]


def agreement_rows(report: Evaluation) -> list[Row]:
    """Return accuracy by how many annotators agree, a row for each agreement that some tile has."""
    return [
        Row.of(f"accuracy, {row.agreement} agree", row.accuracy)
        for row in report.accuracy_by_agreement or ()
        if row.accuracy is not None
    ]


def proportion_rows(hits: Mapping[str, Proportion | None], names: Mapping[str, str]) -> list[Row]:
    """Return the proportions of an operating point or of abstention, a row each; names: {key: display name}."""
    return [Row.of(name, hits[key]) for key, name in names.items()]


def operating_point_in_words(point: OperatingPoint, positive: str) -> str:
    """Return how a tile is called positive, as in "call SSA if p >= 0.334 (maximises Youden's index on 72 ...)"."""
    return (
        f"call {positive} if p >= {point.threshold:.3f} ({point.rule} on {count(point.chosen_on, 'validation tile')})"
    )


def abstention_in_words(report: Evaluation) -> str:
    """Return which tiles are left undecided, as in "abstain below confidence 0.789 (14 of 72 ...)"."""
    found = report.coverage.abstention
    return (
        f"abstain below confidence {found.threshold:.3f} ({found.left_out_on_validation} of {found.chosen_on} "
        f"validation tiles; limit {100 * found.limit:g}%)"
    )


def reading_notes(report: Evaluation) -> list[str]:
    """Return how to read missing intervals, probabilities, thresholds and net benefit, a sentence each."""
    return [
        *_without_interval(report),
        *_of_this_one(report),
        *_of_every_one(report),
    ]


def _without_interval(report: Evaluation) -> list[str]:
    """Return a sentence on the classes that are too few for intervals, if there are any."""
    rows = overall_rows(report) + class_rows(report)
    if not any(row.value is not None and row.interval is None for row in rows):
        return []
    called = np.sum(report.confusion_matrix, axis=0).tolist()  # a class without tiles counts by those called so
    counts = ((name, report.class_counts[name] or number) for name, number in zip(report.classes, called, strict=True))
    rare = [f"{name} ({number})" for name, number in counts if 0 < number < FEWEST]
    few = TOO_FEW_TILES if rare or report.groups is None else TOO_FEW_SLIDES
    of = f"{few} of {some(rare) or 'some class'}"
    return [f"metrics without an interval: {of}; an interval needs {FEWEST}, and is wide with those"]


def _of_this_one(report: Evaluation) -> list[str]:
    found = miscalled_in_words(report)
    fitted = report.calibration
    if fitted.fitted_on < calibration.FEW:
        found.append(f"{fitted.fitted_on} validation tiles are few: others may give other thresholds")
    if report.positive is not None and report.operating_point is None:
        found.append("no operating point: all validation tiles are of one class")
    before, after = fitted.before.loss, fitted.after.loss
    if after > before:
        found.append(
            f"the temperature increased the cross-entropy here ({before:.4f} to {after:.4f})"
            + ("" if fitted.fitted_on < calibration.FEW else ": the validation tiles are too few, or too different")
        )
    if report.test_time_augmentation:
        found.append("temperature and thresholds were fitted without test-time augmentation")
    return found


def _of_every_one(report: Evaluation) -> list[str]:
    found = [
        f"temperature and thresholds come from the validation tiles that also chose {kind_of_row(report.c)}, so "
        "validation results are optimistic"
    ]
    if report.calibration.temperature != 1:
        found.append("probabilities and losses are calibrated, also in predictions.csv (calibrate=false: raw)")
    if report.positive is not None:
        prevalence = 100 * report.class_counts[report.positive] / report.tiles
        found.append(
            f"PPV, NPV and net benefit hold at the prevalence of these tiles ({prevalence:.1f}% {report.positive}), "
            "not at others"
        )
    return found


def miscalled_in_words(report: Evaluation) -> list[str]:
    """Return a sentence for each class whose probability is too low, or too high, in every bin; at most a few."""
    found = report.calibration.after.miscalled
    said = [
        f"{report.classes[of.index]} is {'under' if of.under else 'over'}-called in every reliability bin: mean "
        f"probability {of.score:.3f}, true of {of.frequency:.3f} of the tiles"
        for of in found[:_FEW_CLASSES]
    ]
    more = len(found) - len(said)
    return [*said, *([f"so are {count(more, 'more class', 'more classes')}, see metrics.json"] if more else [])]


def calibrated(report: Evaluation) -> tuple[Outcome, str]:
    """Return whether probabilities are calibrated, and why.

    No where the ECE exceeds what true probabilities would show on as many tiles; yes only where an ECE of MATTERS_ECE
    would have exceeded it in POWER of such samples.
    """
    after = report.calibration.after
    error, bound, power = after.ece, after.ece_by_chance.quantile_95, after.ece_by_chance.power
    seen = f"; an error of {calibration.MATTERS_ECE:g} would show in {100 * power:.0f}%"
    return verdicts.calibrated(error, bound=bound, power=power), (
        f"expected calibration error {error:.3f}: the mean gap between confidence and "
        f"accuracy; perfectly calibrated probabilities stay below {bound:.3f} in 95% of samples of this size{seen}"
    )


def calibration_rows(report: Evaluation) -> list[tuple[str, float, float]]:
    """Return calibration errors: what they are called, without and with the temperature."""
    found = []
    for key in ("ece", "ece_equal_mass", "brier", "loss", "soft_vote_brier"):
        name = CROSS_ENTROPY if key == "loss" else display_name(key)
        before, after = getattr(report.calibration.before, key), getattr(report.calibration.after, key)
        if after is not None:
            found.append((name, before, after))
    return found


# --- the lines of the terminal ---


def as_text(report: Evaluation) -> str:
    """Return the evaluation as sections for the terminal, each metric with its 95% interval; the notes come last.

    What is left out for brevity is in metrics.json and on the page: per-class metrics, macro F1 and average precision
    of two classes, further calibration errors, accuracy by coverage.
    """
    names = short_names(report.classes, _NAME)
    main = overall_rows(report, names=names) + agreement_rows(report)
    if report.positive is not None:
        main = [row for row in main if row.name not in (display_name("macro_f1"), display_name("average_precision"))]
    width = max(23, *(width_of(row.name) for row in main))  # 80 columns in all
    sections = [
        [f"{'Metrics':<{width + 2}}  value  95% interval", *_lines(main, width=width)],
        _class_lines(report),
        by_place.as_lines(report.by_place) if report.by_place is not None else [],
        _confusion_lines(report, names),
        _calibration_lines(report, width=width),
        _decision_lines(report, width=width),
        _note_lines(report),
    ]
    return "\n\n".join("\n".join(line.rstrip() for line in lines) for lines in sections if lines)


def _class_lines(report: Evaluation) -> list[str]:
    """Return precision, recall and F1 of each class, a line each; none of two, which have sensitivity and so on."""
    if report.positive is not None:
        return []
    names = short_names(report.classes, _SHORT_NAME)
    rows = class_rows(report, names=names)
    shown = [names[i] for i in worst_classes(report.metrics.per_class)]
    width = max([_SHORT_NAME, *map(width_of, shown)])
    lines = [f"{'Classes':<{width + 2}}" + "".join(f"  {key:<20}" for key in ("precision", "recall", "F1"))]
    for i, name in enumerate(shown):
        cells = (_with_interval(row) for row in rows[i * len(OF_A_CLASS) : (i + 1) * len(OF_A_CLASS)])
        lines.append(f"  {left(name, width)}" + "".join(f"  {cell:<20}" for cell in cells))
    left_out = shown_of(len(report.classes))
    return [*lines, *([f"  ({left_out})"] if left_out else [])]


def _with_interval(row: Row) -> str:
    """Return a value and its interval in a few characters, as in "0.87 (0.83 to 0.91)"."""
    if row.value is None:
        return "undefined"
    return with_interval(row.value, row.interval, ".2f") + ("" if row.interval else " (too few)")


def _confusion_lines(report: Evaluation, names: Sequence[str]) -> list[str]:
    """Return the confusion matrix, its columns by number where the names would make it too wide; of many classes, or
    where that is too wide still, the most frequent errors."""
    matrix, what = report.confusion_matrix, "Confusion matrix (rows: truth, columns:"
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
    lines = [f"Most frequent of {count(report.tiles - int(np.trace(matrix)), 'error')} (truth, prediction, tiles)"]
    for truth, predicted, tiles in confusions(matrix):
        lines.append(f"  {left(names[truth], column)}  {left(names[predicted], column)}  {tiles}")
    return [*lines, "  (all are in metrics.json)"]


def _lines(rows: Sequence[Row], *, width: int) -> list[str]:
    """Return rows as lines: value, interval, counts."""
    found = []
    for row in rows:
        shown = "undefined" if row.value is None else f"{row.value:.3f}"
        found.append(f"  {left(row.name, width)}  {shown:<5}  {row.ends:<14}  {row.counts}".rstrip())
    return found


def _calibration_lines(report: Evaluation, *, width: int) -> list[str]:
    found = report.calibration
    head = f"Calibration, temperature {found.temperature:.3f}"
    lines = [f"{head:<{width + 2}}  before  after"]
    for name, before, after in calibration_rows(report):
        if name in (display_name("ece"), display_name("brier")):
            lines.append(f"  {name:<{width}}  {before:<6.3f}  {after:.3f}")
    outcome, _ = calibrated(report)
    lines[1] += f"  {outcome.value}: by chance up to {found.after.ece_by_chance.quantile_95:.3f}"
    return lines


def _decision_lines(report: Evaluation, *, width: int) -> list[str]:
    point, coverage = report.operating_point, report.coverage
    tiles = count(coverage.abstention.chosen_on, "validation tile")
    kind = kind_of_row(report.c).removeprefix("the ")
    lines = [f"Decisions; thresholds, temperature and {kind} are from {tiles}"]
    if point is not None:
        positive = shortened(str(report.positive), _NAME)
        lines.append(f"  {positive} if its probability is at least {point.threshold:.3f} ({point.rule})")
        rows = proportion_rows(point.here, {key: key for key in point.here if key != "accuracy"})
        lines += [f"  {line}" for line in _lines(rows, width=width - 2)]
    here = {name: Row.of(OF_ABSTENTION[name], hit) for name, hit in coverage.abstention.here.items()}
    decided = f"; {here['decided'].counts} are decided" if here["decided"].counts else ""
    lines.append(f"  undecided if its confidence is below {coverage.abstention.threshold:.3f}{decided}")
    return lines + [f"  {line}" for line in _lines([here["accuracy"]], width=width - 2)]


def _note_lines(report: Evaluation) -> list[str]:
    """Return the notes: what is peculiar to this evaluation, then what is to be known of any of two classes."""
    too_few = report.groups is not None and report.groups < FEWEST  # in all, as a caveat says
    particular = [*([] if too_few else _without_interval(report)), *_of_this_one(report)]
    lines = [f"  - {note}" for note in (*report.caveats, *particular)]
    if report.positive is not None:
        prevalence = 100 * report.class_counts[report.positive] / report.tiles
        positive = shortened(str(report.positive), _NAME)
        lines.append(f"  - PPV and NPV hold at this prevalence ({prevalence:.1f}% {positive})")
    return ["Notes", *lines] if lines else []
