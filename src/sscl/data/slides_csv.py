"""What a table says of slides: a CSV with a row for each.

    slide     its path below the folder of slides, its file name, or that without its ending where only one has it
    mpp       µm per pixel at full resolution; comes before what the file says
    patient   slides of one patient stay on one side of each split
    label     the class of all its tiles
    split     train, val or test, in any spelling that `split_names.split_named` knows

Only `slide` must be there, and one of the others. Values are separated by commas, semicolons or tabs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sscl.data.csv_files import MISSING, read_mpp, read_table
from sscl.data.ingest import plain_path
from sscl.data.split_names import split_named
from sscl.slides.index import Labels
from sscl.slides.names import SlideNames
from sscl.words import closest, count, short, some

COLUMNS = ("mpp", "patient", "label", "split")


@dataclass(frozen=True)
class SlideTable:
    """What a table says of the slides that are there.

    Attributes:
        mpp: µm per pixel of those that it gives one. labels: of those that it names; both by name of the slide.
        unknown: what it names that is not there. unnamed: slides that it does not name.
    """

    mpp: Mapping[str, float]
    labels: Mapping[str, Labels]
    unknown: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Return what a reader must know, a sentence each."""
        notes = []
        if self.unknown:
            near = closest(self.unknown[0], self.unnamed, cutoff=0.8)
            meant = f"; is {short(self.unknown[0])} {near}?" if near else ""
            verb = "names" if len(self.unknown) == 1 else "name"
            notes.append(
                f"{count(len(self.unknown), 'row')} of slides_csv {verb} no slide that is here "
                f"({some([short(name) for name in self.unknown])}){meant}"
            )
        if self.unnamed:
            verb = "is" if len(self.unnamed) == 1 else "are"
            notes.append(
                f"{count(len(self.unnamed), 'slide')} {verb} not in slides_csv "
                f"({some([short(name) for name in self.unnamed])}): no label and no patient"
            )
        return notes


def read_slides_csv(path: str | Path, names: Sequence[str]) -> SlideTable:
    """Return what a table says of slides.

    Args:
        names: of the slides, as in the index.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing; it names none of the slides; a slide has two rows, or a row two slides; a value
            is not as above; a label without a split among others with one; a patient on two sides of the split.
    """
    path = Path(path)
    rows = read_table(path, columns=("slide",), optional=COLUMNS)
    lines = [line for line, _ in rows]
    given = [["" if value.casefold() in MISSING else value for value in values] for _, values in rows]
    if not any(any(values[1:]) for values in given):
        raise ValueError(f"{path}: says nothing of its slides; expected a column mpp, patient, label or split")
    scale = read_mpp(path, lines, [values[1] for values in given])
    labels = _labels(path, lines, given)
    slides = _named(path, lines, [values[0] for values in given], names)
    if not any(slides):
        raise ValueError(
            f"{path}: names none of the {count(len(names), 'slide')}: it has {short(given[0][0])!r}, ..., and there is "
            f"{names[0]!r}, ...; its column slide takes paths below the folder, or file names"
        )
    _check_patients(path, lines, labels)
    found = {slide: place for place, slide in enumerate(slides) if slide}
    return SlideTable(
        mpp={
            slide: float(scale[place])
            for slide, place in found.items()
            if scale is not None and not math.isnan(scale[place])
        },
        labels={slide: labels[place] for slide, place in found.items()},
        unknown=tuple(values[0] for values, slide in zip(given, slides, strict=True) if not slide),
        unnamed=tuple(name for name in names if name not in found),
    )


def _named(path: Path, lines: Sequence[int], given: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return which slide each row is of, "" where it is not there."""
    known = SlideNames(names)
    slides: list[str] = []
    first: dict[str, int] = {}
    for line, value in zip(lines, given, strict=True):
        if not value:
            raise ValueError(f"{path}: line {line}: column 'slide' is empty; fill it in or remove the row")
        form = plain_path(value)
        found = known.meant(form)
        if len(found) > 1:
            raise ValueError(
                f"{path}: line {line}: {short(value)!r} is the name of {count(len(found), 'slide')} ({some(found)}); "
                "write the path below the folder"
            )
        slide = found[0] if found else ""
        other = first.setdefault(slide or f"\0{form}", line)
        if other != line:
            raise ValueError(
                f"{path}: line {line}: {short(value)!r} is in line {other} too; expected one row for each slide"
            )
        slides.append(slide)
    return slides


def _labels(path: Path, lines: Sequence[int], given: Sequence[Sequence[str]]) -> list[Labels]:
    split_given = any(split for *_, split in given)
    found = []
    for line, (_, _, patient, label, split) in zip(lines, given, strict=True):
        named = split_named(split) if split else None
        if split and named is None:
            raise ValueError(f"{path}: line {line}: split got {short(split)!r}; allowed are train, val and test")
        if split_given and label and named is None:
            raise ValueError(
                f"{path}: line {line}: has a label and no split, which other rows have; give every labelled slide a "
                "split (train, val or test), or none"
            )
        found.append(Labels.model_validate({"patient": patient or None, "label": label or None, "split": named}))
    return found


def _check_patients(path: Path, lines: Sequence[int], labels: Sequence[Labels]) -> None:
    """Raise ValueError where slides of one patient are on two sides of a split."""
    first: dict[str, tuple[int, str]] = {}
    for line, of in zip(lines, labels, strict=True):
        if of.patient is not None and of.split is not None:
            other, split = first.setdefault(of.patient, (line, of.split))
            if split != of.split:
                raise ValueError(
                    f"{path}: line {line}: patient {short(of.patient)!r} is in {of.split}, in line {other} in {split}; "
                    "keep all slides of a patient in one split"
                )
