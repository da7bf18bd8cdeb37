"""The section on what reviewers answered, and its lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sscl.evaluate.agreement import FEWEST_TILES, Agreement, agreement
from sscl.evaluate.intervals import GROUPS
from sscl.evaluate.metrics import IntArray
from sscl.evaluate.tables import Table, as_text, one_line
from sscl.places import printable
from sscl.report import blocks
from sscl.report.blocks import Block, Section, percent
from sscl.report.reviews import NOBODY, Review, Reviewed
from sscl.words import count, shortened, wrapped

BLIND, AFTER = "blind", "after"  # the prediction was seen
_HEADER = ("answers", "when", "with", "tiles", "same", "95% interval", "kappa", "95% interval")
AGREEMENT = "Agreement (blind: before the prediction was seen, after: having seen it)"
_LISTED = 20  # tiles whose label the reviewers doubt
_METHOD = (
    "Kappa is agreement beyond chance: 0 is that of independent answers, 1 that of equal ones; it is lower where one "
    f"class is rare. There is none below {FEWEST_TILES} tiles, or below 2K² where K classes were named"
)


def reviews_section(reviews: Sequence[Review], of: Reviewed) -> Section:
    """Return how far reviewers agree with the labels, the model and each other."""
    found: list[Block] = [
        blocks.table(table.title, table.lines, numeric_from=table.texts) for table in tables(reviews, of)
    ]
    found.append(blocks.bullets([blocks.sentence(note) for note in notes(reviews, of)]))
    return blocks.section("reviews", "Reviews", found, folded=False)


def review_lines(reviews: Sequence[Review], of: Reviewed) -> Iterator[str]:
    """Yield the same for the terminal."""
    for table in tables(reviews, of):
        yield f"\n{table.title}"
        lines = table.lines
        if tuple(lines[0]) == _HEADER:  # an interval in the column of what it is of, so that a terminal holds them
            lines = [[*line[:4], _with(line[4], line[5]), _with(line[6], line[7])] for line in lines]
        yield as_text(lines, texts=table.texts)
    for note in notes(reviews, of):
        yield wrapped(f"note: {note}")


def _with(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval else value


def tables(reviews: Sequence[Review], of: Reviewed) -> list[Table]:
    """Return the tables: agreement, what was said after the prediction, tiles whose label all doubt."""
    compared = [_cells(*row) for row in _comparisons(reviews, of)]
    made = [Table(AGREEMENT, [list(_HEADER), *compared], texts=3)] if compared else []
    after = [_after_cells(review, of) for review in reviews if (review.after != NOBODY).any()]
    if after:
        header = ["reviewer", "agree", "disagree", "unsure", "took up the model's class"]
        made.append(Table("After seeing the prediction", [header, *after]))
    doubted = list(_doubted(reviews, of))
    if doubted:
        total = len(doubted)
        title = "Tiles to which every blind answer is another class than the label"
        title += f", {_LISTED} of {total:,}" if total > _LISTED else ""
        made.append(Table(title, [["tile", "label", "reviewers", "model", "notes"], *doubted[:_LISTED]], texts=5))
    return made


def _comparisons(reviews: Sequence[Review], of: Reviewed) -> Iterator[tuple[str, str, str, Agreement]]:
    """Yield who is compared, on which answers, with whom, and how far they agree."""
    found = of.found
    for when in (BLIND, AFTER):
        answers = {
            review.reviewer: review.blind if when == BLIND else review.after_as_classes(found) for review in reviews
        }
        on: list[bytes] = []  # the tiles on which the model was compared with the labels
        for name, given in answers.items():
            if (given == NOBODY).all():
                continue
            if (found.labels != NOBODY).any():
                yield name, when, "labels", _of_both(given, found.labels, of)
            yield name, when, "model", _of_both(given, found.predictions, of)
            if (found.labels != NOBODY).any():
                model = np.where(given == NOBODY, NOBODY, found.predictions)
                if (tiles := (given != NOBODY).tobytes()) not in on:
                    on.append(tiles)
                    yield "model", "same", "labels", _of_both(model, found.labels, of)
        names = [name for name, given in answers.items() if (given != NOBODY).any()]
        for at, first in enumerate(names):
            for second in names[at + 1 :]:
                yield first, when, second, _of_both(answers[first], answers[second], of)
    if len(found.classes) > 2:  # who disagrees has not said with which class
        words = {review.reviewer: np.where(review.after == 2, NOBODY, review.after) for review in reviews}
        names = [name for name, given in words.items() if (given != NOBODY).any()]
        for at, first in enumerate(names):
            for second in names[at + 1 :]:
                yield first, "agree or not", second, _of_both(words[first], words[second], of)


def _of_both(first: IntArray, second: IntArray, of: Reviewed) -> Agreement:
    both = (first != NOBODY) & (second != NOBODY)
    groups = None if of.groups is None else np.asarray(of.groups)[both]
    return agreement(first[both], second[both], groups=groups)


def _cells(who: str, when: str, other: str, found: Agreement) -> list[str]:
    share = "" if found.share is None else f"{found.same:,} ({percent(found.share)})"
    ends = "" if found.share_interval is None else " to ".join(map(percent, found.share_interval))
    kappa = found.why_no_kappa.partition(":")[0] if found.kappa is None else f"{found.kappa:.2f}"
    interval = "" if found.kappa_interval is None else blocks.interval(found.kappa_interval, digits=2)
    if found.kappa is not None and not interval:
        interval = "too few slides"
    return [shortened(who, 30), when, shortened(other, 30), f"{found.tiles:,}", share, ends, kappa, interval]


def _after_cells(review: Review, of: Reviewed) -> list[str]:
    """Return what a reviewer said after the prediction, and how often a different blind answer was given up for it."""
    counts = [int((review.after == place).sum()) for place in range(3)]
    other = (review.blind != NOBODY) & (review.blind != of.found.predictions) & (review.after != NOBODY)
    changed = int((other & (review.after == 0)).sum())
    taken = f"{changed:,} of {int(other.sum()):,} that differed" if other.any() else "–"
    return [shortened(review.reviewer, 30), *(f"{number:,}" for number in counts), taken]


def _doubted(reviews: Sequence[Review], of: Reviewed) -> Iterator[list[str]]:
    """Yield the tiles to which all blind answers, of one or more reviewers, are the same class, and not the label."""
    found = of.found
    answers = np.stack([review.blind for review in reviews])
    given = answers != NOBODY
    highest = answers.max(0)
    agreed = given.any(0) & ((answers == highest) | ~given).all(0)
    rows = np.flatnonzero(agreed & (found.labels != NOBODY) & (highest != found.labels))
    for row in sorted(rows.tolist(), key=lambda row: -int(given[:, row].sum())):
        notes = one_line("; ".join(review.notes[row] for review in reviews if row in review.notes))
        who = count(int(given[:, row].sum()), "reviewer")
        names = (found.classes[of_] for of_ in (found.labels[row], highest[row], found.predictions[row]))
        label, said, model = (shortened(name, 30) for name in names)
        yield [shortened(printable(found.ids[row]), 60), label, f"{said} ({who})", model, shortened(notes, 80)]


def notes(reviews: Sequence[Review], of: Reviewed) -> list[str]:
    """Return what a reader must know of the tables, a sentence each."""
    found = of.found
    said = []
    for review in reviews:
        left = [f"{count(review.cannot_tell, 'tile')} where they cannot tell"] if review.cannot_tell else []
        left += [f"{review.not_blind:,} whose prediction had been on screen"] if review.not_blind else []
        if left:
            said.append(f"left out of the blind answers of {review.reviewer}: {', '.join(left)}")
    reviewed = np.any([(review.blind != NOBODY) | (review.after != NOBODY) for review in reviews], axis=0)
    known = found.labels != NOBODY
    if (reviewed & known).any():
        wrong = found.predictions != found.labels
        here, everywhere = float(wrong[reviewed & known].mean()), float(wrong[known].mean())
        number = int(reviewed.sum())
        said.append(
            f"{number:,} of {count(len(found.ids), 'tile')} {'was' if number == 1 else 'were'} reviewed; the "
            f"model is wrong on {percent(here)} of these and on {percent(everywhere)} of all"
            + (", so agreement with it is not that over all tiles" if abs(here - everywhere) > 0.05 else "")
        )
    if any((review.after_as_classes(found) != NOBODY).any() for review in reviews):
        said.append(
            "answers after seeing the prediction stand for a class: who disagrees means the other one; they follow the "
            "model more than blind ones, and say less about it"
        )
    intervals = "tiles taken as independent" if of.groups is None else f"over {GROUPS}"
    return [*said, _METHOD, f"95% intervals, {intervals}"]
