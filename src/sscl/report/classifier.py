"""Sections on the classifier: its data, its training, its metrics, its errors; all as finetune and eval wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from sscl.config.training import FinetuneTrainConfig
from sscl.data.load import has_validation
from sscl.data.synthetic import SAID
from sscl.evaluate import evaluation_text
from sscl.evaluate.metrics import MANY_CLASSES, confusions, shown_of
from sscl.evaluate.model_card import encoder_options, learned
from sscl.metrics_log import MetricsRow
from sscl.plots import charts
from sscl.report import blocks
from sscl.report.blocks import Block, Section, interval, number
from sscl.report.subject import Subject
from sscl.words import some

_COLUMNS = 10  # of a table of classes; of more, a class is a row
CURVES = [
    ("loss", ["train_loss", "validation_loss"]),
    ("accuracy", ["train_accuracy", "validation_accuracy", "validation_balanced_accuracy"]),
]


def data(subject: Subject, *, counts: Mapping[str, Mapping[str, int]], groups: Mapping[str, int | None]) -> Section:
    """Return where the tiles are from and how many of each class there are.

    Args:
        counts: {split: {class: tiles}}. groups: {split: slides, patients or clusters; None where these are not known}.
    """
    section = subject.report.data
    facts: dict[str, str] = {"folder": section.root, "source": section.source}
    facts |= {"tiles": SAID} if subject.report.synthetic else {}
    facts |= {"protocol": subject.report.protocol} if subject.report.protocol else {}
    facts |= {"tile size": f"{section.size_px} px", "stain normalisation": section.stain}
    own = has_validation(subject.trained.finetune_config.data)
    where = "the validation split of the data set" if own else "held out from the training split"
    facts["validation"] = f"{subject.trained.fitted.tiles} tiles, {where}; used to select {subject.trained.chosen_kind}"
    classes = list(dict.fromkeys(name for split in counts.values() for name in split))
    if len(classes) > _COLUMNS:
        return _data_section([blocks.facts(facts), *_long_counts(classes, counts, groups)])
    lines = [["split", *classes, "all", "groups (slides, patients or clusters)"]]
    for split, of in counts.items():
        known = groups.get(split)
        row = [f"{of.get(name, 0):,}" for name in classes]
        lines.append([split, *row, f"{sum(of.values()):,}", "unknown" if known is None else f"{known:,}"])
    return _data_section([blocks.facts(facts), blocks.table("Tiles per class", lines)])


def _data_section(found: Sequence[Block]) -> Section:
    return blocks.section("data", "Data", found, hint="where the tiles are from, and how many of each class")


def _long_counts(
    classes: Sequence[str], counts: Mapping[str, Mapping[str, int]], groups: Mapping[str, int | None]
) -> list[Block]:
    """Return the counts of many classes, a row each, the largest first; of very many the rest as one row."""
    total = {name: sum(of.get(name, 0) for of in counts.values()) for name in classes}
    ordered = sorted(classes, key=lambda name: -total[name])
    named = ordered if len(ordered) <= MANY_CLASSES else ordered[: MANY_CLASSES - 1]
    lines = [["class", *counts]]
    lines += [[name, *(f"{of.get(name, 0):,}" for of in counts.values())] for name in named]
    if len(named) < len(classes):
        rest = [sum(of.values()) - sum(of.get(name, 0) for name in named) for of in counts.values()]
        lines.append([f"{len(classes) - len(named):,} smaller classes", *(f"{number:,}" for number in rest)])
    lines.append(["all", *(f"{sum(of.values()):,}" for of in counts.values())])
    known = ["unknown" if groups.get(split) is None else f"{groups[split]:,}" for split in counts]
    lines.append(["groups (slides, patients or clusters)", *known])
    return [blocks.table("Tiles per class", lines)]


def training(subject: Subject) -> Section:
    """Return how it was trained, with its curves."""
    trained, config = subject.trained, subject.trained.finetune_config
    train, best = config.train, trained.validation
    assert best is not None  # finetune keeps it
    epochs = train.head == "linear"
    facts = {
        "encoder": f"{trained.encoder_name}, {encoder_options(trained)}",
        "tiles": f"{trained.size_px} px a side, {trained.scale}",
        "initial weights": str(config.model.weights or "random"),
        "trained": learned(train),
        **_fitted(subject, train),
        "loss": train.loss,
        "precision": trained.precision,
        f"validation at the selected {'epoch' if epochs else 'C'}": f"accuracy {number(best['validation_accuracy'])}, "
        f"balanced accuracy {number(best['validation_balanced_accuracy'])}, loss {number(best['validation_loss'])}",
    }
    found: list[Block] = [blocks.facts(facts)]
    if subject.log:
        series = [*CURVES]
        if "contrast_loss" in subject.log[0]:
            series.append(("contrastive loss", ["contrast_loss"]))
        losses = [row["validation_loss"] for row in subject.log]
        found.append(
            blocks.figure(
                "training",
                partial(_history, subject.log, series),
                alt=f"Loss and accuracy over {len(losses)} {'epochs' if epochs else 'values of C'}: the validation "
                f"loss goes from {losses[0]:.3f} to {losses[-1]:.3f} and is lowest, {min(losses):.3f}, in "
                f"{'epoch' if epochs else 'number'} {losses.index(min(losses)) + 1}",
                caption=f"Training and validation by {'epoch' if epochs else 'C'}. Rising validation loss while "
                "training loss falls indicates overfitting.",
            )
        )
    return blocks.section("training", "Fine-tuning", found, hint="how it was trained with labels")


def _fitted(subject: Subject, train: FinetuneTrainConfig) -> dict[str, str]:
    """Return how the head was fitted, and what validation selected."""
    select, trained = train.select.replace("_", " "), subject.trained
    if train.head == "logistic":
        assert trained.validation is not None
        c = trained.validation["c"]
        return {"head": f"logistic regression; C={c:g} of {len(train.c_grid)} selected by validation {select}"}
    return {
        "epochs": f"{len(subject.log)}; epoch {trained.epoch} selected by validation {select}",
        "batch size": f"{train.batch_size} tiles",
        "optimizer": f"{train.optimizer}, learning rate {train.learning_rate:g}, "
        f"{train.head_learning_rate:g} for the head",
    }


def _history(log: Sequence[MetricsRow], series: Sequence[tuple[str, Sequence[str]]], path: Path) -> None:
    charts.plot_history(log, series=series, path=path, title="", by_c="c" in log[0])


def results(subject: Subject) -> Section:
    """Return the metrics with their intervals."""
    report = subject.report
    overall, of_classes = evaluation_text.overall_rows(report), evaluation_text.class_rows(report)
    header = ["", "value", "95% interval", "tiles"]
    left_out = shown_of(len(report.classes))
    found: list[Block] = [
        blocks.table(f"On the {subject.split}, {report.tiles:,} tiles", [header, *rows_of_metrics(overall)]),
        blocks.table("Per class", [header, *rows_of_metrics(of_classes)]),
        *([blocks.paragraph(blocks.sentence(f"per class: {left_out}"))] if left_out else []),
    ]
    by_agreement = rows_of_metrics(evaluation_text.agreement_rows(report))
    if by_agreement:
        found.append(blocks.table("Accuracy by annotator agreement", [header, *by_agreement]))
    positive = "" if report.positive is None else f" Positive class: {report.positive}."
    how = report.interval_method.rstrip(".")
    found.append(blocks.paragraph(f"{how}.{positive}"))
    return blocks.section("results", "Results", found, hint="all metrics with their intervals")


def _confusion(subject: Subject, *, note: str) -> list[Block]:
    """Return the confusion matrix; of many classes as a picture, with the most frequent errors."""
    classes, matrix = subject.found.classes, subject.report.confusion_matrix
    if len(classes) <= MANY_CLASSES:
        return [blocks.confusion(classes, matrix, note=note)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "confusion.png"
        charts.plot_confusion(matrix, classes=classes, path=path, title=subject.title)
        picture = blocks.picture(path, alt=f"Confusion matrix of {len(classes):,} classes", caption="Confusion matrix.")
    rows = [[classes[truth], classes[predicted], f"{tiles:,}"] for truth, predicted, tiles in confusions(matrix)]
    return [picture, blocks.table("Most frequent errors", [["true", "predicted", "tiles"], *rows], numeric_from=2)]


def rows_of_metrics(rows: Sequence[evaluation_text.Row]) -> list[list[str]]:
    """Return cells: name, value, interval, counts."""
    return [[row.name, number(row.value), interval(row.interval) or row.ends, row.counts] for row in rows]


def errors(subject: Subject, *, shown: int) -> Section:
    """Return the confusion matrix, ROC and precision-recall curves. shown: tiles in the gallery."""
    report, found = subject.report, subject.found
    total = report.tiles
    note = f"The gallery has {shown:,} of the {total:,} tiles, so a cell may show fewer tiles than it counts."
    classes, positive = found.classes, subject.positive
    scores = found.labels, found.probabilities
    names = some(found.classes) if subject.positive is None else str(report.positive)
    auroc, average_precision = map(number, (report.metrics.auroc, report.metrics.average_precision))
    return blocks.section(
        "errors",
        "Errors",
        [
            *_confusion(subject, note=note if 0 < shown < total else ""),
            blocks.figure(
                "roc",
                lambda path: charts.plot_roc(*scores, path=path, classes=classes, positive=positive),
                alt=f"ROC curve of {names}, area {auroc}",
                caption="True positive rate against false positive rate over all thresholds.",
            ),
            blocks.figure(
                "precision-recall",
                lambda path: charts.plot_precision_recall(*scores, path=path, classes=classes, positive=positive),
                alt=f"Precision against recall of {names}, average precision {average_precision}",
                caption="Precision, the fraction of positive calls that are correct, against recall, the fraction of "
                "positive tiles that are found.",
            ),
        ],
        hint="which classes are taken for which; ROC and precision-recall curves",
    )
