"""Sections that set classifiers side by side: a comparison, a cross-validation, further runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sscl.evaluate.comparison import Comparison
from sscl.evaluate.comparison_tables import comparison_tables
from sscl.evaluate.metrics import display_name
from sscl.evaluate.records import Evaluation
from sscl.metrics_log import MetricsRow
from sscl.plots import comparison as comparison_plots
from sscl.report import blocks
from sscl.report.blocks import Block, Section, interval, number
from sscl.train.fold_report import FoldsReport, Scores
from sscl.words import some

FOLD_METRICS = {key: display_name(key) for key in ("accuracy", "balanced_accuracy", "macro_f1", "auroc")}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def compared(name: str, report: Comparison, *, logs: Mapping[str, Sequence[MetricsRow]]) -> Section:
    """Return a comparison of runs. logs: rows of metrics.jsonl by run folder; those not given are not drawn."""
    found: list[Block] = [blocks.facts({"classes": some(report.classes)})]
    for table in comparison_tables(report):
        found.append(blocks.table(_capital(table.title), table.lines, numeric_from=table.texts))
    by_fraction: dict[str, dict[str, list[Sequence[MetricsRow]]]] = {}
    lines_of: dict[str, list[tuple[int, list[float]]]] = {}
    for row in report.rows:
        labels = "" if row.fraction is None else f"{100 * row.fraction:g}% labels"
        of = [logs[one.folder] for one in row.runs if one.folder in logs]
        if len(of) == len(row.runs):
            by_fraction.setdefault(labels, {})[row.entry] = of
        if row.labelled_tiles is not None:
            values = [one.metrics["balanced_accuracy"] for one in row.runs]
            lines_of.setdefault(row.entry, []).append((row.labelled_tiles, values))
    if by_fraction:
        for at, (labels, rows) in enumerate(by_fraction.items()):  # one below another: side by side they are too wide
            found.append(
                blocks.figure(
                    f"{name}-curves-{at}",
                    lambda path, labels=labels, rows=rows: comparison_plots.plot_overlaid(  # type: ignore[misc]
                        {labels: rows},
                        series=[("validation accuracy", "validation_accuracy"), ("validation loss", "validation_loss")],
                        path=path,
                        title="",
                    ),
                    alt=f"Validation accuracy and loss by epoch{f', {labels}' if labels else ''}, of {', '.join(rows)}",
                    caption=f"Validation by epoch{f', {labels}' if labels else ''}; thin: one run; thick: mean over "
                    "the runs of a row.",
                )
            )
    if any(len(points) > 1 for points in lines_of.values()):
        worded = [
            f"{entry}: " + ", ".join(f"{sum(values) / len(values):.3f} with {count:,}" for count, values in points)
            for entry, points in lines_of.items()
        ]
        found.append(
            blocks.figure(
                f"{name}-labels",
                lambda path: comparison_plots.plot_label_curve(
                    lines_of, measure="balanced accuracy", path=path, title=""
                ),
                alt=f"Mean balanced accuracy by labelled tiles. {'; '.join(worded)}",
                caption="Balanced accuracy against the number of labelled tiles.",
            )
        )
    found += [blocks.paragraph(blocks.sentence(report.interval_method)), blocks.bullets(report.caveats)]
    return blocks.section(name, "Comparison", found, hint="of several runs on the same tiles")


def folds(name: str, report: FoldsReport) -> Section:
    """Return a cross-validation; the intervals of single folds are in its chart."""
    lines = [["held out", "tiles", *FOLD_METRICS.values(), "loss"]]
    for one in report.runs:
        cells = [number(one.value(key)) for key in FOLD_METRICS]
        lines.append([f"fold {one.fold}", str(one.tiles), *cells, number(one.loss)])
    pooled = report.pooled
    if pooled is not None:
        cells = [number(pooled.value(key)) for key in FOLD_METRICS]
        lines.append(["all, pooled", str(pooled.tiles), *cells, number(pooled.loss)])
        lines.append(["95% interval", "", *(interval(pooled.interval(key)) for key in FOLD_METRICS), ""])
    if report.mean is not None and report.sd is not None:
        pairs = [(report.mean[key], report.sd[key]) for key in (*FOLD_METRICS, "loss")]
        over = [number(mean) + ("" if sd is None else f" ± {number(sd)}") for mean, sd in pairs]
        lines.append(["mean ± sd of folds", "", *over])
    of = f"{blocks.name_of(report.data.root)}, {report.data.size_px} px ({some(report.classes)})"
    found: list[Block] = [blocks.table(f"{report.folds} folds of the training split of {of}", lines)]
    if pooled is not None:

        def series(one: Scores) -> dict[str, tuple[float | None, tuple[float, float] | None]]:
            return {title: (one.value(key), one.interval(key)) for key, title in FOLD_METRICS.items()}

        by_fold = [series(one) for one in report.runs]
        found.append(
            blocks.figure(
                name,
                lambda path: comparison_plots.plot_folds(
                    {title: [one[title] for one in by_fold] for title in FOLD_METRICS.values()},
                    pooled=series(pooled),
                    path=path,
                    title=f"{report.folds} folds, {pooled.tiles} held-out tiles",
                ),
                alt="Metrics of each fold with intervals; pooled "
                + ", ".join(f"{title} {number(pooled.value(key))}" for key, title in FOLD_METRICS.items()),
                caption="Each fold is evaluated on tiles that its model was not trained on.",
            )
        )
    found += [blocks.paragraph(blocks.sentence(report.interval_method)), blocks.bullets(report.caveats)]
    return blocks.section(name, "Cross-validation", found, hint="each part of the training tiles held out once")


def others(rows: Mapping[str, Evaluation]) -> Section:
    """Return the main metrics of further classifiers, by what each is called."""
    lines = [["run", "tiles", *FOLD_METRICS.values()]]
    for name, report in rows.items():
        cells = []
        for key in FOLD_METRICS:
            drawn = getattr(report.intervals, key)
            value = number(getattr(report.metrics, key))
            cells.append(value + (f" ({interval(drawn)})" if drawn is not None else ""))
        lines.append([name, f"{report.tiles:,}", *cells])
    text = (
        "Whether two runs differ cannot be read from their separate intervals; sscl compare RUN RUN compares them tile "
        "by tile."
    )
    found: list[Block] = [blocks.table("As evaluated", lines), blocks.paragraph(text)]
    return blocks.section("others", "Further runs", found, hint="other classifiers")
