"""Tables as text for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """Return a table for the terminal: columns of equal width, the first one flush left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in lines
    )


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    ruler = ["---"] + ["---:"] * (len(lines[0]) - 1)
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in [lines[0], ruler, *lines[1:]]
    )
