"""A slide's levels, and whether their tiles are read from the file or through openslide."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sscl.places import printable
from sscl.slides.encoded import read_tile
from sscl.slides.handles import Handles
from sscl.slides.records import Level, SlideError
from sscl.slides.tiff import DirectoryError, Page, tiled_pages
from sscl.words import count, short

_VENDORS = ("aperio", "generic-tiff")  # whose levels are a TIFF's pages, tile beside tile
_NEAR = 1.5  # pixels of a level by which a whole factor may miss its size
_SAME_SHAPE = 0.02  # by which width and height may be reduced differently
_ALIKE = 10.0  # mean difference to what openslide reads between pixels


@dataclass(frozen=True)
class Pyramid:
    """Levels and how they are read, as `Slide` has them."""

    levels: tuple[Level, ...]
    reader: str = "openslide"
    notes: tuple[str, ...] = ()


def pyramid(handle: Any, path: Path, *, vendor: str) -> Pyramid:
    """Return a slide's levels.

    JPEG tiles are read from the file if of those tried one, at least, gives the same pixels as through openslide, and
    none gives others. JPEG 2000 tiles are so only of a level where openslide reads between pixels.

    Raises:
        SlideError: the file is truncated, or its directory says what cannot be.
        Exception: whatever openslide says.
    """
    sizes, factors = handle.level_dimensions, handle.level_downsamples
    levels = [_level(sizes[0], own, factor) for own, factor in zip(sizes, factors, strict=True)]
    if vendor not in _VENDORS:
        return Pyramid(tuple(levels))
    try:
        pages = tiled_pages(path)
    except DirectoryError as error:
        raise SlideError(f"{printable(str(path))}: is truncated or damaged: {error}; copy it again") from None
    except Exception as error:  # of tifffile; openslide reads the file all the same
        return Pyramid(
            tuple(levels), notes=(f"read through openslide: its directory is damaged ({short(str(error))})",)
        )
    first = [page for page in pages if not page.below]
    below = [page for page in pages if page.below and page.width < levels[0].width] if len(levels) == 1 else []
    own = [_take(first, level) for level in levels]
    top = own[0]
    if top is None or top.encoded is None:
        notes = () if top is None else (f"read through openslide: {top.why}",)
        unread = count(len(below), "smaller level")
        return Pyramid(tuple(levels), notes=(*notes, f"{unread} (SubIFDs) cannot be read") if below else notes)
    found = list(levels)
    with contextlib.closing(Handles(1)) as readers:
        for i, of_level in enumerate(own):
            if of_level is None or of_level.encoded is None:
                continue
            if of_level.encoded.codec == "jpeg2000" and levels[i].exact:
                continue  # no faster, and two versions of OpenJPEG round one pixel in a million differently
            why = _differs(readers, path, i, levels[i], of_level)
            if why:
                return Pyramid(tuple(levels), notes=(f"read through openslide: {why}",))
            found[i] = levels[i].model_copy(update={"encoded": of_level.encoded, "exact": True})
    found += _below(levels[0], below)
    lost = sum(page.encoded is None for page in below)
    notes = (f"{count(lost, 'smaller level')} (SubIFDs) cannot be read",) if lost else ()
    reader = top.encoded.codec if any(level.encoded for level in found) else "openslide"
    return Pyramid(tuple(found), reader=reader, notes=notes)


def _level(whole: tuple[int, int], size: tuple[int, int], factor: float) -> Level:
    """Return a level through openslide, which takes its factor to be `factor`."""
    near = max(1, round(factor))
    is_whole = all(abs(a / near - b) <= _NEAR for a, b in zip(whole, size, strict=True))
    return Level(
        width=size[0], height=size[1], factor=float(near) if is_whole else factor, exact=is_whole and factor == near
    )


def _take(pages: list[Page], level: Level) -> Page | None:
    """Return the next page of a level's size, and take it out of the list."""
    for i, page in enumerate(pages):
        if (page.width, page.height) == (level.width, level.height):
            return pages.pop(i)
    return None


def _below(first: Level, pages: list[Page]) -> list[Level]:
    """Return the levels that SubIFDs are and openslide does not see, from the largest down."""
    found = []
    for page in sorted(pages, key=lambda page: -page.width):
        across, down = first.width / page.width, first.height / page.height
        if page.encoded is not None and abs(across / down - 1) <= _SAME_SHAPE:
            level = _level((first.width, first.height), (page.width, page.height), (across + down) / 2)
            found.append(level.model_copy(update={"encoded": page.encoded, "exact": True}))
    return found


def _differs(readers: Handles, path: Path, index: int, level: Level, page: Page) -> str:
    """Return why a level's tiles are not read from the file; empty: they are."""
    how, why, equal = page.encoded, "", 0
    assert how is not None
    columns = -(-level.width // how.width)
    file = os.open(path, os.O_RDONLY)
    try:
        for number in dict.fromkeys(page.samples):
            x, y = number % columns * how.width, number // columns * how.height
            theirs = np.empty((min(how.height, level.height - y), min(how.width, level.width - x), 4), dtype=np.uint8)
            try:
                own = read_tile(file, how, number)[: theirs.shape[0], : theirs.shape[1]]
                readers.read(str(path), level=index, x=x, y=y, out=theirs)
            except Exception as error:  # one of them says that it is damaged, which is no difference
                why = why or f"its tiles cannot be decoded otherwise ({short(str(error))})"
                continue
            away = np.abs(own[:, :, :3].astype(np.int16) - theirs[:, :, 2::-1])
            if away.any() if level.exact else away.mean() > _ALIKE:
                return f"its tiles, decoded otherwise, give other pixels (by up to {away.max()})"
            equal += 1
    finally:
        os.close(file)
    return "" if equal else why
