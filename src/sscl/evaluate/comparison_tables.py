"""The tables of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sscl.evaluate.comparison import METRICS, Comparison, Difference
from sscl.evaluate.intervals import Interval, ends_text
from sscl.evaluate.metrics import display_name
from sscl.evaluate.tables import Table

NAMES = [display_name(metric) for metric in METRICS]


def comparison_tables(report: Comparison) -> list[Table]:
    """Return the tables of a comparison."""
    found = [_rows(report)]
    if len(report.seeds) > 1:
        lines = [["row", "seed", *NAMES]]
        for row in report.rows:
            for run in row.runs:
                cells = [_cell(run.metrics[metric], interval=run.intervals[metric]) for metric in METRICS]
                lines.append([row.name, str(run.seed), *cells])
        found.append(Table("by seed, 95% interval", lines))
    if report.differences:
        found += [_differences(report.differences, report.seeds), _tests(report.differences, report.seeds)]
    return found


def _rows(report: Comparison) -> Table:
    seeds = report.seeds
    published = [metric for metric in METRICS if any(metric in row.published for row in report.rows)]
    counted = any(row.labelled_tiles is not None for row in report.rows)
    header = ["row", *(["labelled tiles"] if counted else []), *NAMES]
    header += [text for metric in published for text in (f"published {display_name(metric)}", "ours - published")]
    lines = [header]
    for row in report.rows:
        cells = [row.name, *([f"{row.labelled_tiles:,}"] if counted else [])]
        for metric in METRICS:
            interval = row.runs[0].intervals[metric] if len(seeds) < 2 else None
            cells.append(_cell(row.mean[metric], sd=row.sd[metric], interval=interval))
        for metric in published:
            value = row.published.get(metric)
            cells += ["", ""] if value is None else [f"{value:.4f}", f"{row.ours_minus_published[metric]:+.4f}"]
        lines.append(cells)
    over = "95% interval" if not seeds else f"seed {seeds[0]}, 95% interval"
    over = over if len(seeds) < 2 else f"mean ± sd over seeds {', '.join(map(str, seeds))}"
    return Table(f"{report.split} split, {report.tiles} tiles; {over}", lines)


def _differences(differences: Mapping[str, Difference], seeds: Sequence[int]) -> Table:
    """Return the table of paired differences: a line a metric, with the verdict of its interval."""
    several = len(seeds) > 1
    lines = [["row - reference", "metric", "mean ± sd" if several else "difference", "95% interval", "verdict"]]
    for name, one in differences.items():
        for metric, text in zip(METRICS, NAMES, strict=True):
            ends = one.intervals[metric]
            value = _cell(one.mean[metric], sd=one.sd[metric], sign="+")
            pair = f"{name} - {one.against}"
            lines.append([pair, text, value, "" if ends is None else ends_text(ends, "+.4f"), one.verdicts[metric]])
    over = "mean ± sd over seeds, " if several else ""
    return Table(f"paired differences: {over}95% interval over the same tiles", lines, texts=2)


def _tests(differences: Mapping[str, Difference], seeds: Sequence[int]) -> Table:
    """Return the table of McNemar's tests, a line a pair of runs."""
    several = len(seeds) > 1
    corrected = sum(len(one.mcnemar) for one in differences.values()) > 1
    lines = [["row against reference", *(["seed"] if several else []), "row alone right", "reference alone right", "p"]]
    lines[0] += ["p, Holm"] if corrected else []
    for name, one in differences.items():
        for i, test in enumerate(one.mcnemar):
            cells = [f"{name} against {one.against}", *([str(seeds[i])] if several else [])]
            cells += [str(test.only_row), str(test.only_reference), _p(test.p)]
            lines.append(cells + ([_p(test.p_holm)] if corrected else []))
    return Table("McNemar's exact test: tiles that only one of the two predicts correctly", lines)


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"


def _cell(value: float, *, sd: float | None = None, interval: Interval | None = None, sign: str = "") -> str:
    text = f"{value:{sign}.4f}"
    if sd is not None:
        text += f" ± {sd:.4f}"
    if interval is not None:
        text += f" ({ends_text(interval, f'{sign}.4f')})"
    return text
