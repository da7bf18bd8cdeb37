"""The tables of a probe and their legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sscl.evaluate.intervals import GROUPS, Interval, ends_text, with_interval
from sscl.evaluate.metrics import display_name
from sscl.evaluate.probe_report import ProbeResults
from sscl.evaluate.probe_results import Gain, OverRuns, Summary
from sscl.evaluate.probe_shots import FewShot
from sscl.evaluate.robustness import NAMES, Robustness
from sscl.evaluate.tables import Table, as_text
from sscl.records import Record
from sscl.words import left as padded
from sscl.words import short_names, shortened, width_of

INTERVAL_METHOD = (
    f"95% interval: over other tiles (whole groups, where these are known: {GROUPS}), and of several runs also over "
    "other seeds and label seeds"
)
NOT_HERE = "weights are not on this disk"
_COLUMNS = 80
_NAME = 20  # columns of an encoder's name in the terminal


Column = tuple[str, dict[str, str]]  # its header, and the cell of each encoder that has one
Row = TypeVar("Row", bound=Record)


def probe_tables(found: ProbeResults, *, reference: str | None) -> list[Table]:
    """Return a table for each set, fraction and part: rows are encoders.

    Columns: linear probe (balanced accuracy), its macro F1, kNN (balanced accuracy); in the table of the largest
    fraction also SimpleShot (balanced accuracy) by shots, and the robustness index; then the differences to the
    reference. An encoder whose weights are missing is a row that says so.
    """
    most = max((row.fraction for row in found.summary), default=1.0)
    tables = []
    for where, fraction, part in dict.fromkeys((row.set, row.fraction, row.part) for row in found.summary):
        here = _those(found.summary, set=where, fraction=fraction, part=part)
        names = list(dict.fromkeys(row.encoder for row in here))
        gained = _those(found.differences, set=where, fraction=fraction, part=part)
        columns = _columns_of_runs(here)
        gains = [] if reference is None else _gains_of_runs(gained, reference)
        if fraction == most:
            columns += _columns_of_shots(_those(found.few_shot, set=where, part=part))
            columns.append(_robustness(_those(found.robustness, set=where), names))
            gains += [] if reference is None else _gains_of_the_rest(found, where, part, reference)
        columns += gains
        rows = [["encoder", *(header for header, _ in columns)]]
        rows += [[name, *(cells.get(name, "") for _, cells in columns)] for name in names]
        rows += [[one.name, NOT_HERE, *[""] * (len(columns) - 1)] for one in found.missing]
        title = f"{where}, {part}: {percent(fraction)} of the training labels ({here[0].labels:,} tiles)"
        tables.append(Table(title, rows))
    return tables


def _those(rows: Sequence[Row], **facts: object) -> list[Row]:
    """Return the rows that are of these."""
    return [row for row in rows if all(getattr(row, key) == value for key, value in facts.items())]


def _columns_of_runs(rows: Sequence[Summary]) -> list[Column]:
    linear, knn = (_those(rows, classifier=name) for name in ("linear", "knn"))
    return [
        ("linear", {row.encoder: _cell(row.balanced_accuracy) for row in linear}),
        (display_name("macro_f1"), {row.encoder: _cell(row.macro_f1, interval=False) for row in linear}),
        ("kNN", {row.encoder: _cell(row.balanced_accuracy) for row in knn}),
    ]


def _gains_of_runs(rows: Sequence[Gain], reference: str) -> list[Column]:
    return [
        (
            f"{header} − {reference}",
            {row.encoder: _cell(row.balanced_accuracy, sign="+") for row in _those(rows, classifier=name)},
        )
        for header, name in (("linear", "linear"), ("kNN", "knn"))
    ]


def _columns_of_shots(rows: Sequence[FewShot]) -> list[Column]:
    numbers = sorted({row.shots for row in rows})
    return [
        (
            _shots(shots),
            {
                row.encoder: _cell(row.balanced_accuracy, sd=False, interval=shots == numbers[-1])
                for row in _those(rows, shots=shots)
            },
        )
        for shots in numbers
    ]


def _robustness(rows: Sequence[Robustness], names: Sequence[str]) -> Column:
    known = {row.encoder: with_interval(row.index, row.interval) for row in rows if row.index is not None}
    return "robustness", dict.fromkeys(names, "unknown") | known


def _gains_of_the_rest(found: ProbeResults, where: str, part: str, reference: str) -> list[Column]:
    columns = []
    gained = _those(found.few_shot_differences, set=where, part=part)
    if gained:
        most = max(row.shots for row in gained)
        cells = {row.encoder: _cell(row.balanced_accuracy, sd=False, sign="+") for row in _those(gained, shots=most)}
        columns.append((f"{_shots(most)} − {reference}", cells))
    robust = _those(found.robustness_differences, set=where)
    if robust:
        cells = {row.encoder: with_interval(row.difference, row.interval, "+.3f") for row in robust}
        columns.append((f"robustness − {reference}", cells))
    return columns


def _shots(number: int) -> str:
    return f"{number} shot{'s' * (number > 1)}"


def _cell(value: OverRuns, *, sd: bool = True, interval: bool = True, sign: str = "") -> str:
    """Return 0.731 (0.702 to 0.760), with ± sd in between where it is wanted and there are several runs."""
    text = f"{value.mean:{sign}.3f}" + (f" ± {value.sd:.3f}" if sd and value.sd is not None else "")
    ends = value.interval if interval else None
    return text if ends is None else f"{text} ({ends_text(ends, f'{sign}.3f')})"


def in_columns(table: Table) -> str:
    """Return a table for the terminal, its columns below each other where they are wider than it in all."""
    header, *rows = table.lines
    names = ["encoder", *short_names([row[0] for row in rows], _NAME)]
    room = _COLUMNS - max(map(width_of, names))
    missing = [row[1] == NOT_HERE for row in rows]
    blocks: list[list[int]] = []
    left = 0
    for index in range(1, len(header)):
        cells = [_header(header[index]), *(row[index] for row, absent in zip(rows, missing, strict=True) if not absent)]
        width = 2 + max(map(width_of, cells))
        if not blocks or width > left:
            blocks.append([])
            left = room
        blocks[-1].append(index)
        left -= width
    parts = []
    for number, block in enumerate(blocks):
        lines = [[names[0], *(_header(header[i]) for i in block)]]
        kept = zip(names[1:], rows, missing, strict=True)
        lines += [[name, *(row[i] for i in block)] for name, row, absent in kept if not absent]
        text = as_text(lines, texts=len(lines[0]))
        gone = [name for name, absent in zip(names[1:], missing, strict=True) if absent and number == 0]
        parts.append("\n".join([text, *(f"{padded(name, _COLUMNS - room)}  {NOT_HERE}" for name in gone)]))
    return "\n\n".join(parts)


def _header(text: str) -> str:
    """Return a header with the name of the reference shortened."""
    what, sign, reference = text.partition(" − ")
    return f"{what}{sign}{shortened(reference, 12)}"


def legend(found: ProbeResults, *, neighbours: int, reference: str | None) -> list[str]:
    """Return what the numbers in the tables are, a sentence each."""
    lines = [
        "linear: balanced accuracy of logistic regression on frozen features, C chosen on validation; macro F1 of the "
        f"same; kNN: balanced accuracy, k = {neighbours}, cosine",
        "± sd over seeds and label seeds (with all labels, label seeds change the validation tiles only); in brackets "
        f"the mean's {INTERVAL_METHOD}",
    ]
    if any(interval is None for interval in _intervals(found)):
        lines.append("without brackets: too few slides (or tiles of a class) for an interval")
    if found.few_shot:
        lines.append(
            "shots: balanced accuracy of SimpleShot (nearest class mean of so many tiles a class), mean over "
            f"{found.few_shot[0].draws} draws of these from all training labels; its interval is over draws and tiles"
        )
    lines += robustness_legend(found)
    if reference is not None:
        lines.append(
            f"− {reference}: mean difference over pairs of the same seed, label seed and draw, ± their sd, and its 95% "
            "interval, tile by tile"
        )
    return lines


def _intervals(found: ProbeResults) -> list[Interval | None]:
    """Return the intervals that the tables show of what is known; None = too few slides or tiles."""
    return [
        *(row.balanced_accuracy.interval for row in found.summary),
        *(row.balanced_accuracy.interval for row in found.few_shot),
        *(row.interval for row in found.robustness if row.index is not None),
    ]


def robustness_legend(found: ProbeResults) -> list[str]:
    """Return what the robustness index of each set is, and why it is unknown."""
    lines = []
    for where in dict.fromkeys(row.set for row in found.robustness):
        row = next(row for row in found.robustness if row.set == where)
        one = NAMES[row.confounder]
        chance = "" if row.chance is None else f"; random neighbours give {row.chance:.3f}"
        lines.append(
            f"robustness on {where}: of those among the {row.neighbours} nearest tiles that share the class or the "
            f"{one}, but not both, the share with the class{chance}; {row.tiles:,} tiles"
        )
    return lines + [f"robustness on {one.set}: unknown, {one.why}" for one in found.robustness_unknown]


def percent(fraction: float) -> str:
    """Return a fraction as 100%, 2.5%."""
    return f"{100 * fraction:.6g}%"
