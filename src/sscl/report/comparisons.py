"""Sections that set classifiers side by side: a comparison, a cross-validation, further runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sscl.evaluate.comparison import Comparison
from sscl.evaluate.comparison_tables import comparison_tables
from sscl.evaluate.evaluation import Evaluation
from sscl.evaluate.metrics import display_name
from sscl.plots import comparison as comparison_plots
from sscl.report import blocks
from sscl.report.blocks import Block, Section, interval, number
from sscl.run import MetricsRow

Json = Mapping[str, Any]
FOLD_METRICS = {key: display_name(key) for key in ("accuracy", "balanced_accuracy", "macro_f1", "auroc")}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def compared(name: str, report: Comparison, *, logs: Mapping[str, Sequence[MetricsRow]]) -> Section:
    """Return a comparison of runs. logs: rows of metrics.jsonl by run folder; those not given are not drawn."""
    found: list[Block] = [blocks.facts({"classes": ", ".join(report.classes)})]
    for table in comparison_tables(report):
        found.append(blocks.table(_capital(table.title), table.lines, numeric_from=table.texts))
    shares: dict[str, dict[str, list[Sequence[MetricsRow]]]] = {}
    lines_of: dict[str, list[tuple[int, list[float]]]] = {}
    for row in report.rows:
        share = "" if row.fraction is None else f"{100 * row.fraction:g}% labels"
        of = [logs[one.folder] for one in row.runs if one.folder in logs]
        if len(of) == len(row.runs):
            shares.setdefault(share, {})[row.entry] = of
        if row.labelled_tiles is not None:
            values = [one.metrics["balanced_accuracy"] for one in row.runs]
            lines_of.setdefault(row.entry, []).append((row.labelled_tiles, values))
    if shares:
        for at, (share, rows) in enumerate(shares.items()):  # one below another: side by side they are too wide
            found.append(
                blocks.figure(
                    f"{name}-curves-{at}",
                    lambda path, share=share, rows=rows: comparison_plots.plot_overlaid(  # type: ignore[misc]
                        {share: rows},
                        series=[("validation accuracy", "validation_accuracy"), ("validation loss", "validation_loss")],
                        path=path,
                        title="",
                    ),
                    alt=f"Validation accuracy and loss by epoch{f', {share}' if share else ''}, of {', '.join(rows)}",
                    caption=f"Validation by epoch{f', {share}' if share else ''}; thin: one run; thick: mean over "
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
    return blocks.section(name, "Comparison", found)


def folds(name: str, report: Json) -> Section:
    """Return a cross-validation; the intervals of single folds are in its chart."""
    lines = [["held out", "tiles", *FOLD_METRICS.values(), "loss"]]
    for one in report["runs"]:
        cells = [number(one["metrics"][key]) for key in FOLD_METRICS]
        lines.append([f"fold {one['fold']}", str(one["tiles"]), *cells, number(one["loss"])])
    pooled = report.get("pooled")
    if pooled:
        cells = [number(pooled["metrics"][key]) for key in FOLD_METRICS]
        lines.append(["all, pooled", str(pooled["tiles"]), *cells, number(pooled["loss"])])
        cells = [interval(pooled["intervals"][key]) for key in FOLD_METRICS]
        lines.append(["95% interval", "", *cells, ""])
    if report.get("mean"):
        over = [f"{report['mean'][key]:.3f} ± {report['sd'][key]:.3f}" for key in (*FOLD_METRICS, "loss")]
        lines.append(["mean ± sd of folds", "", *over])
    of = f"{blocks.name_of(report['data']['root'])}, {report['data']['size_px']} px ({', '.join(report['classes'])})"
    found: list[Block] = [blocks.table(f"{report['folds']} folds of the training split of {of}", lines)]
    if pooled:

        def values(one: Json, key: str) -> tuple[float | None, Sequence[float] | None]:
            return one["metrics"][key], one["intervals"][key]

        found.append(
            blocks.figure(
                name,
                lambda path: comparison_plots.plot_folds(
                    {title: [values(one, key) for one in report["runs"]] for key, title in FOLD_METRICS.items()},
                    pooled={title: values(pooled, key) for key, title in FOLD_METRICS.items()},
                    path=path,
                    title=f"{report['folds']} folds, {pooled['tiles']} held-out tiles",
                ),
                alt="Metrics of each fold with intervals; pooled "
                + ", ".join(f"{title} {number(pooled['metrics'][key])}" for key, title in FOLD_METRICS.items()),
                caption="Each fold is evaluated on tiles that its model was not trained on.",
            )
        )
    found += [blocks.paragraph(blocks.sentence(report["interval_method"])), blocks.bullets(report["caveats"])]
    return blocks.section(name, "Cross-validation", found)


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
    return blocks.section("others", "Further runs", [blocks.table("As evaluated", lines), blocks.paragraph(text)])
