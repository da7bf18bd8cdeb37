"""The parts of a model card that eval writes, each between two marker lines: test metrics, and those of other sets.

Everything else is the user's. Folders are named by their last part alone, so that a card can be passed on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sscl import run, writing
from sscl.config import DataConfig
from sscl.evaluate.evaluation_text import OF_ABSTENTION, Row, proportion_rows, rows_of
from sscl.evaluate.metric_intervals import Intervals
from sscl.evaluate.metrics import Metrics, display_name, shown_of, worst_classes
from sscl.evaluate.proportions import Proportions
from sscl.evaluate.records import Evaluation
from sscl.evaluate.tables import as_markdown, code, escaped, one_line
from sscl.metrics_log import name_of_row
from sscl.words import listed

FILE = "MODEL_CARD.md"
BEGIN = "<!-- sscl eval writes from here -->"
END = "<!-- sscl eval writes to here -->"
SHOWN = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "mcc")


def test_section(report: Evaluation, *, trained_on: Sequence[DataConfig], folder: Path) -> str:
    """Return what goes between the marker lines: the metrics of an evaluation and what to know of them.

    Args:
        report: of the test split, or of another set. folder: that of the evaluation.
        trained_on: the data sections that the weights were trained on; the last is that of the labels.
    """
    environment = run.environment()
    given = report.metrics, report.proportions, report.intervals
    rows = metric_rows(report.classes, report.positive, *given, groups=report.groups)
    point, abstention = report.operating_point, report.coverage.abstention
    if point is not None:
        names = {
            key: f"{code(report.positive)} {display_name(key)} at p >= {point.threshold:.3f}"
            for key in ("sensitivity", "specificity")
        }
        rows += [row for row in proportion_rows(point.here, names) if row.value is not None]
    names = OF_ABSTENTION | {"decided": f"tiles decided at confidence >= {abstention.threshold:.3f}"}
    rows += [row for row in proportion_rows(abstention.here, names) if row.value is not None]
    roots = [section.root for section in (report.data, *trained_on)]
    lines = [
        f"By `sscl eval` (sscl {environment.sscl}) on {environment.date[:10]}; all results: "
        f"{code(folder.resolve().name + '/metrics.json')}.",
        "",
        as_markdown([["", ""], *_facts(report, trained_on[-1])], texts=2),
        "",
        as_markdown([["metric", "value", "95% interval", "tiles"], *map(cells, rows)]),
        "",
        f"{one_line(report.interval_method)}."
        + (f" Of the recalls {shown_of(len(report.classes))}." if shown_of(len(report.classes)) else ""),
    ]
    if report.caveats:
        lines += ["", "Before trusting these metrics:", ""]
        lines += [f"- {_pathless(text, roots=roots)}" for text in report.caveats]
    return "\n".join(lines)


def _facts(report: Evaluation, trained: DataConfig) -> list[list[str]]:
    same = not report.external and Path(report.data.root).resolve() == Path(trained.root).resolve()
    after = report.calibration.after
    counts = [f"{number} {code(label)}" for label, number in report.class_counts.items()]
    return [
        ["set", set_name(report.data) + ("" if same else ", **not the set of training**")],
        ["synthetic tiles" if report.synthetic else "tiles", f"{report.tiles} ({listed(counts)})"],
        ["checkpoint", name_of_row(report.epoch, report.c)],
        ["temperature", f"{report.calibration.temperature:.3f}"],
        [
            "expected calibration error",
            f"{after.ece:.3f} (perfect calibration: below {after.ece_by_chance.quantile_95:.3f} in 95%)",
        ],
        ["Brier score, 0 to 2", f"{after.brier:.3f}"],
        ["test-time augmentation", "8 flips and rotations" if report.test_time_augmentation else "none"],
    ]


class ExternalPart(NamedTuple):
    """The part of a card for a set that was not trained on: its heading and its two marker lines."""

    title: str
    begin: str
    end: str


def external_part(data: DataConfig, *, split: str) -> ExternalPart:
    """Return the part of another set, or of reviewed tiles; evaluated again, the same folder and split replace it."""
    of = f"{Path(data.root).resolve()}\0{split}" + "\0reviewed" * bool(data.reviews)
    key = hashlib.sha256(of.encode()).hexdigest()[:8]
    name = one_line(last_part(data.root)) + ("" if split == "all" else f", {split} split")
    marker = BEGIN.replace("sscl eval", f"sscl eval of external set {key}")
    kind = "Reviewed" if data.reviews else "External"
    return ExternalPart(f"{kind}: {name}", marker, marker.replace("from here", "to here"))


def refresh(path: Path, section: str, *, external: ExternalPart | None = None) -> str | None:
    """Put a section between the marker lines of a card; return in words why not, None where it was done.

    Each marker must stand on a line of its own, once and in order. Nothing else in the file changes, nor do its line
    ends. An external part that the card does not have yet comes after the test metrics and those of other sets.
    """
    if not path.is_file():
        return f"{path}: no such file"
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return f"{path} is not UTF-8 text; it was left unchanged"
    lines = text.splitlines(keepends=True)
    begin, finish = (BEGIN, END) if external is None else (external.begin, external.end)
    if external is not None and not {begin, finish} & {line.strip() for line in lines}:
        lines = _with_external(lines, external)
    begins, ends = ([i for i, line in enumerate(lines) if line.strip() == marker] for marker in (begin, finish))
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        return f"{path} does not have the two marker lines once each ({begin} and {finish}); it was left unchanged"
    first = lines[begins[0]]
    end = first[len(first.rstrip("\r\n")) :]
    new = [line + end for line in ("", *section.split("\n"), "")]
    changed = "".join([*lines[: begins[0] + 1], *new, *lines[ends[0] :]])
    with writing.replacing(path) as temporary:
        temporary.write_bytes(changed.encode("utf-8"))
    return None


def _with_external(lines: list[str], external: ExternalPart) -> list[str]:
    """Return the lines of a card with an empty part for another set, after the last that eval writes, or at its end.

    The line ends are those of the card.
    """
    after = [i for i, line in enumerate(lines) if line.startswith("<!-- sscl eval") and "writes to here" in line]
    place = after[-1] + 1 if after else len(lines)
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if place and not lines[place - 1].endswith("\n"):
        lines = [*lines[: place - 1], lines[place - 1] + end, *lines[place:]]
    part = ["", f"## {escaped(external.title)}", "", external.begin, external.end]
    return [*lines[:place], *(line + end for line in part), *lines[place:]]


def metric_rows(
    classes: Sequence[str],
    positive: str | None,
    values: Metrics,
    shares: Proportions,
    intervals: Intervals,
    *,
    groups: object,
) -> list[Row]:
    """Return the metrics that a card shows; of the positive class sensitivity and specificity, else every recall.

    Args:
        classes: K names. positive: name of the positive class of two, or None. groups: of the tiles, or None.
    """
    rows = rows_of(values, intervals, shares, SHOWN, groups=groups)
    if positive is not None:
        keys = ("sensitivity", "specificity")
        return rows + rows_of(values, intervals, shares, keys, of=code(positive), groups=groups)
    for i in worst_classes(values.per_class):
        of_class = values.per_class[i], intervals.per_class[i], shares.per_class[i]
        rows += rows_of(*of_class, ("recall",), of=code(classes[i]), groups=groups)
    return rows


def cells(row: Row) -> list[str]:
    """Return a row of a card: name, value, interval, counts."""
    return [row.name, "undefined" if row.value is None else f"{row.value:.3f}", row.ends, row.counts]


def set_name(data: DataConfig) -> str:
    """Return a set as a card names it: without its folder, with its source."""
    protocol = f", protocol {data.protocol}" if data.source == "mhist" else ""
    return f"{code(last_part(data.root))} ({data.source}{protocol})"


def last_part(path: str) -> str:
    """Return the last part of a path; of a file in a run's checkpoints/, with the run's name."""
    whole = Path(path).resolve()
    return "/".join(whole.parts[-3:]) if whole.parent.name == "checkpoints" else whole.name


def _pathless(text: str, *, roots: Sequence[str]) -> str:
    """Return a sentence as text, with folders by their last part alone."""
    whole = {Path(root).resolve() for root in roots}
    for path in sorted(whole, key=lambda path: -len(path.parts)):  # a folder in another first
        if path.name:
            text = text.replace(str(path), path.name)
    return escaped(text)
