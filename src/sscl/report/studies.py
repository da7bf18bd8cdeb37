"""What a report says of everything beside the classifier: pretraining, audits, checked heatmaps, comparisons, folds.

Each function takes what a command wrote, as read from its JSON, and returns a section.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sscl.evaluate import comparison
from sscl.plots import cam as cam_plots
from sscl.plots import charts
from sscl.plots import comparison as comparison_plots
from sscl.report import blocks
from sscl.report.blocks import Block, Section, interval, number

Json = Mapping[str, Any]

QUESTIONS = {
    "randomisation": "Do the heatmaps depend on what was learned?",
    "deletion_insertion": "Does what they mark matter to the classifier?",
    "equivariance": "Do they turn with the tile?",
    "box_sensitivity": "Is the box more than its threshold?",
}
FOLD_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
}
TARGETS = {
    "auto": "of two classes the logit of the predicted one less that of the other; of more, the predicted one's",
    "difference": "the logit of the predicted class less that of the other",
    "predicted": "the logit of the predicted class",
}
_PAIRS = 12  # of an audit that are listed


def pretraining(name: str, *, config: Json, log: Sequence[Json], warning: str | None, note: str | None) -> Section:
    """Return how an encoder was pretrained.

    Args:
        name: of the section, see `report_blocks.section`. config: of the run. log: rows of its metrics.jsonl.
        warning: what its last epoch says of collapse; None = nothing. note: a sentence on its part here.
    """
    train, data = config["train"], config["data"]
    sources = data if isinstance(data, list) else [data]
    facts = {
        "encoder": config["model"]["name"],
        "weights at the start": str(config["model"]["weights"] or "random"),
        "tiles": ", ".join(source["root"] for source in sources),
        "side": f"{sources[0]['size_px']} px",
        "batch": f"{train['batch_size']} tiles, two views each",
        "loss": f"{train.get('loss', 'nt_xent')} at temperature {train['temperature']:g}",
        "optimizer": f"{train['optimizer']}, learning rate {train['learning_rate']:g}",
        "epochs": f"{log[-1]['epoch'] if log else 0} of {train['epochs']}",
    }
    found = [blocks.paragraph(note)] if note else []
    found.append(blocks.facts(facts))
    if log:
        last = log[-1]
        signs = (
            f"loss {last['loss']:.3f} ({last['loss_relative']:.2f} of that at collapse), similarity "
            f"{last['positive_similarity']:.2f} of pairs and {last['negative_similarity']:.2f} of others"
        )
        signs += f", effective rank {last['effective_rank']:.1f}" if "effective_rank" in last else ""
        knn = last.get("knn_balanced_accuracy")
        signs += f", kNN balanced accuracy {knn:.3f}" if knn is not None else ""
        found.append(
            blocks.verdict(
                warning is None,
                "Did it learn to tell tiles apart?",
                f"{'No sign of collapse' if warning is None else warning} in the last epoch: {signs}.",
            )
        )
        series = [
            ("loss / loss at collapse", ["loss_relative"]),
            ("cosine similarity", ["positive_similarity", "negative_similarity"]),
            ("effective rank", ["effective_rank"]),
        ]
        by_source = list(dict.fromkeys(key for row in log for key in row if re.match(r"loss_\d", key)))
        series += [("loss of each source", by_source)] if by_source else []
        if any("knn_balanced_accuracy" in row for row in log):
            series.append(("kNN balanced accuracy", ["knn_balanced_accuracy"]))
        found.append(
            blocks.figure(
                name,
                lambda path: charts.plot_history(log, series=series, path=path, title=""),
                alt=f"Pretraining over {len(log)} epochs; at the end {signs}",
                caption="Two views of a tile should be alike (positive similarity), those of different tiles not "
                "(negative similarity). An effective rank near 1 is collapse.",
            )
        )
    return blocks.section(name, "Pretraining", found)


def audit(name: str, report: Json, *, pairs: Path | None) -> Section:
    """Return what an audit of the split found. pairs: picture of the pairs; None = there is none."""
    counts, kinds = report["counts"], report["counts"]["pairs"]
    facts = {
        "equal pixels": f"{kinds['exact']:,} pairs",
        "near-duplicates by hash": f"{kinds['hash']:,} pairs",
        "overlapping, by keypoints": f"{kinds['keypoints']:,} pairs",
        "across splits": f"{counts['pairs_across']:,} pairs",
        "clusters": f"{counts['clusters']:,}, of up to {counts['largest_cluster']} tiles; "
        f"{counts['tiles_in_clusters']:,} of {counts['tiles']:,} tiles"
        if counts["clusters"]
        else "none",
        "tiles to look at": ", ".join(f"{count} {kind}" for kind, count in sorted(counts["flagged"].items())) or "none",
    }
    parts = [["part", "folder", "tiles", "groups (slides, patients or clusters)"]]
    for part, of in report["parts"].items():
        groups = "not known" if of["groups"] is None else f"{of['groups']:,}"
        parts.append([part, of["root"], f"{of['tiles']:,}", groups])
    found = [
        blocks.verdict(
            not report["leakage"], "Do the splits hold different tiles?", blocks.sentence(report["verdict"])
        ),
        blocks.facts(facts),
        blocks.table("Looked at", parts, numeric_from=2),
    ]
    if report["pairs"]:
        lines = [["first", "second", "found by", "across splits", "correlation"]]
        for pair in report["pairs"][:_PAIRS]:
            ends = [f"{pair[end]['part']}: {pair[end]['id']}" for end in ("first", "second")]
            lines.append([*ends, pair["kind"], "yes" if pair["across"] else "no", number(pair["score"])])
        more = len(report["pairs"]) - _PAIRS
        rest = f", the most serious {_PAIRS} of {len(report['pairs']):,}" if more > 0 else ""
        found.append(blocks.table(f"Pairs of tiles that show the same{rest}", lines, numeric_from=4))
    if pairs is not None:
        caption = f"Pairs of tiles, those across splits first and in a thick frame; larger in {pairs}."
        found.append(blocks.picture(pairs, alt=f"Sheet of pairs of tiles. {report['verdict']}", caption=caption))
    found += [blocks.bullets(report["notes"])] if report["notes"] else []
    sets = dict.fromkeys(blocks.name_of(of["root"]) for of in report["parts"].values())
    return blocks.section(name, f"Audit of {', '.join(sets)}", found)


def heatmaps(name: str, *, config: Json, checks: Json | None, localised: Json | None) -> Section:
    """Return what the checks of heatmaps found, and how well they hit truth masks.

    Args:
        config: of `sscl gradcam`. checks: its checks.json; localised: its localisation.json; None = there is none.
    """
    layers = config.get("layer") or []
    layers = [layers] if isinstance(layers, str) else layers
    where = ", ".join(layers) + (f" ({config['fuse']})" if len(layers) > 1 else "") if layers else "the last features"
    facts = {
        "method": f"{config.get('method', 'gradcam')} of {where}",
        "target": TARGETS.get(config["target"]) or str(config["target"]),
        "box": f"what is above {config['threshold']:.0%} of the map's maximum",
    }
    found: list[Block] = [blocks.facts(facts)]
    if checks is not None:
        found.append(blocks.paragraph(f"Checked on {checks['tiles']} tiles."))
        for check in QUESTIONS:
            found += _check(name, check, checks[check])
    if localised:
        lines = [["", "peak on mask", "box IoU ≥ 0.5", "mean box IoU"]]
        for row, rates in localised.items():
            shares = (f"{number(rates[key])}{_brackets(rates.get(f'{key}_wilson'))}" for key in ("peak_hit", "box_hit"))
            lines.append([row, *shares, number(rates["mean_box_iou"])])
        tiles = next(iter(localised.values()))["tiles"]
        found.append(blocks.table(f"On the truth masks of {tiles:,} tiles", lines))
        found.append(
            blocks.paragraph(
                "A map that finds what decides the class beats a net with random weights, the centre, and the whole "
                "tile: a point at random as its peak, the largest box. In brackets 95% by Wilson, for tiles that are "
                "independent."
            )
        )
    return blocks.section(name, "Heatmaps", found)


def _brackets(pair: Sequence[float] | None) -> str:
    return "" if pair is None else f" ({interval(pair)})"


def _check(name: str, check: str, found: Json) -> list[Block]:
    """Return the verdict of one check and its chart, where there is something to draw."""
    said = [blocks.verdict(found["passed"], QUESTIONS[check], blocks.sentence(found["verdict"]))]
    title = f"{found['tiles']} tiles"
    if check == "randomisation" and found["tiles"]:
        said.append(
            blocks.figure(
                f"{name}-{check}",
                lambda path: cam_plots.plot_randomisation(found, path=path, title=title),
                alt="Agreement of the maps with those of nets that are random from the head down: rank correlation "
                + ", ".join(
                    f"{stage} {value:.2f}"
                    for stage, value in zip(found["stages"], found["rank_correlation"]["mean"], strict=True)
                ),
                caption="The classifier is made random from its head down, block by block. Maps that stay alike show "
                "the tile's edges, not what was learned.",
            )
        )
    elif check == "deletion_insertion" and found["passed"] is not None:
        areas = [
            f"{way} {order} {of['auc']:.3f} ({interval(of['interval'])})"
            for way in ("deletion", "insertion")
            for order, of in found[way].items()
        ]
        said.append(
            blocks.figure(
                f"{name}-{check}",
                lambda path: cam_plots.plot_deletion_insertion(found, path=path, title=title),
                alt=f"Areas under the curves: {', '.join(areas)}",
                caption="What the map marks is blurred first (deletion), or brought back first (insertion), beside "
                "patches by chance and from the centre outwards.",
            )
        )
    elif check == "box_sensitivity" and found["passed"] is not None:
        areas = [
            f"{threshold:.0%}: {area:.2f}"
            for threshold, area in zip(found["thresholds"], found["area_fraction"]["mean"], strict=True)
        ]
        said.append(
            blocks.figure(
                f"{name}-{check}",
                lambda path: cam_plots.plot_box_sensitivity(found, path=path, title=title),
                alt=f"Share of the tile in the box, by threshold: {', '.join(areas)}",
                caption="How the box grows, moves and overlaps with its threshold.",
            )
        )
    return said


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def compared(name: str, report: Json, *, logs: Mapping[str, Sequence[Json]]) -> Section:
    """Return a comparison of runs. logs: rows of metrics.jsonl by run folder; those not given are not drawn."""
    found: list[Block] = [blocks.facts({"classes": ", ".join(report["classes"])})]
    for caption, lines in comparison.tables(report):
        words = lines[0][-1] == "in words"
        found.append(blocks.table(_capital(caption), lines, numeric_from=2 if words else 1))
    shares: dict[str, dict[str, list[Sequence[Json]]]] = {}
    lines_of: dict[str, list[tuple[int, list[float]]]] = {}
    for row in report["rows"]:
        share = "" if row["fraction"] is None else f"{100 * row['fraction']:g}% labels"
        of = [logs[one["folder"]] for one in row["runs"] if one["folder"] in logs]
        if len(of) == len(row["runs"]):
            shares.setdefault(share, {})[row["entry"]] = of
        if row["labelled_tiles"] is not None:
            values = [one["metrics"]["balanced_accuracy"] for one in row["runs"]]
            lines_of.setdefault(row["entry"], []).append((row["labelled_tiles"], values))
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
                    caption=f"Validation by epoch{f', {share}' if share else ''}; thin: a run, thick: the mean of a "
                    "row's runs.",
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
                caption="What a label is worth: balanced accuracy against the number of labelled tiles.",
            )
        )
    found += [blocks.paragraph(blocks.sentence(report["interval_method"])), blocks.bullets(report["caveats"])]
    return blocks.section(name, "Comparison", found)


def folds(name: str, report: Json) -> Section:
    """Return a cross-validation; the intervals of single folds are in its chart."""
    lines = [["held out", "tiles", *FOLD_METRICS.values(), "loss"]]
    for one in report["runs"]:
        cells = [number(one["metrics"][key]) for key in FOLD_METRICS]
        lines.append([f"fold {one['fold']}", str(one["tiles"]), *cells, number(one["loss"])])
    if "pooled" in report:
        pooled = report["pooled"]
        cells = [number(pooled["metrics"][key]) for key in FOLD_METRICS]
        lines.append(["all, pooled", str(pooled["tiles"]), *cells, number(pooled["loss"])])
        cells = [interval(pooled["intervals"][key]) for key in FOLD_METRICS]
        lines.append(["95% interval", "", *cells, ""])
    if "mean" in report:
        over = [f"{report['mean'][key]:.3f} ± {report['sd'][key]:.3f}" for key in (*FOLD_METRICS, "loss")]
        lines.append(["mean ± sd of folds", "", *over])
    of = f"{blocks.name_of(report['data']['root'])}, {report['data']['size_px']} px ({', '.join(report['classes'])})"
    found = [blocks.table(f"{report['folds']} folds of the training split of {of}", lines)]
    if "pooled" in report:

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
                caption="Each fold is judged on tiles that it was not trained on.",
            )
        )
    found += [blocks.paragraph(blocks.sentence(report["interval_method"])), blocks.bullets(report["caveats"])]
    return blocks.section(name, "Cross-validation", found)


def others(rows: Mapping[str, Json]) -> Section:
    """Return the main figures of further classifiers, each with what its metrics.json holds."""
    names = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "auroc": "AUROC"}
    lines = [["run", "tiles", *names.values()]]
    for name, report in rows.items():
        cells = []
        for key in names:
            drawn = report["intervals"][key]
            cells.append(number(report["metrics"][key]) + (f" ({interval(drawn)})" if drawn is not None else ""))
        lines.append([name, f"{report['tiles']:,}", *cells])
    text = "Intervals of single runs do not say whether runs differ: sscl compare RUN RUN does, tile by tile."
    return blocks.section("others", "Further runs", [blocks.table("As evaluated", lines), blocks.paragraph(text)])


def provenance(folders: Mapping[str, tuple[Json, str]]) -> Section:
    """Return how everything can be made again.

    Args:
        folders: {what it is called: (its env.json, the text of its config.yaml)}.
    """
    lines = [["folder", "command", "date"]]
    for name, (environment, _) in folders.items():
        lines.append([name, *(str(environment.get(key, "unknown")) for key in ("command", "date"))])
    found = [blocks.table("What was run", lines, numeric_from=len(lines[0]))]
    for name, (environment, text) in folders.items():
        versions = [f"# {key}: {value}" for key, value in environment.items() if key not in ("command", "date")]
        found.append(blocks.code(f"{name}: configuration and versions", "\n".join([*versions, text])))
    return blocks.section("provenance", "How to make it again", found)
