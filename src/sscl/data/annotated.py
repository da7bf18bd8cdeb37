"""The classes of tiles by the areas that people have drawn on slides: a folder of GeoJSON as QuPath exports it.

A file is of the slide whose name it has: its path below the folder of slides, that without its ending, or, in whatever
folder, its file name, or that without its ending where only one slide has it; .geojson, and .gz if packed, comes last.
N tiles of S slides, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.data.ingest import group_ids
from sscl.data.tiles import UNLABELLED
from sscl.places import missing, printable
from sscl.slides.coverage import PRECISION, coverage_of
from sscl.slides.geojson import Annotations, NoAreas, account_of, first_of_class, read_annotations
from sscl.slides.names import SlideNames, file_of_each, stem
from sscl.slides.places import Places
from sscl.slides.records import Scaling, Slide
from sscl.words import count, short, some

SUFFIXES = (".geojson", ".geojson.gz")


@dataclass(frozen=True)
class Drawn:
    """Labels that were drawn.

    Attributes:
        classes: K names in order. labels: of each tile, (N,); -1: in no area, or in those of two classes.
        slide_of: the slide of each tile, (N,), by number. slides: how many there are.
        notes: what became of tiles, slides and files, a phrase each.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    slide_of: NDArray[np.int64]
    slides: int
    notes: tuple[str, ...]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The tiles that have a label."""
        return np.flatnonzero(self.labels != UNLABELLED)

    @property
    def tiles(self) -> list[int]:
        """How many of each slide have one."""
        found: list[int] = np.bincount(self.slide_of[self.rows], minlength=self.slides).tolist()
        return found

    @property
    def pairs(self) -> tuple[list[int], list[int]]:
        """Class and slide, by number, wherever a slide has tiles of a class."""
        found = np.unique(self.labels[self.rows] * self.slides + self.slide_of[self.rows])
        return (found // self.slides).tolist(), (found % self.slides).tolist()


def drawn_labels(
    folder: Path, slides: Sequence[tuple[Slide, Scaling]], places: Places, *, label_coverage: float
) -> Drawn:
    """Return the class of each tile of which areas of that class cover this share or more, and those of no other.

    Args:
        slides: in the order of `places`, with how their tiles are read.

    Raises:
        FileNotFoundError, ValueError: no such folder; no file, or two, of a slide; a file that cannot be used, see
            `read_annotations`; no tile with a class. Begins with "annotations: ".
    """
    files, unknown = _files(folder, places.names)
    found: dict[int, Annotations] = {}
    empty: list[str] = []
    for number, (slide, _) in enumerate(slides):
        if slide.name in files:
            try:
                found[number] = read_annotations(files[slide.name], slide)
            except NoAreas as error:
                empty.append(str(error))
            except ValueError as error:
                raise ValueError(f"annotations: {error}") from error
    if not found:
        raise ValueError(f"annotations: {empty[0]}")
    classes, name_of = _classes(found, folder)
    labels = np.full(len(places), UNLABELLED, np.int64)
    twice = 0
    for number, one in found.items():
        of = slice(*places.starts[number : number + 2].tolist())
        areas = [replace(polygon, label=name_of[polygon.label]) for polygon in one.polygons]
        side = slides[number][1].step
        enough = coverage_of(areas, places.xy[of], side=side, classes=classes) >= label_coverage - PRECISION
        labels[of] = np.where(enough.sum(1) == 1, enough.argmax(1), UNLABELLED)
        twice += int((enough.sum(1) > 1).sum())
    labelled = int((labels != UNLABELLED).sum())
    if not labelled:
        raise ValueError(
            f"annotations: {folder}: areas of one class cover {label_coverage:.0%} of no tile; draw larger areas, or "
            "lower label_coverage (coordinates are pixels of full resolution)"
        )
    passed = sum((Counter(annotations.passed_over) for annotations in found.values()), Counter[str]())
    notes = [f"each tile has the class of the annotated areas that cover {label_coverage:.0%} of it or more"]
    notes += [f"{count(len(empty), 'file')} without an area of a class"] if empty else []
    without = len(slides) - len(found)
    notes += [f"{count(without, 'slide')} without annotations left out"] if without else []
    outside = sum(int(places.starts[number + 1] - places.starts[number]) for number in found) - labelled - twice
    notes += [f"{count(outside, 'tile')} outside of all areas left out"] if outside else []
    notes += [f"{count(twice, 'tile')} in areas of two classes left out"] if twice else []
    notes += [f"not used: {account_of(passed)}"] if passed else []
    if unknown:
        shown = some(unknown, most=3, first=3)
        notes.append(f"{count(len(unknown), 'file')} of annotations of no slide with tiles ({shown})")
    return Drawn(classes, labels, places.slide_of(np.arange(len(places))), len(slides), tuple(notes))


def where_drawn(folder: Path, label: str) -> str | None:
    """Return the first file and annotation of a class, in words; None where no file has any."""
    for path in _geojson_files(folder):
        number = first_of_class(path, label)
        if number is not None:
            return f"{printable(str(path))}: annotation {number}"
    return None


def _geojson_files(folder: Path) -> dict[Path, str]:
    """Return the files of annotations in a folder and below, sorted, and the ending of each."""
    found = {}
    for path in sorted(folder.rglob("*")):
        suffix = next((end for end in SUFFIXES if path.name.lower().endswith(end)), None)
        if suffix is not None and not path.name.startswith(".") and path.is_file():
            found[path] = suffix
    return found


def _files(folder: Path, names: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Return the file of each slide that has one, by name, and the files of no slide."""
    if not folder.is_dir():
        what = f"{folder}: is a file; give its folder" if folder.exists() else missing(folder, "folder")
        raise FileNotFoundError(f"annotations: {what}")
    known, found = SlideNames(names), _geojson_files(folder)
    named = {path: path.relative_to(folder).as_posix() for path in found}
    files, others = file_of_each(
        ((path, known.meant(named[path][: -len(suffix)], as_path=True)) for path, suffix in found.items()),
        key="annotations",
        to_do="put it into a folder as the slide is, or give it the whole file name",
    )
    unknown = [short(named[path]) for path in others]
    if not files:
        of_others = f"its files are of other slides ({some(unknown, most=3, first=3)})"
        there = of_others if unknown else "it has no .geojson file"
        raise ValueError(
            f"annotations: {folder}: has no annotations of a slide of the index: {there}; name each file after its "
            f"slide, as {stem(names[0])}.geojson"
        )
    return files, unknown


def _classes(found: Mapping[int, Annotations], folder: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the classes in order, and the name of the class that each spelling stands for."""
    given = sorted({polygon.label for annotations in found.values() for polygon in annotations.polygons})
    names = group_ids(given, where=f"annotations: {folder}", what="class").tolist()
    return tuple(sorted(set(names))), dict(zip(given, names, strict=True))
