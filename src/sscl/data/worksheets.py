"""Worksheets of reviewers, row by row: the CSV that a page's "Download worksheet" writes (page/worksheet.js).

Also as spreadsheets save it, and with fewer columns: id, and blind or review, must be there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sscl.data.csv_files import finite, read_rows
from sscl.words import first_twice, short, some

AGREE, DISAGREE, UNSURE = WORDS = ("agree", "disagree", "unsure")  # after the prediction was seen
CANNOT_TELL = "(cannot tell)"
BLIND = "blind-"  # how the names of tiles begin in a worksheet of blind review
_FORMULA = re.compile("'*[=+\\-@\\t\\r\\n＝＋－＠]")  # as in page/csv.js, which guards such cells by an apostrophe
_TEXTS = ("report", "reviewer", "id", "predicted", "blind", "blind_at", "note", "changed", "slide", "quickhash")
_COLUMNS = (*_TEXTS, "seen_before", "review", "classes", "tile_um")
_FNV = 0x811C9DC5


@dataclass(frozen=True)
class Answer:
    """A row with an answer or a note. Texts are "" where the worksheet does not say.

    Attributes:
        where: file and line, for messages. report: key of the page. reviewer: who answered.
        id: of the tile; of a blind review a digest, see `blind_name`.
        predicted: class that the page showed. blind: class named before that, or CANNOT_TELL. blind_at: when.
        seen_before: whether the prediction had been on screen when that class was named.
        review: one of WORDS. note: free text. changed: when the row was last changed.
        classes: of the classifier. slide, quickhash: name and identity of the slide. tile_um: side of a tile, µm.
    """

    where: str
    report: str
    reviewer: str
    id: str
    predicted: str
    blind: str
    blind_at: str
    note: str
    changed: str
    slide: str
    quickhash: str
    seen_before: bool
    review: str
    classes: tuple[str, ...]
    tile_um: float | None


def read_answers(path: Path) -> Iterator[Answer]:
    """Yield the rows of a worksheet that hold an answer or a note.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no worksheet, or a cell is not as the page writes it, in one line.
    """
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
            where = f"{path}: line {line}"
            yield Answer(
                where=where,
                **{name: cells[name] for name in _TEXTS},
                seen_before=cells["seen_before"].casefold() == "yes",
                review=_word_of(cells["review"], where),
                classes=_classes_of(cells["classes"], where),
                tile_um=finite(cells["tile_um"], name=f"{where}: tile_um") if cells["tile_um"] else None,
            )


def _unguarded(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _word_of(text: str, where: str) -> str:
    """Return the one of WORDS that an answer is, or is the first letter of; "" without one."""
    word = text.casefold()
    found = "" if not word else next((one for one in WORDS if word in (one, one[0])), None)
    if found is None:
        raise ValueError(f"{where}: review is {text!r}, allowed are {', '.join(WORDS)}, or nothing")
    return found


def _classes_of(text: str, where: str) -> tuple[str, ...]:
    try:
        found = json.loads(text or "[]")
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{where}: classes is {short(text)}, not a list of names as the page writes it")
    return tuple(name.strip() for name in found)


# --- names ---


def as_shown(name: str) -> str:
    """Return the name of a tile as a browser writes it: a file name that is no UTF-8 has other characters there."""
    return name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def blind_name(key: str, name: str) -> str:
    """Return what a worksheet of blind review calls a tile of a report (page/blind.js): nothing of its file's name.

    Twice FNV-1a of 32 bits, with another beginning; key: of the report.
    """
    return next(blind_names(key, "", [name]))


def blind_names(key: str, start: str, ends: list[str]) -> Iterator[str]:
    """Yield `blind_name` of tiles whose names begin alike: a slide has many."""
    first, second = (_fnv((before + key + as_shown(start)).encode()) for before in ("", "2"))
    for end in ends:
        text = as_shown(end).encode()
        yield f"{BLIND}{_fnv(text, first):08x}{_fnv(text, second):08x}"


def _fnv(text: bytes, value: int = _FNV) -> int:
    for byte in text:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value
