"""Sections on pretraining runs, audits of a data set, and how everything was made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sscl.config import PretrainConfig
from sscl.data.audit import Audit
from sscl.evaluate.verdicts import Outcome
from sscl.metrics_log import MetricsRow
from sscl.plots import charts
from sscl.report import blocks
from sscl.report.blocks import Block, Section, number
from sscl.report.folders import reading, record_of
from sscl.run import Environment
from sscl.train.health import knn_verdict
from sscl.words import count

_PAIRS = 12  # of an audit that are listed


def pretraining(
    name: str, *, config: PretrainConfig, log: Sequence[MetricsRow], warning: str | None, note: str | None
) -> Section:
    """Return how an encoder was pretrained.

    Args:
        name: of the section, see `blocks.section`. config: of the run. log: rows of its metrics.jsonl.
        warning: of collapse in its last epoch; None = no indication. note: a sentence on its role here.
    """
    train = config.train
    facts = {
        "encoder": config.model.name,
        "initial weights": str(config.model.weights or "random"),
        "tiles": ", ".join(source.root + " (synthetic)" * (source.source == "synthetic") for source in config.data),
        "tile size": f"{config.data[0].size_px} px",
        "batch size": f"{train.batch_size} tiles, two views each",
        "loss": f"{train.loss} at temperature {train.temperature:g}",
        "optimizer": f"{train.optimizer}, learning rate {train.learning_rate:g}",
        "epochs": f"{log[-1]['epoch'] if log else 0} of {train.epochs}",
    }
    found: list[Block] = [blocks.paragraph(note)] if note else []
    found.append(blocks.facts(facts))
    if log:
        last = log[-1]
        health = (
            f"loss {last['loss']:.3f} ({last['loss_relative']:.2f} of the loss at collapse), cosine similarity "
            f"{last['positive_similarity']:.2f} of positive and {last['negative_similarity']:.2f} of negative pairs"
        )
        health += f", effective rank {last['effective_rank']:.1f}" if "effective_rank" in last else ""
        knn = last.get("knn_balanced_accuracy")
        health += f", k-NN balanced accuracy {knn:.3f}" if knn is not None else ""
        found.append(
            blocks.verdict(
                Outcome.of(warning is None),
                "Is the encoder free of collapse?",
                f"{blocks.sentence(warning or 'no indication of collapse')} Last epoch: {health}.",
            )
        )
        said = knn_verdict(last)
        if said is not None:
            found.append(blocks.verdict(said[0], "Are its features above chance?", blocks.sentence(said[1])))
        series = [
            ("loss / loss at collapse", ["loss_relative"]),
            ("cosine similarity", ["positive_similarity", "negative_similarity"]),
            ("effective rank", ["effective_rank"]),
        ]
        by_source = list(dict.fromkeys(key for row in log for key in row if re.match(r"loss_\d", key)))
        series += [("loss of each source", by_source)] if by_source else []
        if any("knn_balanced_accuracy" in row for row in log):
            series.append(("k-NN balanced accuracy", ["knn_balanced_accuracy"]))
        found.append(
            blocks.figure(
                name,
                lambda path: charts.plot_history(log, series=series, path=path, title=""),
                alt=f"Pretraining over {len(log)} epochs; at the end {health}",
                caption="Two views of the same tile should be similar (positive similarity), views of different tiles "
                "dissimilar (negative similarity). An effective rank near 1 indicates collapse.",
            )
        )
    return blocks.section(name, "Pretraining", found, hint="training without labels")


def audit(name: str, report: Audit, *, pairs: Path | None) -> Section:
    """Return what an audit of the split found. pairs: picture of the pairs; None = there is none."""
    counts, kinds = report.counts, report.counts.pairs
    facts = {
        "identical pixels": count(kinds["exact"], "pair"),
        "near-duplicates by hash": count(kinds["hash"], "pair"),
        "overlapping crops by keypoints": count(kinds["keypoints"], "pair"),
        "across splits": count(counts.pairs_across, "pair"),
        "clusters": f"{counts.clusters:,}, of up to {counts.largest_cluster} tiles; "
        f"{counts.tiles_in_clusters:,} of {counts.tiles:,} tiles"
        if counts.clusters
        else "none",
        "outliers": ", ".join(f"{number} {kind}" for kind, number in sorted(counts.flagged.items())) or "none",
    }
    parts = [["part", "folder", "tiles", "groups (slides, patients or clusters)"]]
    for part, of in report.parts.items():
        groups = "unknown" if of.groups is None else f"{of.groups:,}"
        parts.append([part, of.root, f"{of.tiles:,}", groups])
    found: list[Block] = [
        blocks.verdict(
            Outcome.of(not report.leakage), "Do the splits have no tiles in common?", blocks.sentence(report.verdict)
        ),
        blocks.facts(facts),
        blocks.table("Audited folders", parts, numeric_from=2),
    ]
    if report.pairs:
        lines = [["first", "second", "what shows it", "across splits", "confidence", "correlation"]]
        for pair in report.pairs[:_PAIRS]:
            ends = [f"{place.part}: {place.id}" for place in (pair.first, pair.second)]
            across = "yes" if pair.across else "no"
            lines.append([*ends, pair.reason, across, number(pair.confidence), number(pair.score)])
        more = len(report.pairs) - _PAIRS
        rest = f", the {_PAIRS} most serious of {len(report.pairs):,}" if more > 0 else ""
        found.append(blocks.table(f"Near-duplicate pairs{rest}", lines, numeric_from=4))
    if pairs is not None:
        caption = f"Near-duplicate pairs; those across splits come first, in a thick frame. Full size: {pairs}."
        found.append(
            blocks.picture(pairs, alt=f"Contact sheet of near-duplicate pairs. {report.verdict}", caption=caption)
        )
    found += [blocks.bullets(report.notes)] if report.notes else []
    sets = dict.fromkeys(blocks.name_of(of.root) for of in report.parts.values())
    return blocks.section(name, f"Audit of {', '.join(sets)}", found, hint="do the splits share tiles?")


def provenance(folders: Sequence[Path]) -> Section:
    """Return the commands, configurations and versions behind everything on the page: env.json and config.yaml of each.

    Raises:
        ValueError: a file is not as sscl writes it.
    """
    lines = [["folder", "command", "date"]]
    codes: list[Block] = []
    for folder in folders:
        config = folder / "config.yaml"
        with reading(config):
            text = config.read_text(encoding="utf-8") if config.is_file() else "no config.yaml"
        environment = record_of(Environment, folder / "env.json", made_by="the command of its folder")
        known = ["unknown", "unknown"] if environment is None else [environment.command, environment.date]
        lines.append([str(folder), *known])
        versions = [] if environment is None else dict(environment).items()
        about = [f"# {key}: {value}" for key, value in versions if key not in ("command", "date")]
        codes.append(blocks.code(f"{folder}: configuration and versions", "\n".join([*about, text])))
    table = blocks.table("Commands", lines, numeric_from=len(lines[0]))
    return blocks.section("provenance", "Reproduce", [table, *codes], hint="commands, configurations, versions")
