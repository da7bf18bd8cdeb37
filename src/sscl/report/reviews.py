"""Worksheets of reviewers: what they answered, and how far they agree with the labels, the model and each other.

A worksheet is the CSV that the page's "Download worksheet" writes (page/worksheet.js), also as spreadsheets save it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sscl.data.csv_files import read_rows
from sscl.evaluate.intervals import Groups
from sscl.evaluate.metrics import IntArray
from sscl.evaluate.predictions import TilePredictions
from sscl.places import printable
from sscl.words import first_twice, nearest, some

WORDS = ("agree", "disagree", "unsure")  # after the prediction was seen
CANNOT_TELL = "(cannot tell)"
_BLIND = "blind-"  # how the names of tiles begin in a worksheet of blind review
NOBODY = -1  # instead of a class: no answer, or that the reviewer cannot tell
_FORMULA = re.compile("'*[=+\\-@\\t\\r\\n＝＋－＠]")  # as in page/csv.js, which guards such cells by an apostrophe
_COLUMNS = ("report", "reviewer", "id", "blind", "blind_at", "seen_before", "review", "note", "changed")


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
        for _ in _answers(Path(file)):
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
    row_of = {_as_shown(name): row for row, name in enumerate(found.ids)}
    blind, after = (np.full(len(found.ids), NOBODY, dtype=np.int64) for _ in range(2))
    cannot_tell = not_blind = 0
    notes: dict[int, str] = {}
    names: dict[str, None] = {}
    given: dict[int, tuple[str, ...]] = {}
    for line, cells in _answers(path):
        where = f"{path}: line {line}"
        if cells["report"] not in ("", of.key):
            raise ValueError(
                f"{where}: is of the report {cells['report']!r}, but this one is {of.key}: of other weights or tiles; "
                "give worksheets that were downloaded from a page of this run"
            )
        if cells["id"].startswith(_BLIND) and _BLIND not in row_of:  # not for worksheets of open review
            row_of |= {blind_name(of.key, name): row for row, name in enumerate(found.ids)} | {_BLIND: NOBODY}
        row = row_of.get(cells["id"])
        if row in (None, NOBODY):
            raise ValueError(f"{where}: {cells['id']!r} is not among the {len(found.ids):,} tiles of this report")
        if row in given:
            raise ValueError(f"{where}: {cells['id']!r} comes twice; keep one of its rows")
        given[row] = tuple(cells[key] for key in ("id", "blind", "blind_at", "review", "changed"))
        names |= {printable(cells["reviewer"]): None} if cells["reviewer"] else {}
        named = _class_of(cells["blind"], found.classes, where)
        cannot_tell += cells["blind"] == CANNOT_TELL
        if named != NOBODY and cells["seen_before"].casefold() == "yes":
            not_blind += 1
        else:
            blind[row] = named
        after[row] = _word_of(cells["review"], where)
        if cells["note"]:
            notes[row] = cells["note"]
    if not given:
        raise ValueError(f"{path}: holds no answer; review tiles on the page, then download its worksheet")
    if len(names) > 1:
        raise ValueError(f"{path}: is of several reviewers, {some(list(names))}; give each a file of their own")
    reviewer = next(iter(names), path.stem)
    return Review(reviewer, str(path), blind, cannot_tell, not_blind, after, notes, frozenset(given.values()))


def _answers(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line and the cells, by column, of each row with an answer or a note."""
    rows = read_rows(path, columns=("id",), delimiters=",;\t")
    line, header = next(rows)
    names = [name.strip().casefold() for name in header]
    twice = first_twice([name for name in names if name in _COLUMNS])
    if twice is not None:
        raise ValueError(f"{path}: line {line}: column {twice!r} comes twice; keep one")
    if "id" not in names or not {"blind", "review"} & set(names):
        raise ValueError(
            f"{path}: line {line}: has the columns {some([name.strip() for name in header])}; a worksheet has id, and "
            "blind or review"
        )
    at = {name: place for place, name in enumerate(names)}
    for line, row in rows:
        cells = {name: _unguarded(row[at[name]]) if name in at else "" for name in _COLUMNS}
        cells = {name: text if name == "id" else text.strip() for name, text in cells.items()}
        if cells["blind"] or cells["review"] or cells["note"]:
            yield line, cells


def _unguarded(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _as_shown(name: str) -> str:
    """Return the name of a tile as a browser writes it: a file name that is no UTF-8 has other characters there."""
    return name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def blind_name(key: str, name: str) -> str:
    """Return what a worksheet of blind review calls a tile of a report (page/blind.js): nothing of its file's name.

    Twice FNV-1a of 32 bits, with another beginning.
    """
    text = (key + _as_shown(name)).encode()
    return f"{_BLIND}{_fnv(text):08x}{_fnv(b'2' + text):08x}"


def _fnv(text: bytes) -> int:
    value = 0x811C9DC5
    for byte in text:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def _class_of(text: str, classes: Sequence[str], where: str) -> int:
    """Return the class that a blind answer names; NOBODY without one, and where the reviewer cannot tell."""
    if text in ("", CANNOT_TELL):
        return NOBODY
    same = [label for label, name in enumerate(classes) if name.strip() == text]
    same = same or [label for label, name in enumerate(classes) if name.strip().casefold() == text.casefold()]
    if len(same) != 1:
        raise ValueError(f"{where}: blind is {text!r}; {nearest(text, [*classes, CANNOT_TELL])}")
    return same[0]


def _word_of(text: str, where: str) -> int:
    """Return the place in WORDS of an answer, or of its first letter; NOBODY without one."""
    word = text.casefold()
    if not word:
        return NOBODY
    for place, allowed in enumerate(WORDS):
        if word in (allowed, allowed[0]):
            return place
    raise ValueError(f"{where}: review is {text!r}, allowed are {', '.join(WORDS)}, or nothing")
