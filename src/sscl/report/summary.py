"""The summary of a report: what was trained on what, the main metrics, and the checks that a reader asks for first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sscl.data.audit import Audit
from sscl.data.load import has_validation
from sscl.data.synthetic import SAID
from sscl.evaluate import evaluation_text, verdicts
from sscl.evaluate.metrics import display_name
from sscl.evaluate.verdicts import Outcome
from sscl.explain.records import MapChecks
from sscl.report import blocks
from sscl.report.blocks import Block, Section, interval, number
from sscl.report.page.content import Verdict
from sscl.report.subject import Subject
from sscl.words import count, listed

NOT_A_DEVICE = (
    "Research software, not a medical device. These results do not show how the classifier performs on other slides, "
    "stains, scanners or hospitals; do not base a diagnosis on them."
)


def summary(
    subject: Subject, *, training_tiles: int | None, audits: Sequence[Audit], checks: MapChecks | None
) -> Section:
    """Return what was trained on what, the main metrics, and the checks.

    Args:
        training_tiles: tiles of the training split; None = not known here.
        audits: of this split. checks: of the maps; None = they were not checked.
    """
    report, values, drawn = subject.report, subject.report.metrics, subject.report.intervals
    rows = {key: display_name(key) for key in ("accuracy", "balanced_accuracy", "auroc", "sensitivity", "specificity")}
    rows["sensitivity"] += f" for {report.positive}"
    headline = {}
    for key, name in rows.items():
        value, ends = getattr(values, key), getattr(drawn, key)
        if value is not None:
            headline[name] = number(value) + (f" ({interval(ends)})" if ends is not None else "")
    found: list[Block] = [
        blocks.paragraph(f"{_trained(subject, training_tiles)} {_right(subject)}"),
        blocks.facts(headline),
        blocks.paragraph(f"{report.interval_method.partition(';')[0]}."),
        *_worst_first([_better_than_chance(subject), _leaks(subject, audits), _calibrated(subject), *_maps(checks)]),
    ]
    if report.caveats:
        found += [blocks.paragraph("Limitations:"), blocks.bullets(report.caveats)]
    if report.synthetic:
        found.insert(0, blocks.paragraph(blocks.sentence(SAID)))
    return blocks.section("summary", "Summary", [*found, blocks.paragraph(NOT_A_DEVICE)])


def _trained(subject: Subject, training_tiles: int | None) -> str:
    """Return in two sentences what was trained on what, and how the epoch was selected."""
    trained, config = subject.trained, subject.trained.finetune_config
    train, data, weights = config.train, config.data, config.model.weights
    known = {None: "random weights", "imagenet": "ImageNet weights"}
    origin = known.get(weights) or f"weights from {Path(str(weights)).name}"
    roots = dict.fromkeys(blocks.name_of(section.root) for section in trained.lineage)
    before = f" (trained on {listed(list(roots))})" if roots else ""
    part = [] if training_tiles is None else [count(training_tiles, "tile")]
    part += [] if train.fold is None else [f"without fold {train.fold} of {train.folds}"]
    part += [] if train.label_fraction == 1 else [f"{100 * train.label_fraction:g}% of the labels"]
    of = f" ({', '.join(part)})" if part else ""
    chose = count(trained.fitted.tiles, "validation tile")
    chose += " of the data set's own validation split" if has_validation(data) else " held out from it"
    return (
        f"The {trained.encoder_name} encoder was initialised with {origin}{before} and fine-tuned on the training "
        f"split of {blocks.name_of(data.root)}{of} to classify {listed(trained.classes)}. Epoch {trained.epoch} was "
        f"selected on {chose}."
    )


def _right(subject: Subject) -> str:
    right = sum(row[i] for i, row in enumerate(subject.report.confusion_matrix))
    return f"Of the {subject.report.tiles:,} tiles of the {subject.split}, {right:,} are classified correctly."


def _worst_first(found: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts with the failed ones first, then those that are open, then those that passed."""
    return sorted(found, key=lambda block: ("failed", "inconclusive", "not assessed", "passed").index(block["outcome"]))


def _better_than_chance(subject: Subject) -> Verdict:
    counts = [number for number in subject.report.class_counts.values() if number]
    chance = 1 / len(counts)
    value, drawn = subject.report.metrics.balanced_accuracy, subject.report.intervals.balanced_accuracy
    title = "Is it better than chance?"
    if len(counts) < 2:
        return blocks.verdict(Outcome.NOT_ASSESSED, title, "All evaluated tiles are of one class.")
    if drawn is None:
        few = evaluation_text.TOO_FEW_TILES if subject.report.groups is None else evaluation_text.TOO_FEW_SLIDES
        return blocks.verdict(Outcome.NOT_ASSESSED, title, f"Balanced accuracy has no interval: {few}.")
    tiles = subject.report.tiles
    return blocks.verdict(
        verdicts.better_than_chance(drawn, chance, tiles=tiles),
        title,
        f"Balanced accuracy {number(value)} ({interval(drawn)}), chance level {number(chance)}, on "
        f"{count(tiles, 'tile')}{verdicts.too_few(tiles)}. "
        f"Passes if the whole 95% interval lies above chance; fails if it ends less than {verdicts.GAIN:g} above it."
        f" In {100 * verdicts.POWER:.0f}% of such samples a gain of {verdicts.detectable(drawn):.2f} would show.",
    )


def _leaks(subject: Subject, audits: Sequence[Audit]) -> Verdict:
    title = "Are the evaluated tiles new to the model?"
    here, trained = (
        Path(root).resolve() for root in (subject.report.data.root, subject.trained.finetune_config.data.root)
    )
    if subject.report.split != "test" and here == trained:  # an audit is of the test split
        text = "The evaluated tiles were used for training, so these results say nothing about new tiles."
        return blocks.verdict(Outcome.FAILED, title, text)
    if not audits:
        return blocks.verdict(
            Outcome.NOT_ASSESSED, title, "Run sscl data audit to search for tiles that occur in both splits."
        )
    said = blocks.sentence("; ".join(audit.verdict for audit in audits))
    return blocks.verdict(Outcome.of(not any(audit.leakage for audit in audits)), title, said)


def _calibrated(subject: Subject) -> Verdict:
    outcome, reason = evaluation_text.calibrated(subject.report)
    said = [reason, *evaluation_text.miscalled_in_words(subject.report, subject.report)]
    return blocks.verdict(outcome, "Are its probabilities calibrated?", " ".join(map(blocks.sentence, said)))


def _maps(checks: MapChecks | None) -> list[Verdict]:
    if checks is None:
        text = "Run sscl gradcam with checks=true to test whether they depend on the trained weights."
        return [blocks.verdict(Outcome.NOT_ASSESSED, "Can the heatmaps be trusted?", text)]
    return [
        blocks.verdict(check.outcome, check.question, blocks.sentence(check.reason)) for check in checks.each.values()
    ]
