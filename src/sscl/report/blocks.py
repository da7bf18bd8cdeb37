"""The blocks that a report's sections are made of, and numbers as they are shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from sscl.evaluate.verdicts import Outcome
from sscl.plots import svg
from sscl.report.page.content import (
    Block,
    Bullets,
    Code,
    Confusion,
    Facts,
    Figure,
    Lead,
    Section,
    Table,
    Text,
    Verdict,
)

__all__ = ["Block", "Section"]

_PICTURE_SIDE_PX = 1600


def section(name: str, title: str, blocks: Sequence[Block], *, hint: str = "", folded: bool = True) -> Section:
    """Return a section; `name` is its id, of letters, digits and hyphens, unique on the page.

    Args:
        hint: what is in it, beside its title. folded: whether only its title shows until a reader opens it.
    """
    return {"id": name, "title": title, "hint": hint, "folded": folded, "blocks": list(blocks)}


def lead(rows: Mapping[str, str]) -> Lead:
    """Return the sentences that a page begins with, by what each is about."""
    return {"kind": "lead", "rows": [[name, text] for name, text in rows.items()]}


def paragraph(text: str) -> Text:
    """Return a paragraph."""
    return {"kind": "text", "text": text}


def facts(rows: Mapping[str, str]) -> Facts:
    """Return names and values, a line each."""
    return {"kind": "facts", "rows": [[name, value] for name, value in rows.items()]}


def bullets(items: Sequence[str]) -> Bullets:
    """Return a list."""
    return {"kind": "list", "items": list(items)}


def table(
    caption: str,
    lines: Sequence[Sequence[str]],
    *,
    numeric_from: int = 1,
    links: Sequence[str] = (),
    pictures: Sequence[str] = (),
    sortable: bool = False,
) -> Table:
    """Return a table, see `Table`; the first of `lines` is its header."""
    header, *rows = ([str(cell) for cell in line] for line in lines)
    return {
        "kind": "table",
        "caption": caption,
        "header": header,
        "rows": rows,
        "numeric_from": numeric_from,
        "links": list(links),
        "pictures": list(pictures),
        "sortable": sortable,
    }


def code(title: str, text: str) -> Code:
    """Return lines that stay as they are, such as a configuration, under a title that unfolds them."""
    return {"kind": "code", "title": title, "text": text}


def verdict(outcome: Outcome, title: str, text: str) -> Verdict:
    """Return the answer to a question."""
    return {"kind": "verdict", "outcome": outcome.value.lower(), "title": title, "text": text}


def confusion(classes: Sequence[str], matrix: Sequence[Sequence[int]], *, note: str) -> Confusion:
    """Return a confusion matrix, rows = truth, whose cells filter the gallery."""
    return {"kind": "confusion", "classes": list(classes), "matrix": [list(row) for row in matrix], "note": note}


def figure(name: str, draw: Callable[[Path], None], *, alt: str, caption: str) -> Figure:
    """Return a chart; `draw` writes it to a path, `name` is unique on the page, `alt` describes it in words."""
    drawn = svg.inline(draw, prefix=f"figure-{name}")
    return {"kind": "figure", "svg": drawn, "png": None, "alt": alt, "caption": caption}


def picture(path: Path, *, alt: str, caption: str) -> Figure:
    """Return a picture of tiles from a file, as a JPEG of at most 1600 px a side."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((_PICTURE_SIDE_PX, _PICTURE_SIDE_PX), Image.Resampling.LANCZOS)
    return {"kind": "figure", "svg": None, "png": jpeg_uri(small, quality=82), "alt": alt, "caption": caption}


def jpeg_uri(image: Image.Image, *, quality: int) -> str:
    """Return an RGB image as a data URI."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def name_of(root: str) -> str:
    """Return what a set of tiles is called: the last part of its path, with the one before if that says little."""
    path = Path(root).resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("tiles", "images", "data") else path.name


def number(value: float | None, *, digits: int = 3) -> str:
    """Return a number as it is shown."""
    return "undefined" if value is None else f"{value:.{digits}f}"


def interval(pair: Sequence[float] | None, *, digits: int = 3) -> str:
    """Return the ends of an interval as they are shown; "" without one."""
    return "" if pair is None else f"{pair[0]:.{digits}f} to {pair[1]:.{digits}f}"


def percent(value: float) -> str:
    """Return a fraction as whole percent that never claims certainty, as the page's script does.

    Examples:
        >>> percent(0.815), percent(0.995), percent(1.0), percent(0.005)
        ('82%', '>99%', '100%', '<1%')
    """
    if 0.995 <= value < 1:
        return ">99%"
    return "<1%" if 0 < value <= 0.005 else f"{100 * value:.0f}%"


def percent_interval(pair: Sequence[float] | None) -> str:
    """Return a 95% interval in percent; "" without one."""
    return "" if pair is None else f"95% interval {percent(pair[0])} to {percent(pair[1])}"


def sentence(text: str) -> str:
    """Return a line of the terminal as a sentence, with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
