"""Whole slides of `sscl predict`: a table of them, each with a link to its page, as a page or a section of one."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from pathlib import Path
from urllib.parse import quote

from sscl.records import read_record
from sscl.report import blocks, studies
from sscl.report.blocks import Block, Section
from sscl.report.page.content import Content
from sscl.report.slide_record import ALL, MADE_BY, PAGE, THUMBNAIL, PredictedSlides
from sscl.report.summary import without_truth
from sscl.words import count, some

_MOST_CLASSES = 8  # that have a column


def slides_content(folder: Path, *, out: Path, made: str, blind: bool) -> Content:
    """Return the page.

    Args:
        out: the file of the page, from which links lead to those of the slides.
        blind: whether these open in blind review.
    """
    found = read_record(PredictedSlides, folder / ALL, made_by=MADE_BY)
    number = sum(line.status == "predicted" for line in found.slides)
    return {
        "title": f"{folder.resolve().name}: {count(number, 'slide')} without truth",
        "subtitle": f"predicted by {found.checkpoint}: {some(found.classes)}",
        "made": made,
        "id": hashlib.sha256((folder / ALL).read_bytes()).hexdigest()[:16],
        "sections": [
            _summary(found, number),
            _table("slides", "Slides", found, folder, out=out, blind=blind),
            studies.provenance([folder]),
        ],
        "gallery": None,
    }


def slides_section(name: str, folder: Path, *, out: Path, blind: bool) -> Section:
    """Return a section on slides without truth; out, blind: as in `slides_content`."""
    found = read_record(PredictedSlides, folder / ALL, made_by=MADE_BY)
    return _table(name, f"Slides without truth: {folder.resolve().name}", found, folder, out=out, blind=blind)


def _summary(found: PredictedSlides, number: int) -> Section:
    tiles = sum(line.tiles for line in found.slides)
    undecided = sum(line.undecided for line in found.slides)
    return without_truth(
        f"The classifier {found.checkpoint} named the class of {count(tiles, 'tile')} of {count(number, 'slide')}, and "
        f"left {undecided:,} of them undecided{_left_out(found)}.",
        "That is not known here: what these slides show is not known; how it did where that is known is in the report "
        "of its run.",
    )


def _table(name: str, title: str, found: PredictedSlides, folder: Path, *, out: Path, blind: bool) -> Section:
    """Return the slides: those that were predicted with links, then the others with why they were not."""
    predicted = [line for line in found.slides if line.status == "predicted"]
    others = [line for line in found.slides if line.status != "predicted"]
    classes = sorted(found.classes, key=lambda name: -sum(line.class_counts.get(name, 0) for line in predicted))
    shown = found.classes if len(classes) <= _MOST_CLASSES else tuple(classes[:_MOST_CLASSES])
    damaged = ["damaged"] if any(line.damaged for line in predicted) else []
    said = [] if blind else [*shown, "undecided"]  # who reviews blind is not told what a slide was taken for
    lines = [["slide", "tiles", *(f"{name}, %" for name in said), *damaged]]
    for line in predicted:
        numbers = [] if blind else [*(line.class_counts.get(name, 0) for name in shown), line.undecided]
        shares = [f"{100 * number / max(1, line.tiles):.1f}" for number in numbers]
        lines.append([line.name, f"{line.tiles:,}", *shares, *(f"{line.damaged:,}" for _ in damaged)])
    links = [_link(folder / line.name / PAGE, out, blind=blind) for line in predicted]
    pictures = [_picture(folder / line.name / THUMBNAIL) for line in predicted]
    facts = {
        "classifier": f"{found.checkpoint}, tiles of {found.size_px} px at {found.mpp:.4g} µm per pixel",
        "abstains": found.abstains,
        "index": found.index,
    }
    percent = "" if blind else "; percent of its tiles by most probable class, undecided ones among them"
    caption = f"Slides, each with a link to its page{percent}"
    parts: list[Block] = [
        blocks.facts(facts),
        blocks.table(caption, lines, links=links, pictures=pictures, sortable=len(lines) > 2),
    ]
    if others:
        rows = [["slide", "status", "reason"], *([line.name, line.status, line.reason or ""] for line in others)]
        parts.append(blocks.table("Slides that were not predicted", rows, numeric_from=3))
    parts.append(blocks.bullets([blocks.sentence(note) for note in found.notes]))
    hint = f"{count(len(predicted), 'slide')}, {count(sum(line.tiles for line in predicted), 'tile')}"
    return blocks.section(name, title, parts, hint=hint, folded=False)


def _left_out(found: PredictedSlides) -> str:
    """Return how many slides were not predicted, as the end of a sentence."""
    states = Counter(line.status for line in found.slides if line.status != "predicted")
    words = {"no tissue": "without tissue"}
    return "".join(f"; {count(number, 'slide')} {words.get(state, state)}" for state, number in states.items())


def _picture(file: Path) -> str:
    """Return a JPEG as a data URI; "" where there is none."""
    return f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}" if file.is_file() else ""


def _link(page: Path, out: Path, *, blind: bool) -> str:
    """Return a link from one page to another, relative, so that both can be moved together; "" to one that is not."""
    if not page.is_file():
        return ""
    here, there = out.parent.resolve(), page.resolve()
    # A browser goes up along the address, not along links: by these only where it need not go up.
    path = os.path.relpath(there, here) if there.is_relative_to(here) else os.path.relpath(page, out.parent)
    return f"./{quote(path.replace(os.sep, '/'))}{'#blind' if blind else ''}"
