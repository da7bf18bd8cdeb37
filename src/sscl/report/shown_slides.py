"""What `sscl slides view` shows: slides that were predicted, those of an index with its tiles, or slides alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.data.slide_files import list_slides
from sscl.report.slide_folder import SlideFolder, content_of, slide_files, slide_folders
from sscl.report.slide_page import SlideContent
from sscl.report.slide_record import PredictedSlide
from sscl.slides.index import Index, is_index, notes_of, read_entries, read_index
from sscl.slides.open import open_slide
from sscl.slides.records import Scaling, Slide
from sscl.slides.stitch import cells_of
from sscl.words import count, some

TISSUE, TISSUE_COLOUR = "tissue", (0, 114, 178)  # the only class of tiles of which nothing is predicted
_THRESHOLD = 0.5


@dataclass(frozen=True)
class ShownSlide:
    """A slide to show.

    Attributes:
        name: below the folder that was given. path: of its file, as it was. said: of it, in a line of a list.
        predicted: whether there are answers to its tiles.
        content: makes what its page shows, from the path of its file as it is now.
    """

    name: str
    path: Path
    said: str
    predicted: bool
    content: Callable[[Path], SlideContent]


def shown_slides(folder: Path, *, blind: bool = False) -> list[ShownSlide]:
    """Return the slides of a folder that `sscl predict` or `sscl slides tile` wrote, or those that lie in it, by name.

    Args:
        blind: whether the pages open in blind review.

    Raises:
        FileNotFoundError, ValueError: there is none, or a file cannot be read, in one line.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"folder: {folder} is not there; give a folder that `sscl predict` or `sscl slides tile` wrote, or slides"
        )
    if folder.is_dir() and not is_index(folder) and slide_files(folder):
        return [_predicted(slide, blind=blind) for slide in slide_folders(folder)]
    if blind:
        raise ValueError(f"blind: {folder} holds no predicted slides, so there is nothing to hide; leave blind out")
    if is_index(folder):
        return _of_index(read_index(folder))
    found = list_slides([str(folder)]).slides
    if len(found) == 1:  # nothing would be left to show
        open_slide(Path(found[0].path), name=found[0].name)
    return [ShownSlide(slide.name, Path(slide.path), "", False, partial(_alone, slide.name)) for slide in found]


def _predicted(slide: SlideFolder, *, blind: bool) -> ShownSlide:
    record = slide.record
    counts = some([f"{label} {number:,}" for label, number in record.class_counts.items()], most=8, first=6)
    undecided = sum(record.undecided.values())
    said = count(record.tiles, "tile")
    if not blind:
        said += f": {counts}" + (f"; {undecided:,} of them undecided" if undecided else "")
    return ShownSlide(record.name, Path(record.path), said, True, lambda path: replace(content_of(slide), blind=blind))


# --- nothing predicted ---


def _of_index(index: Index) -> list[ShownSlide]:
    notes = {entry.name: notes_of(entry) for entry in read_entries(index.folder)}
    return [
        ShownSlide(
            indexed.slide.name,
            indexed.slide.file,
            count(indexed.tiles, "tile"),
            False,
            partial(_indexed, index, number, notes.get(indexed.slide.name, ())),
        )
        for number, indexed in enumerate(index.slides)
    ]


def _indexed(index: Index, number: int, notes: tuple[str, ...], path: Path) -> SlideContent:
    """Return a slide with its tiles; how much of one is tissue stands for a probability."""
    indexed, grid = index.slides[number], np.array(index.grid(number))
    coverage = grid[:, 2]
    if coverage.min() < 0:
        notes = (*notes, "how much of a tile is tissue is not known: they came with coordinates")
    share = np.where(coverage < 0, 100, coverage)[:, None] / np.float32(100)
    return _bare(indexed.slide, grid, share, indexed.scaling, notes)


def _alone(name: str, path: Path) -> SlideContent:
    slide = open_slide(path, name=name)
    return _bare(slide, np.zeros((0, 3), np.int32), np.zeros((0, 1), np.float32), None, slide.notes)


def _bare(
    slide: Slide, grid: NDArray[np.int32], share: NDArray[np.float32], scaling: Scaling | None, notes: tuple[str, ...]
) -> SlideContent:
    """Return what the page of a slide of which nothing is predicted shows."""
    tiles, xy = len(grid), grid[:, :2]
    record = PredictedSlide(
        name=slide.name,
        path=slide.path,
        quickhash=slide.quickhash,
        width=slide.width,
        height=slide.height,
        mpp=slide.mpp or 0.0,
        mpp_from=slide.mpp_from,
        bounds=slide.bounds,
        vendor=slide.vendor,
        reader=slide.reader,
        icc=slide.icc,
        size_px=0 if scaling is None else scaling.size_px,
        tile_mpp=0.0 if scaling is None else scaling.mpp,
        footprint=1.0 if scaling is None else scaling.step,
        most_over=1 if scaling is None else int(cells_of(xy, scaling.step).counts.max()),
        tissue=None,
        classes=(TISSUE,),
        colours=(TISSUE_COLOUR,),
        positive=None,
        threshold=_THRESHOLD,
        checkpoint="",
        temperature=1.0,
        calibrated=False,
        decide_from=None,
        decide_from_method="",
        tiles=tiles,
        class_counts={TISSUE: tiles},
        undecided={TISSUE: 0},
        regions={},
        damaged=(),
        notes=notes,
    )
    return SlideContent(record, xy, grid[:, 2], share, np.ones(tiles, bool), predicted=False)
