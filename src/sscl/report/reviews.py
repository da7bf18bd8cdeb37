"""Worksheets of reviewers: what they answered, and how far they agree with the labels, the model and each other.

`data.worksheets` reads them row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sscl.data.worksheets import BLIND, CANNOT_TELL, WORDS, as_shown, blind_name, read_answers
from sscl.evaluate.intervals import Groups
from sscl.evaluate.metrics import IntArray
from sscl.evaluate.predictions import TilePredictions
from sscl.places import printable
from sscl.words import first_twice, nearest, some

NOBODY = -1  # instead of a class: no answer, or that the reviewer cannot tell


@dataclass(frozen=True, eq=False)
class Reviewed:
    """The tiles that were reviewed. key: `Content.id` of their page. found: what was predicted."""

    key: str
    found: TilePredictions

    @property
    def groups(self) -> Groups | None:
        """Slide or patient of each tile."""
        return self.found.groups


@dataclass(frozen=True, eq=False)
class Review:
    """What a reviewer answered.

    Attributes:
        reviewer: what the reviewer is called. file: of the worksheet.
        blind: class named before the prediction was seen, (N,), else NOBODY. cannot_tell: tiles where that was the
            answer. not_blind: tiles named when their prediction had been on screen; these are not in `blind`.
        after: place in WORDS of what was said after it was seen, (N,), else NOBODY. notes: by row.
        given: all cells that hold answers; two files with the same ones are copies.
    """

    reviewer: str
    file: str
    blind: IntArray
    cannot_tell: int
    not_blind: int
    after: IntArray
    notes: dict[int, str]
    given: frozenset[tuple[str, ...]]

    def after_as_classes(self, found: TilePredictions) -> IntArray:
        """Return the classes that the answers after the prediction stand for, (N,): of two classes known, else NOBODY.

        Who disagrees with one of two classes means the other.
        """
        answers = np.full(len(self.after), NOBODY, dtype=np.int64)
        if len(found.classes) == 2:
            answers = np.where(self.after == 0, found.predictions, answers)
            answers = np.where(self.after == 1, 1 - found.predictions, answers)
        return answers


def check_files(files: Sequence[str]) -> None:
    """Raise ValueError or FileNotFoundError where a file is no worksheet at all, before anything else is done."""
    for file in files:
        for _ in read_answers(Path(file)):
            pass


def read_reviews(files: Sequence[str], of: Reviewed) -> list[Review]:
    """Return what the worksheets hold, each with a name of its own.

    Raises:
        ValueError, FileNotFoundError: a file is no worksheet of this page, in one line.
    """
    reviews = [_read(Path(file), of) for file in files]
    for at, review in enumerate(reviews):
        for other in reviews[:at]:
            if review.given == other.given:
                raise ValueError(f"reviews: {review.file} holds the same answers as {other.file}; give each once")
    names = [review.reviewer for review in reviews]
    if first_twice(names) is not None:
        stems = [Path(file).stem for file in files]
        names = list(files) if first_twice(stems) is not None else stems
    return [Review(**{**vars(review), "reviewer": name}) for review, name in zip(reviews, names, strict=True)]


def _read(path: Path, of: Reviewed) -> Review:
    found = of.found
    row_of = {as_shown(name): row for row, name in enumerate(found.ids)}
    blind, after = (np.full(len(found.ids), NOBODY, dtype=np.int64) for _ in range(2))
    cannot_tell = not_blind = 0
    notes: dict[int, str] = {}
    names: dict[str, None] = {}
    given: dict[int, tuple[str, ...]] = {}
    for answer in read_answers(path):
        where = answer.where
        if answer.slide and answer.report != of.key:
            raise ValueError(
                f"{where}: is of the slide {answer.slide!r}, whose own page (slide.html) reads it; its answers are "
                f"labels to sscl eval RUN INDEX data.reviews=[{path}]"
            )
        if answer.report not in ("", of.key):
            raise ValueError(
                f"{where}: is of the report {answer.report!r}, but this one is {of.key}: of other weights or tiles; "
                "give worksheets that were downloaded from a page of this run"
            )
        if answer.id.startswith(BLIND) and BLIND not in row_of:  # not for worksheets of open review
            row_of |= {blind_name(of.key, name): row for row, name in enumerate(found.ids)} | {BLIND: NOBODY}
        row = row_of.get(answer.id)
        if row in (None, NOBODY):
            raise ValueError(f"{where}: {answer.id!r} is not among the {len(found.ids):,} tiles of this report")
        if row in given:
            raise ValueError(f"{where}: {answer.id!r} comes twice; keep one of its rows")
        given[row] = (answer.id, answer.blind, answer.blind_at, answer.review, answer.changed)
        names |= {printable(answer.reviewer): None} if answer.reviewer else {}
        named = _class_of(answer.blind, found.classes, where)
        cannot_tell += answer.blind == CANNOT_TELL
        if named != NOBODY and answer.seen_before:
            not_blind += 1
        else:
            blind[row] = named
        after[row] = WORDS.index(answer.review) if answer.review else NOBODY
        if answer.note:
            notes[row] = answer.note
    if not given:
        raise ValueError(f"{path}: holds no answer; review tiles on the page, then download its worksheet")
    if len(names) > 1:
        raise ValueError(f"{path}: is of several reviewers, {some(list(names))}; give each a file of their own")
    reviewer = next(iter(names), path.stem)
    return Review(reviewer, str(path), blind, cannot_tell, not_blind, after, notes, frozenset(given.values()))


def _class_of(text: str, classes: Sequence[str], where: str) -> int:
    """Return the class that a blind answer names; NOBODY without one, and where the reviewer cannot tell."""
    if text in ("", CANNOT_TELL):
        return NOBODY
    same = [label for label, name in enumerate(classes) if name.strip() == text]
    same = same or [label for label, name in enumerate(classes) if name.strip().casefold() == text.casefold()]
    if len(same) != 1:
        raise ValueError(f"{where}: blind is {text!r}; {nearest(text, [*classes, CANNOT_TELL])}")
    return same[0]
