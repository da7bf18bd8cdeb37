"""The first screen of a report: what was learned on what, how good it is, and what not to rely on; and the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sscl.config.encoders import RANDOM
from sscl.data.audit import Audit
from sscl.evaluate import evaluation_text, lineage, verdicts
from sscl.evaluate.verdicts import Outcome
from sscl.explain.records import MapChecks
from sscl.report import blocks
from sscl.report.blocks import Block, Section, interval, number, percent, percent_interval
from sscl.report.page.content import Verdict
from sscl.report.subject import Subject
from sscl.words import count, listed, shortened

NOT_A_DEVICE = "Research software, not a medical device: do not base a diagnosis on it."
ELSEWHERE = "any of this on other slides, stains, scanners or hospitals, where it was not tested"
LEARNED, HOW_GOOD, RELY = "What was learned", "How good it is", "What not to rely on"
_NAMED = 5  # classes by name on the first screen
_DOUBTS = 4  # reasons for doubt in its third sentence; all are among the checks
_ORDER = (Outcome.FAILED, Outcome.INCONCLUSIVE, Outcome.NOT_ASSESSED, Outcome.PASSED)


@dataclass(frozen=True)
class Check:
    """A question that a reader asks first, and what came of it. doubt: what not to rely on, unless it passed."""

    outcome: Outcome
    title: str
    text: str
    doubt: str

    @property
    def block(self) -> Verdict:
        """The verdict of the page."""
        return blocks.verdict(self.outcome, self.title, self.text)


def check_all(subject: Subject, *, audits: Sequence[Audit], checks: MapChecks | None) -> list[Check]:
    """Return the checks, the failed first, then those that are open, then those that passed.

    Args:
        audits: of this split. checks: of the maps; None = they were not checked.
    """
    found = [_better_than_chance(subject), _leaks(subject, audits), _calibrated(subject), *_maps(checks)]
    return sorted(found, key=lambda check: _ORDER.index(check.outcome))


def summary(subject: Subject, *, training_tiles: int | None, checks: Sequence[Check], unfinished: bool) -> Section:
    """Return the first screen, in three sentences.

    Args:
        training_tiles: of the training split, without those held out for validation; None = not known here.
        checks: from `check_all`. unfinished: whether training was interrupted.
    """
    lead = blocks.lead(
        {
            LEARNED: _learned(subject, training_tiles),
            HOW_GOOD: _how_good(subject),
            RELY: _not_to_rely_on(subject, checks, unfinished=unfinished),
        }
    )
    return blocks.section("summary", "Summary", [lead, blocks.paragraph(NOT_A_DEVICE)], folded=False)


def without_truth(named: str, unknown: str) -> Section:
    """Return the first screen of a page on tiles or slides without truth, in three sentences.

    Args:
        named: what was classified. unknown: that nothing says how well.
    """
    rely = f"Do not rely on a single answer, or on {ELSEWHERE}."
    lead = blocks.lead({LEARNED: named, HOW_GOOD: unknown, RELY: rely})
    return blocks.section("summary", "Summary", [lead, blocks.paragraph(NOT_A_DEVICE)], folded=False)


def checks_section(subject: Subject, checks: Sequence[Check]) -> Section:
    """Return the verdicts, and the limitations that the evaluation found."""
    caveats = subject.report.caveats
    found: list[Block] = [check.block for check in checks]
    found += [blocks.paragraph("Limitations:"), blocks.bullets(caveats)] if caveats else []
    counts = {outcome: sum(check.outcome is outcome for check in checks) for outcome in _ORDER}
    said = [f"{number} {outcome.value.lower()}" for outcome, number in counts.items() if number]
    said += [count(len(caveats), "limitation")] if caveats else []
    return blocks.section("checks", "Checks", found, hint=", ".join(said))


def titled(classes: Sequence[str]) -> str:
    """Return the classes as a title names them: a few by name, many by their number."""
    if len(classes) > _NAMED:
        return f"{len(classes):,} classes"
    return listed([shortened(name, 40) for name in classes])


def _learned(subject: Subject, training_tiles: int | None) -> str:
    trained, config = subject.trained, subject.trained.finetune_config
    tiles = "the labelled image tiles" if training_tiles is None else count(training_tiles, "labelled image tile")
    part = [] if config.train.label_fraction == 1 else [f"{100 * config.train.label_fraction:g}% of the labels"]
    part += [] if config.train.fold is None else [f"without fold {config.train.fold} of {config.train.folds}"]
    part += ["all drawn by a program"] if subject.report.synthetic else []
    of = f" ({', '.join(part)})" if part else ""
    held = count(trained.fitted.tiles, "tile")
    return (
        f"A {trained.encoder_name} network, {_origin(subject)}, learned from {tiles} of "
        f"{blocks.name_of(config.data.root)}{of} to tell {titled(trained.classes)} apart, "
        f"with {held} apart from these for validation."
    )


def _origin(subject: Subject) -> str:
    """Return in words where the weights were from before the labels."""
    weights = subject.trained.finetune_config.model.weights
    if weights is None or weights in RANDOM:
        return "starting from random weights"
    if weights == "imagenet":
        return "trained before on photographs (ImageNet)"
    if weights == "published":
        return f"starting from the published weights of {subject.trained.config.model.name}"
    roots = list(dict.fromkeys(blocks.name_of(section.root) for section in subject.trained.lineage))
    before = f", which were trained on {listed(roots)}" if roots else ""
    return f"starting from the weights of {Path(weights).name}{before}"


def _how_good(subject: Subject) -> str:
    """Return the accuracy with its interval, beside that of a constant answer, and that of the classes."""
    report = subject.report
    right = sum(row[i] for i, row in enumerate(report.confusion_matrix))
    few = evaluation_text.TOO_FEW_TILES if report.groups is None else evaluation_text.TOO_FEW_SLIDES
    ends = percent_interval(report.intervals.accuracy) or f"{few} for an interval"
    largest = max(report.class_counts, key=lambda name: report.class_counts[name])
    always = percent(report.class_counts[largest] / report.tiles)
    return (
        f"Of {count(report.tiles, 'tile')} of the {subject.split}, it classified {right:,} correctly: "
        f"{percent(right / report.tiles)} ({ends}), where always answering {shortened(largest, 40)} gives {always}; "
        f"{_by_class(subject)}."
    )


def _by_class(subject: Subject) -> str:
    """Return which part of each class is found, of many classes the one found least."""
    report = subject.report
    recalls = {row: of.recall for row, of in enumerate(report.metrics.per_class) if of.recall is not None}
    many = len(report.classes) > _NAMED
    rows = [min(recalls, key=lambda row: recalls[row])] if many and recalls else list(recalls)

    def said(row: int) -> str:
        ends = percent_interval(report.intervals.per_class[row].recall)
        return f"{percent(recalls[row])} of {shortened(report.classes[row], 40)}" + (f" ({ends})" if ends else "")

    return ("it found least of one class, " if many else "it found ") + listed([said(row) for row in rows])


def _not_to_rely_on(subject: Subject, checks: Sequence[Check], *, unfinished: bool) -> str:
    doubts = ["its state (its training was interrupted)"] if unfinished else []
    doubts += ["any of it for real tissue (the tiles are drawn)"] if subject.report.synthetic else []
    if any(map(lineage.doubts_accuracy, subject.report.caveats)):
        doubts.append("as high an accuracy on new tiles (see the limitations under Checks)")
    doubts += [check.doubt for check in checks if check.outcome is Outcome.FAILED]
    if subject.report.groups is None:
        doubts.append("the intervals (too narrow if tiles are of few slides; these are not known)")
    doubts += [check.doubt for check in checks if check.outcome not in (Outcome.FAILED, Outcome.PASSED)]
    doubts = list(dict.fromkeys(doubts))[:_DOUBTS]
    return f"Do not rely on {listed([*doubts, ELSEWHERE], last='or')}."


def _better_than_chance(subject: Subject) -> Check:
    counts = [number for number in subject.report.class_counts.values() if number]
    chance = 1 / len(counts)
    value, drawn = subject.report.metrics.balanced_accuracy, subject.report.intervals.balanced_accuracy
    title, open_doubt = "Is it better than chance?", "its answers (too few tiles to tell them from guesses)"
    if len(counts) < 2:
        text = "All evaluated tiles are of one class."
        return Check(Outcome.NOT_ASSESSED, title, text, "its answers (only one class was evaluated)")
    if drawn is None:
        few = evaluation_text.TOO_FEW_TILES if subject.report.groups is None else evaluation_text.TOO_FEW_SLIDES
        return Check(Outcome.NOT_ASSESSED, title, f"Balanced accuracy has no interval: {few}.", open_doubt)
    tiles = subject.report.tiles
    outcome = verdicts.better_than_chance(drawn, chance, tiles=tiles)
    return Check(
        outcome,
        title,
        f"Balanced accuracy {number(value)} ({interval(drawn)}), chance level {number(chance)}, on "
        f"{count(tiles, 'tile')}{verdicts.too_few(tiles)}. "
        f"Passes if the whole 95% interval lies above chance; fails if it ends less than {verdicts.GAIN:g} above it."
        f" {blocks.sentence(verdicts.gain_shown(drawn))}",
        "its answers (no better than guesses)" if outcome is Outcome.FAILED else open_doubt,
    )


def _leaks(subject: Subject, audits: Sequence[Audit]) -> Check:
    title = "Are the evaluated tiles new to the model?"
    here, trained = (
        Path(root).resolve() for root in (subject.report.data.root, subject.trained.finetune_config.data.root)
    )
    if subject.report.split != "test" and here == trained:  # an audit is of the test split
        text = "The evaluated tiles were used for training, so these results say nothing about new tiles."
        return Check(Outcome.FAILED, title, text, "its accuracy (measured on tiles that it was trained on)")
    if not audits:
        text = "Run sscl data audit to search for tiles that occur in both splits."
        doubt = "the tiles being new to it (nobody searched for copies among those of training)"
        return Check(Outcome.NOT_ASSESSED, title, text, doubt)
    said = blocks.sentence("; ".join(audit.verdict for audit in audits))
    outcome = Outcome.of(not any(audit.leakage for audit in audits))
    return Check(outcome, title, said, "its accuracy (copies of evaluated tiles are among those of training)")


def _calibrated(subject: Subject) -> Check:
    outcome, reason = evaluation_text.calibrated(subject.report)
    said = [reason, *evaluation_text.miscalled_in_words(subject.report)]
    why = "not calibrated" if outcome is Outcome.FAILED else "too few tiles to check them"
    text = " ".join(map(blocks.sentence, said))
    return Check(outcome, "Are its probabilities calibrated?", text, f"its probabilities ({why})")


def _maps(checks: MapChecks | None) -> list[Check]:
    if checks is None:
        text = "Run sscl gradcam with checks=true to test whether they depend on the trained weights."
        return [Check(Outcome.NOT_ASSESSED, "Can the heatmaps be trusted?", text, "its heatmaps (not checked)")]
    found = list(checks.each.values())
    failed = sum(check.outcome is Outcome.FAILED for check in found)
    undecided = sum(check.outcome not in (Outcome.FAILED, Outcome.PASSED) for check in found)
    why = f"{failed} of {len(found)} checks failed" if failed else f"{undecided} of {len(found)} checks are undecided"
    doubt = f"its heatmaps ({why})"
    return [Check(check.outcome, check.question, blocks.sentence(check.reason), doubt) for check in found]
