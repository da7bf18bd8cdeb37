"""CSV files of others, read line by line within bounds; every fault in one line with the file and its line."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from sscl.config.data import COARSEST_MPP, FINEST_MPP
from sscl.file_kinds import binary_kind
from sscl.places import missing, printable
from sscl.reading import opened, why_unreadable
from sscl.words import short, some

# What pandas reads as missing, in any case: a spreadsheet of R or pandas has no class of that name.
MISSING = frozenset({"nan", "na", "n/a", "<na>", "#n/a", "#na", "null", "none"})
_DELIMITERS = ",;\t"
_MOST_CHARACTERS = 2**20  # of a line: of 10,000 classes, predictions.csv has some 100,000
_EXCEL = ("an Excel workbook", "save it as CSV UTF-8")


def read_table(path: Path, *, columns: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[int, list[str]]]:
    """Return (line number, values in the order of `columns` and `optional`) for every row of a CSV file with a header.

    Values are separated by commas, semicolons or tabs; blanks around them do not count, nor does the case of the
    header. Other columns and empty rows are ignored. The text is UTF-8, or UTF-16 with a byte-order mark.

    Args:
        columns: that must be there. optional: whose values are "" where they are not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing or comes twice, a value that is asked for has a line break, there are no rows,
            or as `read_rows`.
    """
    rows = read_rows(path, columns=columns, delimiters=_DELIMITERS)
    first, names = next(rows)
    header = [" ".join(name.split()) for name in names]  # a name may be broken into lines
    where = f"{path}: line {first}"
    places = [_place(name, header, where, required=name in columns) for name in (*columns, *optional)]
    table = []
    for line, row in rows:
        values = [row[place].strip() if place is not None else "" for place in places]
        for name, value in zip((*columns, *optional), values, strict=True):
            if "\n" in value or "\r" in value:
                raise ValueError(
                    f"{path}: line {line}: column {name!r} has a line break, {short(value)!r}; is a quote not closed?"
                )
        table.append((line, values))
    if not table:
        raise ValueError(f"{path}: has a header but no rows")
    return table


def read_rows(path: Path, *, columns: Sequence[str], delimiters: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, values) for the header, then for every row that is not empty, as they are in the file.

    Args:
        columns: that the header should have, to tell the delimiter by. delimiters: what may separate values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text or has no header; a row is too short or too long, a line longer than any table has;
            a quote that is not closed.
    """
    reader = None
    above = 0
    try:
        with opened(path, expected="a CSV file") as file:
            lines = _lines(path, file)
            first, above = next(lines, ""), 1
            if first.lower().startswith("sep="):  # Excel's own first line
                first, above = next(lines, ""), 2
            delimiter = _delimiter(first, columns, delimiters)
            above -= 1
            reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
            header = next(reader, [])
            if not any(name.strip() for name in header):
                raise ValueError(f"{path}: is empty; expected the header {','.join(columns)}")
            yield above + 1, header
            for row in reader:
                line = reader.line_num + above
                if not any(value.strip() for value in row):
                    continue
                while len(row) > len(header) and not row[-1].strip():
                    row.pop()  # Excel fills rows up to the widest
                if len(row) != len(header):
                    raise ValueError(f"{path}: line {line}: {len(row)} values, expected {len(header)} as in the header")
                yield line, row
    except FileNotFoundError as error:
        raise FileNotFoundError(missing(path, "file")) from error
    except UnicodeError as error:
        raise ValueError(f"{path}: is not a CSV file in UTF-8 ({error}); save it as CSV UTF-8") from error
    except OSError as error:
        raise ValueError(f"{path}: {why_unreadable(path, error)}") from error
    except csv.Error as error:
        line = above + (reader.line_num if reader else 0)
        raise ValueError(f"{path}: line {line}: {printable(_meaning(error))}; save it as CSV UTF-8") from error


def whole_number(text: str, *, at_most: int = 2**31) -> int | None:
    """Return the number that a text of plain digits gives, None of any other text and of larger ones.

    Examples:
        >>> whole_number("7"), whole_number("-1"), whole_number("1_0"), whole_number("9" * 5000)
        (7, None, None, None)
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20):  # Python refuses 4,301 digits
        return None
    return int(text) if int(text) <= at_most else None


def finite(text: str, *, name: str) -> float:
    """Return the number that a text gives; name: what it is, for the message.

    Raises:
        ValueError: it is no number, or not finite, as nan and 1e400.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} {short(text)!r} is no finite number")
    return number


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """Yield the lines of a text file, with their ends."""
    start = file.read(4096) or b""
    file.seek(0)
    found = binary_kind(start[:8])
    if found is not None and (b"xl/" in start or b"[Content_Types].xml" in start or start[:1] == b"\xd0"):
        found = _EXCEL
    if found is not None:
        raise ValueError(f"{path}: is {found[0]}, not a CSV file; {found[1]}")
    marked = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = io.TextIOWrapper(file, encoding="utf-16" if marked else "utf-8-sig", newline="")
    number = 0
    while line := text.readline(_MOST_CHARACTERS + 1):
        number += 1
        if len(line) > _MOST_CHARACTERS:
            raise ValueError(f"{path}: line {number}: has more than {_MOST_CHARACTERS:,} characters; is it a table?")
        if "\0" in line:
            raise ValueError(f"{path}: line {number}: has a NUL character; is it damaged? Save it as CSV UTF-8")
        yield line


def _meaning(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "a quote is not closed before the end of the file"
    if "field limit" in text:
        return f"a value has more than {csv.field_size_limit():,} characters; is a quote not closed?"
    return text


def _delimiter(header: str, columns: Sequence[str], delimiters: str) -> str:
    """Return what separates the values of a table: what gives the header all columns, else what it has most of."""
    for delimiter in delimiters:
        try:
            names = {name.strip().casefold() for name in next(csv.reader([header], delimiter=delimiter), [])}
        except csv.Error:  # one long value, so it is not this one
            continue
        if {name.casefold() for name in columns} <= names and (len(names) > 1 or delimiter not in header):
            return delimiter
    return max(delimiters, key=header.count)


def _place(name: str, header: Sequence[str], where: str, *, required: bool) -> int | None:
    """Return where a column is in the header; None where it is not and need not be."""
    places = [place for place, other in enumerate(header) if other.casefold() == name.casefold()]
    if len(places) > 1:
        raise ValueError(f"{where}: column {name!r} comes {len(places)} times; keep one")
    if not places and required:
        found = some([short(printable(other)) for other in header])
        raise ValueError(f"{where}: column {name!r} is missing, found {found}; rename or add it")
    return places[0] if places else None


def read_mpp(path: Path | str, lines: Sequence[int], values: Sequence[str]) -> NDArray[np.float64] | None:
    """Return µm per pixel of each row, NaN where it is empty; None where the table has none.

    Raises:
        ValueError: a value is no number from 0.05 to 40.
    """
    values = ["" if value.casefold() in MISSING else value for value in values]
    if not any(values):
        return None
    found = []
    for line, value in zip(lines, values, strict=True):
        try:
            number = float(value.replace(",", ".")) if value else math.nan
        except ValueError:
            number = 0.0
        if value and not FINEST_MPP <= number <= COARSEST_MPP:
            raise ValueError(
                f"{path}: line {line}: mpp {short(value)!r}; expected µm per pixel, {FINEST_MPP:g} to "
                f"{COARSEST_MPP:g}, or nothing"
            )
        found.append(number)
    return np.array(found, dtype=np.float64)
