"""Tables for the terminal and as Markdown, and names within Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sscl.words import left, right, width_of


class Table(NamedTuple):
    """A title, rows of cells with the header first, and how many columns on the left hold texts."""

    title: str
    lines: Sequence[Sequence[str]]
    texts: int = 1


def as_text(lines: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Return a table for the terminal.

    Args:
        lines: rows of cells, the header first. texts: columns on the left that are flush left; the rest, numbers, are
            flush right.
    """
    widths = [max(map(width_of, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            left(cell, width) if i < texts else right(cell, width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in lines
    )


def as_markdown(lines: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Return a table in Markdown; `|` in a cell is escaped. The arguments are those of `as_text`."""
    columns = len(lines[0])
    rule = ["---"] * min(texts, columns) + ["---:"] * (columns - texts)
    rows = [lines[0], rule, *lines[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows)


def one_line(text: object) -> str:
    """Return text on one line, without characters that cannot be printed or written."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(text))).strip()


def code(text: object) -> str:
    """Return a name as a Markdown code span, in which nothing is markup, whatever the name."""
    shown = one_line(text)
    fence = "`" * (_longest_ticks(shown) + 1)
    space = " " if not shown or shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def code_block(language: str, lines: Sequence[str]) -> list[str]:
    """Return lines as a fenced Markdown code block."""
    fence = "`" * max(3, _longest_ticks("\n".join(lines)) + 1)
    return [f"{fence}{language}", *lines, fence]


def escaped(text: str) -> str:
    """Return text on one line in which no character is Markdown markup."""
    return re.sub(r"([\\`*_\[\]<>#|$~])", r"\\\1", one_line(text))


def _longest_ticks(text: str) -> int:
    return max((len(ticks) for ticks in re.findall("`+", text)), default=0)
