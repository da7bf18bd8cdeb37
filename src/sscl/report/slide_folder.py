"""A folder that `sscl predict` wrote of slides, read back: which slides, and what was said of their tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.data.csv_files import finite, read_rows
from sscl.places import printable
from sscl.records import read_record
from sscl.report.slide_cam import read_cam
from sscl.report.slide_page import SlideContent
from sscl.report.slide_record import FILE, MADE_BY, PredictedSlide
from sscl.slides.index import is_index
from sscl.words import count

TILES = "tiles.csv"
PROBABILITY = "probability_"


@dataclass(frozen=True)
class SlideFolder:
    """A predicted slide. folder: that has slide.json and tiles.csv."""

    folder: Path
    record: PredictedSlide


def slide_files(folder: Path) -> list[Path]:
    """Return slide.json of each predicted slide in a folder; an index beside them may have a file of that name."""
    found = sorted(folder.rglob(FILE))
    return [file for file in found if not any(up.name == "slides" and is_index(up.parent) for up in file.parents)]


def slide_folders(folder: Path) -> list[SlideFolder]:
    """Return all predicted slides in a folder, by name; the folder may be that of one slide.

    Raises:
        FileNotFoundError, ValueError: there is none, or one cannot be read, in one line.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: {folder} is no folder; give one that `sscl predict` wrote of slides")
    files = slide_files(folder)
    if not files:
        raise ValueError(f"folder: {folder} has no {FILE}; give a folder that `sscl predict` wrote of slides")
    found = [SlideFolder(file.parent, read_record(PredictedSlide, file, made_by=MADE_BY)) for file in files]
    return sorted(found, key=lambda slide: slide.record.name)


def content_of(slide: SlideFolder) -> SlideContent:
    """Return what the page of a slide shows, without its picture.

    Raises:
        ValueError, FileNotFoundError: tiles.csv or cam.npz is not what `sscl predict` writes, in one line.
    """
    file = slide.folder / TILES
    xy, coverage, probabilities, decided = _read_tiles(file, slide.record.classes)
    if len(xy) != slide.record.tiles:
        raise ValueError(
            f"{printable(str(file))}: has {count(len(xy), 'tile')}, but {slide.record.tiles:,} were predicted; copy "
            "the folder again, or predict the slide again"
        )
    cam = None if slide.record.cam is None else read_cam(slide.folder)
    return SlideContent(slide.record, xy, coverage, probabilities, decided, cam=cam)


def _read_tiles(
    path: Path, classes: Sequence[str]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.bool_]]:
    names = ["x", "y", "coverage", "decided", *(PROBABILITY + name for name in classes)]
    rows = read_rows(path, columns=names)
    line, header = next(rows)
    absent = [name for name in names if name not in header]
    if absent:
        raise ValueError(
            f"{printable(str(path))}: line {line}: lacks the column {absent[0]!r}; predict the slide again"
        )
    at = [header.index(name) for name in names]
    numbers, decided = [], []
    for line, row in rows:
        where = f"{printable(str(path))}: line {line}"
        cells = [row[at[0]], row[at[1]], row[at[2]] or "-1", *(row[place] for place in at[4:])]
        numbers.append([finite(cell, name=f"{where}: x, y, coverage or probability") for cell in cells])
        decided.append(row[at[3]] == "yes")
    values = np.array(numbers, np.float64).reshape(-1, len(names) - 1)
    whole = np.rint(values[:, :3]).astype(np.int32)
    return whole[:, :2].copy(), whole[:, 2].copy(), values[:, 3:].astype(np.float32), np.array(decided, bool)
