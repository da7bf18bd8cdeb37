"""Which slides the words of a command line mean: what lies below folders, each slide once, the rest accounted for.

A slide is a file with the ending of a scanner's format, or a folder that holds nothing but the DICOM files of one.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sscl.data.listing import SUFFIXES, PassedOver, Walked, walk
from sscl.places import missing, printable
from sscl.slides.index import is_index
from sscl.slides.open import SUFFIXES as SLIDE_SUFFIXES
from sscl.slides.open import is_slide
from sscl.slides.tiff import tiled_pages
from sscl.words import count

AGAIN = "link to a slide listed already"
_LONGEST = 200  # bytes of a part of a name: files of the index have longer ones
_PARTS = {".mrxs"}  # whose pixels lie in a folder of the same name


@dataclass(frozen=True)
class SlideFile:
    """A slide that was found: its name in an index, and the absolute path of its file or DICOM folder.

    Where its name cannot be that of a file of an index, `fault` says so; name and path can be printed all the same.
    """

    name: str
    path: str
    fault: str | None = None


@dataclass
class SlideListing:
    """What the words mean.

    Attributes:
        slides: by name, each once.
        passed_over: all other files. images: how many of them are plain images.
        faults: (path, reason) of folders that cannot be listed.
    """

    slides: list[SlideFile] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)
    faults: list[tuple[str, str]] = field(default_factory=list)

    @property
    def images(self) -> int:
        """How many plain images were passed over."""
        return sum(number for kind, number in self.passed_over.counts.items() if kind in SUFFIXES)


@dataclass(frozen=True)
class _Found:
    """A slide below a word: its absolute path, and where it really is, links followed."""

    path: str
    real: str


def list_slides(words: Sequence[str]) -> SlideListing:
    """Return the slides that files and folders hold.

    Names are paths below the folder that was given; of several words, below the folder that holds them all. Of a file
    and links to it the file is listed, of links alone the first.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a folder cannot be listed, or there is no slide.
    """
    listing = SlideListing()
    given = {os.path.abspath(word): word for word in words}
    tops = list(given)
    for top, word in given.items():
        if not os.path.lexists(top):
            raise FileNotFoundError(missing(word, "slide or folder of slides"))
        if is_index(Path(top)):
            raise ValueError(f"{word}: is an index already; name the folder of the slides")
    found = [one for top in tops for one in _below(top, listing)]
    kept: dict[str, _Found] = {}
    for one in sorted(found, key=lambda one: one.path != one.real):
        if one.real in kept:
            if kept[one.real].path != one.path:  # not the same file under two words
                listing.passed_over.add(AGAIN, os.path.basename(one.path))
        else:
            kept[one.real] = one
    start = (
        tops[0] if len(tops) == 1 and not _is_slide(tops[0]) else os.path.commonpath([os.path.dirname(t) for t in tops])
    )
    names = {one: os.path.relpath(one.path, start).replace(os.sep, "/") for one in kept.values()}
    listing.slides = sorted((_named(name, one.path) for one, name in names.items()), key=lambda slide: slide.name)
    if not listing.slides:
        raise ValueError(_none(words, listing))
    return listing


def _below(top: str, listing: SlideListing) -> list[_Found]:
    """Return the slides of a word, in order: the word itself, or those below the folder."""
    if not os.path.isdir(top) or _is_slide(top):
        return [_Found(top, os.path.realpath(top))]
    found: list[_Found] = []
    faults: list[tuple[str, str]] = []
    named: list[_Found] = []  # folders with the name of a slide
    for folder in walk(top, listing.passed_over, faults, suffixes=SLIDE_SUFFIXES):
        here = os.path.join(top, folder.path) if folder.path else top
        if folder.path and os.path.splitext(here)[1].lower() in SLIDE_SUFFIXES:
            named.append(_Found(here, folder.real))
        if folder.path and folder.images and is_slide(Path(here)):
            found.append(_Found(here, folder.real))
            folder.folders.clear()
            continue
        found += [_Found(os.path.join(top, path), real) for path, real in map(folder.file, _own(folder))]
    if faults and faults[0][0] == printable(top):
        raise ValueError(f"{faults[0][0]}: {faults[0][1]}; expected a folder of slides")
    listing.faults += faults
    return found + [one for one in named if not any(slide.path.startswith(f"{one.path}{os.sep}") for slide in found)]


def _own(folder: Walked) -> list[str]:
    """Return the slides in a folder; the folders that hold their pixels are not walked."""
    stems = {os.path.splitext(name)[0] for name in folder.images if os.path.splitext(name)[1].lower() in _PARTS}
    folder.folders[:] = [path for path in folder.folders if os.path.basename(path) not in stems]
    return folder.images


def _is_slide(path: str) -> bool:
    """Return whether a word is a slide by itself: a file, or a folder of DICOM files alone."""
    return not os.path.isdir(path) or is_slide(Path(path))


def _named(name: str, path: str) -> SlideFile:
    """Return a slide under its name, or under one like it that a file can have and that can be printed."""
    longest = max(len(os.fsencode(part)) for part in name.split("/"))
    if longest > _LONGEST:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        parts = [part if len(os.fsencode(part)) <= _LONGEST else f"{part[:40]}...{digest}" for part in name.split("/")]
        fault = f"has a name of more than {_LONGEST} bytes; rename it"
        return SlideFile(printable("/".join(parts)), printable(path), fault)
    if printable(name) != name:
        fault = "has a line break or another character that cannot be printed in its name, or is not UTF-8; rename it"
        return SlideFile(printable(name), printable(path), fault)
    why = None if printable(path) == path else "lies in a folder whose name cannot be printed; rename that folder"
    return SlideFile(name, printable(path), why)


def _none(words: Sequence[str], listing: SlideListing) -> str:
    """Return the line that says that there is no slide, and what there is."""
    where = f"{printable(words[0])}: " if len(words) == 1 else ""
    if listing.images:
        image = count(listing.images, "plain image")
        to_do = "tiles need no index: give the folder to pretrain, finetune, ... as it is (data.source=folder)"
        return f"{where}has no slide, but {image} ({listing.passed_over}); {to_do}"
    known = ", ".join(sorted(SLIDE_SUFFIXES))
    over = f"; passed over: {listing.passed_over}" if listing.passed_over else ""
    return f"{where}has no slide (looked for {known} and folders of .dcm files){over}"


_PYRAMIDS_LOOKED_AT = 3  # TIFFs of a folder, to see whether they are slides or tiles
_LARGE_PX = 8192  # no tile has more a side


def instead_of_tiles(root: str, error: Exception) -> str | None:
    """Return what to do with slides where tiles are wanted; None where there are no slides.

    Args:
        root: a folder, or a file, that could not be used as tiles. error: why; it is said where there are images too.
    """
    if not os.path.isdir(root) and not is_slide(Path(root)):
        return None
    if is_index(Path(root, "index")):
        return f"{root}: is no set of tiles, but holds an index of slides: give {shlex.quote(root)}/index"
    listing = _listed(root)
    number = 0 if listing is None else _whole(listing)
    if listing is None or not number:
        return None
    what = "is a whole slide" if _is_slide(os.path.abspath(root)) else f"holds {count(number, 'whole slide')}"
    to_do = f"sscl slides tile {shlex.quote(root)} out=INDEX mpp=0.5 finds the tissue; then give INDEX"
    return f"{error}; it {what}: {to_do}" if listing.images else f"{root}: {what}: {to_do}"


def meant(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return which words are indexes, which are slides or folders of them, and which are neither: tiles."""
    indexes = [word for word in words if is_index(Path(word))]
    slides = [word for word in words if word not in indexes and _means_slides(word)]
    return indexes, slides, [word for word in words if word not in indexes and word not in slides]


def _means_slides(word: str) -> bool:
    if os.path.isdir(word):
        listing = _listed(word)
        return listing is not None and _whole(listing) > 0
    ending = os.path.splitext(word)[1].lower()
    return os.path.lexists(word) and ending in SLIDE_SUFFIXES and (ending not in SUFFIXES or _is_pyramid(word))


def _listed(root: str) -> SlideListing | None:
    """Return the slides that a word means; None where there are none."""
    try:
        return list_slides([root])
    except (ValueError, OSError):
        return None


def _whole(listing: SlideListing) -> int:
    """Return how many of the files listed are slides, where TIFFs may be tiles."""
    plain = [slide.path for slide in listing.slides if os.path.splitext(slide.path)[1].lower() in SUFFIXES]
    tiles = not any(map(_is_pyramid, plain[:_PYRAMIDS_LOOKED_AT]))
    return len(listing.slides) - (len(plain) if tiles else 0)


def _is_pyramid(path: str) -> bool:
    """Return whether a TIFF is a slide rather than a picture: it has several tiled pages, or a very large one."""
    try:
        pages = tiled_pages(Path(path))
    except Exception:  # of tifffile: then it is neither, or the extra is not installed
        return False
    return len(pages) > 1 or any(max(page.width, page.height) > _LARGE_PX for page in pages)
