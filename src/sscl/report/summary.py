"""The summary of a report: what was trained on what, the main metrics, and the checks that a reader asks for first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sscl.report import blocks
from sscl.report.blocks import Block, Section, interval, number
from sscl.report.subject import Subject
from sscl.words import listed

NOT_A_DEVICE = (
    "Research software, not a medical device: nothing here says how the classifier does on other slides, stains, "
    "scanners or hospitals, and no diagnosis may rest on it."
)


def summary(
    subject: Subject, *, training_tiles: int | None, audits: Sequence[Mapping[str, Any]], checks: Mapping[str, Any]
) -> Section:
    """Return what was trained on what, the main figures, and what was judged.

    Args:
        training_tiles: tiles of the training split; None = not known here.
        audits: content of audit.json files. checks: content of a checks.json; empty = the maps were not checked.
    """
    report, values, drawn = subject.report, subject.report["metrics"], subject.report["intervals"]
    rows = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
    rows |= {"sensitivity": f"sensitivity for {report['positive']}", "specificity": "specificity"}
    headline = {
        name: f"{number(values[key])} ({interval(drawn[key])})" if drawn[key] is not None else number(values[key])
        for key, name in rows.items()
        if values.get(key) is not None
    }
    found = [
        blocks.paragraph(f"{_trained(subject, training_tiles)} {_right(subject)}"),
        blocks.facts(headline),
        blocks.paragraph(f"{report['interval_method'].partition(';')[0]}."),
        _better_than_guessing(subject),
        _leaks(subject, audits),
        _calibrated(subject),
        *_maps(checks),
    ]
    if report["caveats"]:
        found += [blocks.paragraph("Before believing these figures:"), blocks.bullets(report["caveats"])]
    return blocks.section("summary", "Summary", [*found, blocks.paragraph(NOT_A_DEVICE)])


def _trained(subject: Subject, training_tiles: int | None) -> str:
    """Return in a sentence what was trained on what."""
    trained, config = subject.trained, subject.trained.finetune_config
    weights = config.model.weights
    known = {None: "random weights", "imagenet": "ImageNet weights"}
    origin = known.get(weights) or f"the weights of {Path(str(weights)).name}"
    roots = dict.fromkeys(blocks.name_of(section.root) for section in trained.lineage)
    before = f", which were trained on {listed(list(roots))}," if roots else ""
    share = config.train.label_fraction
    part = "" if share == 1 else f"{100 * share:g}% of the labels of "
    of = "" if training_tiles is None else f"{training_tiles:,} tiles of "
    name = blocks.name_of(config.data.root)
    fold = config.train.fold
    part += "" if fold is None else f"all but fold {fold} of {config.train.folds} of "
    own = config.data.source == "pathmnist"
    these = "tiles of its own validation split" if own else "of these tiles were kept apart for validation and"
    chose = f"{trained.fitted.tiles:,} {these} chose"
    return (
        f"The encoder, a net of the kind {trained.encoder_name}, starts from {origin}{before} and was fine-tuned on "
        f"{part}{of}the training split of {name} to tell {listed(trained.classes)} apart; {chose} "
        f"epoch {trained.epoch}."
    )


def _right(subject: Subject) -> str:
    right = sum(row[i] for i, row in enumerate(subject.report["confusion_matrix"]))
    return f"Of the {subject.report['tiles']:,} tiles of the {subject.split} it gets {right:,} right."


def _better_than_guessing(subject: Subject) -> Block:
    chance = 1 / len(subject.found.classes)
    value, drawn = (subject.report[part]["balanced_accuracy"] for part in ("metrics", "intervals"))
    title = "Is it better than guessing?"
    if value is None or drawn is None:
        return blocks.verdict(None, title, "A class has no tile here, so balanced accuracy is undefined.")
    return blocks.verdict(
        drawn[0] > chance,
        title,
        f"Balanced accuracy {number(value)} ({interval(drawn)}); guessing has {number(chance)}. Passes where the whole "
        "interval lies above that.",
    )


def _leaks(subject: Subject, audits: Sequence[Mapping[str, Any]]) -> Block:
    title = "Are the tiles it was tested on new to it?"
    here, trained = (
        Path(root).resolve() for root in (subject.report["data"]["root"], subject.trained.finetune_config.data.root)
    )
    if subject.report["split"] != "test" and here == trained:  # an audit is of the test split
        text = "They are tiles that it was trained on, or among them: the figures say nothing about new tiles."
        return blocks.verdict(False, title, text)
    if not audits:
        return blocks.verdict(None, title, "Not looked at: sscl data audit searches for tiles that are in both splits.")
    said = blocks.sentence("; ".join(audit["verdict"] for audit in audits))
    return blocks.verdict(not any(audit["leakage"] for audit in audits), title, said)


def _calibrated(subject: Subject) -> Block:
    title = "Do its probabilities say how often it is right?"
    found = subject.report.get("calibration")
    if found is None:
        return blocks.verdict(None, title, "Evaluated by an earlier version, which did not ask. Run sscl eval again.")
    error, chance = found["after"]["ece"], found["after"]["ece_by_chance"]["quantile_95"]
    return blocks.verdict(
        error <= chance,
        title,
        f"Confidence and accuracy differ by {number(error)} on average (expected calibration error); with true "
        f"probabilities that would be below {number(chance)} in 95% of samples of this size.",
    )


def _maps(checks: Mapping[str, Any]) -> list[Block]:
    if not checks:
        text = "Not checked: sscl gradcam checks=true asks whether they depend on what was learned."
        return [blocks.verdict(None, "Can the heatmaps be trusted?", text)]
    asked = {
        "randomisation": "Do the heatmaps depend on what was learned?",
        "deletion_insertion": "Does what they mark matter to the classifier?",
    }
    return [
        blocks.verdict(checks[name]["passed"], title, blocks.sentence(checks[name]["verdict"]))
        for name, title in asked.items()
    ]
