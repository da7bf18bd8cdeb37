"""The tables of a probe and their legend."""

from __future__ import annotations

from collections.abc import Sequence

from sscl.evaluate.intervals import GROUPS
from sscl.evaluate.metrics import display_name
from sscl.evaluate.probe_results import Gain, OverRuns, Place, Summary
from sscl.evaluate.tables import Table


def probe_tables(summary: Sequence[Summary], gains: Sequence[Gain], *, reference: str | None) -> list[Table]:
    """Return a table for each set and fraction: rows are encoders, columns are metrics on each part.

    Linear probe (balanced accuracy), its macro F1, kNN (balanced accuracy), and with a reference the difference of the
    linear probe's balanced accuracy to it.
    """
    by_place = {(row.encoder, row.place): row for row in summary}
    gain_of = {(row.encoder, row.place): row.balanced_accuracy for row in gains}
    names = list(dict.fromkeys(row.encoder for row in summary))
    found = []
    for where, fraction in dict.fromkeys((row.set, row.fraction) for row in summary):
        here = [row for row in summary if (row.set, row.fraction) == (where, fraction)]
        parts = list(dict.fromkeys(row.part for row in here))
        header = ["encoder"]
        for part in parts:
            header += [f"{part}: linear", display_name("macro_f1"), "kNN"]
            header += [f"linear − {reference}"] if reference else []
        rows = [header]
        for name in names:
            cells = [name]
            for part in parts:
                place = Place(where, part, fraction, "linear")
                linear, knn = by_place[name, place], by_place[name, place._replace(classifier="knn")]
                cells += [_cell(linear.balanced_accuracy), _cell(linear.macro_f1, interval=False)]
                cells.append(_cell(knn.balanced_accuracy, interval=False))
                if reference:
                    gain = gain_of.get((name, place))
                    cells.append("" if gain is None else _cell(gain, sign="+"))
            rows.append(cells)
        title = f"{where}: {percent(fraction)} of the training labels ({here[0].labels:,} tiles)"
        found.append(Table(title, rows))
    return found


def _cell(value: OverRuns, *, interval: bool = True, sign: str = "") -> str:
    """Return 0.731 (0.702 to 0.760), with ± sd in between where there are several runs."""
    text = f"{value.mean:{sign}.3f}" + ("" if value.sd is None else f" ± {value.sd:.3f}")
    if not interval or value.interval is None:
        return text
    low, high = value.interval
    return f"{text} ({low:{sign}.3f} to {high:{sign}.3f})"


def legend(*, neighbours: int, reference: str | None) -> list[str]:
    """Return what the numbers in the tables are, a sentence each."""
    lines = [
        "linear: balanced accuracy of logistic regression on frozen features, C chosen on validation; macro F1 of the "
        f"same; kNN: balanced accuracy, k = {neighbours}, cosine",
        "± sd over seeds and label seeds (with all labels, label seeds change the validation tiles only); in brackets "
        f"the mean's {interval_method()}",
    ]
    if reference is not None:
        lines.append(
            f"linear − {reference}: mean difference over pairs of the same seed and label seed, ± their sd, and its "
            "95% interval, tile by tile"
        )
    return lines


def interval_method() -> str:
    """Return how intervals are made."""
    return (
        "95% interval: over other tiles (whole groups, where these are known: "
        f"{GROUPS}), and of several runs also over other seeds and label seeds"
    )


def percent(fraction: float) -> str:
    """Return a fraction as 100%, 2.5%."""
    return f"{100 * fraction:.6g}%"
