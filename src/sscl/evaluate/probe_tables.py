"""The tables of a probe and their legend."""

from __future__ import annotations

from collections.abc import Sequence

from sscl.evaluate.intervals import GROUPS, Interval
from sscl.evaluate.metrics import display_name
from sscl.evaluate.probe_report import ProbeResults
from sscl.evaluate.probe_results import OverRuns, Place
from sscl.evaluate.probe_shots import OverDraws, ShotPlace
from sscl.evaluate.robustness import NAMES
from sscl.evaluate.tables import Table, as_text
from sscl.words import left as padded
from sscl.words import short_names, shortened, width_of

NOT_HERE = "weights are not on this disk"
_COLUMNS = 80
_NAME = 20  # columns of an encoder's name in the terminal


def probe_tables(found: ProbeResults, *, reference: str | None) -> list[Table]:
    """Return a table for each set, fraction and part: rows are encoders.

    Columns: linear probe (balanced accuracy), its macro F1, kNN (balanced accuracy); in the table of the largest
    fraction also SimpleShot (balanced accuracy) by shots, and the robustness index; then the differences to the
    reference. An encoder whose weights are missing is a row that says so.
    """
    most = max((row.fraction for row in found.summary), default=1.0)
    tables = []
    for where, fraction, part in dict.fromkeys((row.set, row.fraction, row.part) for row in found.summary):
        here = [row for row in found.summary if (row.set, row.fraction, row.part) == (where, fraction, part)]
        names = list(dict.fromkeys(row.encoder for row in here))
        columns = _columns_of_runs(found, (where, part, fraction), names)
        gains = [] if reference is None else _gains_of_runs(found, (where, part, fraction), reference, names)
        if fraction == most:
            columns += _columns_of_shots(found, (where, part), names)
            columns.append(_robustness(found, where, names))
            gains += [] if reference is None else _gains_of_the_rest(found, (where, part), reference, names)
        columns += gains
        rows = [["encoder", *(header for header, _ in columns)]]
        rows += [[name, *(cells[index] for _, cells in columns)] for index, name in enumerate(names)]
        rows += [[one.name, NOT_HERE, *[""] * (len(columns) - 1)] for one in found.missing]
        title = f"{where}, {part}: {percent(fraction)} of the training labels ({here[0].labels:,} tiles)"
        tables.append(Table(title, rows))
    return tables


Column = tuple[str, list[str]]  # its header, and a cell of each encoder


def _columns_of_runs(found: ProbeResults, at: tuple[str, str, float], names: Sequence[str]) -> list[Column]:
    of = {(row.encoder, row.place): row for row in found.summary}
    linear = [of[name, Place(*at, "linear")] for name in names]
    knn = [of[name, Place(*at, "knn")] for name in names]
    return [
        ("linear", [_cell(row.balanced_accuracy) for row in linear]),
        (display_name("macro_f1"), [_cell(row.macro_f1, interval=False) for row in linear]),
        ("kNN", [_cell(row.balanced_accuracy) for row in knn]),
    ]


def _gains_of_runs(
    found: ProbeResults, at: tuple[str, str, float], reference: str, names: Sequence[str]
) -> list[Column]:
    of = {(row.encoder, row.place): row.balanced_accuracy for row in found.differences}
    columns = []
    for header, classifier in (("linear", "linear"), ("kNN", "knn")):
        gains = [of.get((name, Place(*at, classifier))) for name in names]  # type: ignore[arg-type]
        columns.append((f"{header} − {reference}", ["" if one is None else _cell(one, sign="+") for one in gains]))
    return columns


def _columns_of_shots(found: ProbeResults, part: tuple[str, str], names: Sequence[str]) -> list[Column]:
    of = {(row.encoder, row.place): row.balanced_accuracy for row in found.few_shot}
    numbers = sorted({row.shots for row in found.few_shot if row.place[:2] == part})
    return [
        (
            _shots(shots),
            [_draws_cell(of.get((name, ShotPlace(*part, shots))), interval=shots == numbers[-1]) for name in names],
        )
        for shots in numbers
    ]


def _robustness(found: ProbeResults, where: str, names: Sequence[str]) -> Column:
    of = {row.encoder: row for row in found.robustness if row.set == where}
    cells = []
    for name in names:
        row = of.get(name)
        known = row is not None and row.index is not None
        cells.append(_ends(f"{row.index:.3f}", row.interval) if known and row is not None else "unknown")
    return "robustness", cells


def _gains_of_the_rest(
    found: ProbeResults, part: tuple[str, str], reference: str, names: Sequence[str]
) -> list[Column]:
    columns = []
    of = {(row.encoder, row.place): row.balanced_accuracy for row in found.few_shot_differences}
    numbers = sorted({row.shots for row in found.few_shot_differences if row.place[:2] == part})
    for shots in numbers[-1:]:
        gains = [of.get((name, ShotPlace(*part, shots))) for name in names]
        columns.append((f"{_shots(shots)} − {reference}", [_draws_cell(one, sign="+") for one in gains]))
    gained = {row.encoder: row for row in found.robustness_differences if row.set == part[0]}
    if gained:
        cells = [
            _ends(f"{gained[name].difference:+.3f}", gained[name].interval, sign="+") if name in gained else ""
            for name in names
        ]
        columns.append((f"robustness − {reference}", cells))
    return columns


def _shots(number: int) -> str:
    return f"{number} shot{'s' * (number > 1)}"


def _cell(value: OverRuns, *, interval: bool = True, sign: str = "") -> str:
    """Return 0.731 (0.702 to 0.760), with ± sd in between where there are several runs."""
    text = f"{value.mean:{sign}.3f}" + ("" if value.sd is None else f" ± {value.sd:.3f}")
    return _ends(text, value.interval, sign=sign) if interval else text


def _draws_cell(value: OverDraws | None, *, interval: bool = True, sign: str = "") -> str:
    if value is None:
        return ""
    text = f"{value.mean:{sign}.3f}"
    return _ends(text, value.interval, sign=sign) if interval else text


def _ends(text: str, interval: Interval | None, *, sign: str = "") -> str:
    return text if interval is None else f"{text} ({interval[0]:{sign}.3f} to {interval[1]:{sign}.3f})"


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
        f"the mean's {interval_method()}",
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


def interval_method() -> str:
    """Return how intervals are made."""
    return (
        "95% interval: over other tiles (whole groups, where these are known: "
        f"{GROUPS}), and of several runs also over other seeds and label seeds"
    )


def percent(fraction: float) -> str:
    """Return a fraction as 100%, 2.5%."""
    return f"{100 * fraction:.6g}%"
