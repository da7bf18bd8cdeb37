"""Tiles with the classes that people gave them in reviews: worksheets of a report's page or of slide.html.

Only these tiles take part. Who agrees gives a tile the predicted class; who disagrees the class that the note names, or
of two classes the other one; who named a class blind, that class. N tiles of the set.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.config import DataConfig, SourceConfig
from sscl.data.folder import own_splits, read_layout
from sscl.data.ingest import classes_of, group_ids
from sscl.data.listing import Account
from sscl.data.slide_set import WEAK, some_of_each
from sscl.data.split import take_split
from sscl.data.split_names import SPLITS
from sscl.data.tiles import UNLABELLED, Tiles
from sscl.data.worksheets import (
    AGREE,
    BLIND,
    CANNOT_TELL,
    UNSURE,
    Answer,
    as_shown,
    blind_names,
    read_answers,
)
from sscl.slides.places import TileIds
from sscl.words import count, listed, nearest, short

_SAME = 0.02  # by how much the sides of tiles may differ
# Why a tile is left out.
_UNSURE = "on which they are unsure"
_DIFFER = "on which they differ"
_UNNAMED = "of another class than predicted, which nobody named (a note that is a class names it)"
_CHANGED = "whose class the reviewer took back once the prediction was seen"


@dataclass(frozen=True)
class Labels:
    """What reviewers said.

    Attributes:
        classes: in order. labels: class of each tile, (N,); -1: none. notes: what became of the answers, a phrase each.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    notes: tuple[str, ...]


@contextlib.contextmanager
def _of_reviews() -> Iterator[None]:
    """Put the key of the worksheets before what is wrong with them."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"reviews: {error}") from error


def takes_reviews(data: DataConfig) -> bool:
    """Return whether the tiles of a section have the classes of reviews; pretraining takes none without data.labels."""
    return bool(data.reviews) and not (isinstance(data, SourceConfig) and not data.labels)


def images_alone(data: DataConfig) -> bool:
    """Return whether a folder is taken as images alone, at any depth: its folders are not the classes of the reviews.

    Raises:
        FileNotFoundError, ValueError: a file is no worksheet. Begins with "reviews: ".
    """
    if data.source != "folder" or own_splits(data.root):
        return False
    known: set[str] = set()
    with _of_reviews():
        for answer in _answers(data.reviews):
            known |= {*answer.classes, answer.predicted, answer.blind}
    try:
        found = read_layout(data.root, groups_given=data.groups_csv is not None)[0].classes
    except ValueError:  # as of images beside folders
        return True
    return not known.issuperset(found)


def load_reviewed(data: DataConfig, load: Callable[[str], Tiles], *, split: str, own: bool) -> Tiles:
    """Return the reviewed tiles of a split with the classes that reviewers gave them.

    Where the set has splits, or labels by which sscl splits it, its reviewed tiles stay on their side: test tiles of a
    run are test tiles here too. Else the reviewed tiles are split.

    Args:
        load: gives the tiles of a split as they are without reviews. own: whether the set has splits of its own.

    Raises:
        FileNotFoundError, ValueError: of a worksheet; or no tile of the split was reviewed. Begins with "reviews: ".
    """
    whole = _with_folders_as_groups(load("all")) if data.source == "folder" else load("all")
    found = review_labels(data, whole)
    rows = np.flatnonzero(found.labels != UNLABELLED)
    parts = {"all": len(rows)}
    if split != "all" and (own or whole.classes):
        mine = _among(whole, load(split))
        parts = _parts(whole, rows, mine, split=split, own=own)
        rows = np.intersect1d(rows, mine)
    if not len(rows):
        others = listed([f"{number:,} of {name}" for name, number in parts.items() if number])
        raise ValueError(
            f"reviews: no tile of the split {split} was given a class ({others}); review tiles of that split, or take "
            "another one"
        )
    given = whole.account.notes if whole.account is not None else ()
    notes = [note for note in given if note != WEAK and "data.labels" not in note]
    if data.keep == "auto":
        notes = [note.replace("data.keep=slides", "few tiles of many") for note in notes]
    tiles = replace(
        whole,
        labels=found.labels,
        classes=found.classes,
        votes=None,
        account=Account("reviewed tile", parts, notes=(*notes, *found.notes)),
    ).subset(rows)
    if parts.keys() == {"all"}:
        with _of_reviews():
            tiles = take_split(tiles, parts, split, test_fraction=data.test_fraction, seed=data.split_seed)
    if data.tiles_per_slide is None or isinstance(data, SourceConfig):
        return tiles
    return some_of_each(tiles, data.tiles_per_slide, seed=data.split_seed)


def worksheets(paths: Sequence[str]) -> list[Path]:
    """Return the worksheets that paths stand for: themselves, or all CSV files in a folder.

    Raises:
        FileNotFoundError: a folder has none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(file for file in path.glob("*") if file.suffix.lower() == ".csv" and file.name[0] != ".")
        if path.is_dir() and not inside:
            raise FileNotFoundError(f"{path}: has no worksheet (.csv) in it")
        found += inside if path.is_dir() else [path]
    return found


def _answers(paths: Sequence[str]) -> Iterator[Answer]:
    return itertools.chain.from_iterable(map(read_answers, worksheets(paths)))


def _with_folders_as_groups(tiles: Tiles) -> Tiles:
    """Return tiles of unknown groups and classes with the folders that they lie in, as slides are often cut."""
    folders = [os.path.dirname(name) for name in tiles.ids]
    if tiles.groups is not None or tiles.classes or len(set(folders)) < 2:
        return tiles
    notes = (*(tiles.account.notes if tiles.account is not None else ()), "groups are the folders of the images")
    account = None if tiles.account is None else replace(tiles.account, notes=notes)
    return replace(tiles, groups=group_ids(folders, where="folders"), account=account)


def answers_by_sight(files: Sequence[str]) -> tuple[int, int]:
    """Return how many answers of worksheets name a class, and how many of these had a prediction in sight."""
    of_class = [
        answer
        for answer in _answers(files)
        if answer.blind not in ("", CANNOT_TELL) or answer.review not in ("", UNSURE)
    ]
    return len(of_class), sum(not _is_blind(answer) for answer in of_class)


@_of_reviews()
def review_labels(data: DataConfig, tiles: Tiles) -> Labels:
    """Return the classes that the worksheets of a section give to the tiles of its whole set.

    Raises:
        FileNotFoundError, ValueError: a file is no worksheet; it is of other tiles. Begins with "reviews: ".
    """
    places = _SlidePlaces(data, tiles) if isinstance(tiles.ids, TileIds) else _FilePlaces(data, tiles)
    named: defaultdict[int, list[tuple[str, bool]]] = defaultdict(list)  # class, and whether it was named blind
    left: dict[int, str] = {}
    unknown: list[str] = []
    files = worksheets(data.reviews)
    for file in files:
        seen: set[int] = set()
        answers = list(read_answers(file))
        for answer in answers:
            row = places.row(answer)
            if row is None:
                unknown.append(answer.id)
                continue
            if row in seen:
                raise ValueError(f"{answer.where}: {answer.id!r} comes twice; keep one of its rows")
            seen.add(row)
            label, why = _class_of(answer, answer.classes or tiles.classes)
            if label is not None:
                named[row].append((label, _is_blind(answer)))
            elif why:
                left.setdefault(row, why)
        if not answers:
            raise ValueError(f"{file}: holds no answer; review tiles on the page, then download its worksheet")
        if not seen:
            raise ValueError(
                f"{file}: none of its {count(len(answers), 'reviewed tile')} is in {data.root}, such as "
                f"{short(answers[0].id)}; give the tiles or the index that were predicted"
            )
    for row, said in named.items():
        left.pop(row, None)
        if len({label for label, _ in said}) > 1:
            left[row] = _DIFFER
    kept = {row: said for row, said in named.items() if row not in left}
    if not kept:
        raise ValueError(f"no tile was given a class: {_left_out(left)}")
    classes, given = classes_of([said[0][0] for said in kept.values()], where=", ".join(data.reviews))
    labels = np.full(len(tiles), UNLABELLED, np.int64)
    labels[list(kept)] = given
    blind = sum(any(is_blind for _, is_blind in said) for said in kept.values())
    seen_first = f"{blind:,} blind, {len(kept) - blind:,} with a prediction in sight, which draws answers towards it"
    how = seen_first if blind < len(kept) else "all blind"
    notes = [f"each tile has the class that reviewers gave it ({count(len(files), 'worksheet')}): {how}"]
    notes += [_left_out(left)] if left else []
    notes += [f"{count(len(unknown), 'reviewed tile')} not in the set ({short(unknown[0])})"] if unknown else []
    return Labels(classes, labels, tuple(notes))


def _left_out(left: dict[int, str]) -> str:
    said = Counter(left.values()).most_common()
    return "left out: " + ", ".join(f"{count(number, 'tile')} {why}" for why, number in said)


def _is_blind(answer: Answer) -> bool:
    return answer.blind not in ("", CANNOT_TELL) and not answer.seen_before


def _class_of(answer: Answer, classes: Sequence[str]) -> tuple[str | None, str]:
    """Return the class that an answer gives its tile, or None and why ("": a note alone)."""
    if answer.blind == CANNOT_TELL or answer.review == UNSURE:
        return None, _UNSURE
    named = _match(answer.blind, classes) if answer.blind else None
    if answer.blind and named is None:
        raise ValueError(f"{answer.where}: blind is {answer.blind!r}; {nearest(answer.blind, [*classes, CANNOT_TELL])}")
    if not answer.review:
        return named, ""
    predicted = _match(answer.predicted, classes) if answer.predicted else None
    if predicted is None:
        what = f"is {answer.predicted!r}, no class of the classifier" if answer.predicted else "is empty"
        raise ValueError(
            f"{answer.where}: review is {answer.review}, but predicted {what}; download the worksheet again"
        )
    if named is not None:
        return (named, "") if (answer.review == AGREE) == (named == predicted) else (None, _CHANGED)
    if answer.review == AGREE:
        return predicted, ""
    others = [name for name in classes if name != predicted]
    told = _match(answer.note, classes) if answer.note and classes else None
    if told == predicted:
        return None, _CHANGED
    if told is None and len(classes) == 2:
        told = others[0]
    return told, _UNNAMED


def _match(text: str, classes: Sequence[str]) -> str | None:
    """Return the class that a text is, in whatever case where only one is so; any text where no classes are known."""
    if not classes:
        return text
    text = text.strip()
    same = [name for name in classes if name.strip() == text]
    same = same or [name for name in classes if name.strip().casefold() == text.casefold()]
    return same[0] if len(same) == 1 else None


# --- which tile an answer is of ---


class _FilePlaces:
    """Tiles that are files: known by their id, or the path that `sscl predict` was given."""

    def __init__(self, data: DataConfig, tiles: Tiles) -> None:
        self._ids = tiles.ids
        self._row_of = {as_shown(name): row for row, name in enumerate(tiles.ids)}
        root = data.root.rstrip("/") if Path(data.root).is_dir() else os.path.dirname(data.root)
        self._root = os.path.join(root, "images") if data.source in ("mhist", "synthetic") else root
        self._named = lru_cache(self._blind)

    def row(self, answer: Answer) -> int | None:
        """Return the tile of an answer; None: it is not in the set."""
        if answer.id.startswith(BLIND):
            return self._named(answer.report).get(answer.id)
        return next((self._row_of[name] for name in self._readings(answer.id) if name in self._row_of), None)

    def _readings(self, name: str) -> Iterator[str]:
        yield name
        yield os.path.relpath(name, self._root or ".")
        folder = f"/{os.path.basename(os.path.abspath(self._root))}/"  # on another computer it lies elsewhere
        if folder in f"/{name}":
            yield f"/{name}".split(folder, 1)[1]

    def _blind(self, report: str) -> dict[str, int]:
        starts = {"", f"{self._root}/", f"{os.path.abspath(self._root)}/", f"{os.path.basename(self._root)}/"}
        return {name: row for start in starts for row, name in enumerate(blind_names(report, start, list(self._ids)))}


class _SlidePlaces:
    """Tiles of slides: known by NAME/x_y, and the slide by its quickhash too where its name is another one now."""

    def __init__(self, data: DataConfig, tiles: Tiles) -> None:
        assert isinstance(tiles.ids, TileIds)
        self._places, self._data = tiles.ids.places, data
        assert len(tiles.ids) == len(self._places)
        self._slide_of = {as_shown(name): number for number, name in enumerate(self._places.names)}
        self._rows, self._named = lru_cache(self._corners), lru_cache(self._blind)
        self._named_anywhere = lru_cache(self._blind_of_all)

    def row(self, answer: Answer) -> int | None:
        """Return the tile of an answer; None: it is not in the set.

        Raises:
            ValueError: its slide is another file, or its tiles are of another size.
        """
        if answer.id.startswith(BLIND) and not answer.slide:  # a report's worksheet does not name the slide
            return self._named_anywhere(answer.report).get(answer.id)
        name, _, corner = answer.id.rpartition("/")
        slide = self._slide(answer, answer.slide or name)
        if slide is None:
            return None
        mpp, size_px = self._data.mpp, self._data.size_px
        if answer.tile_um is not None and mpp is not None:
            here = mpp * size_px
            if abs(answer.tile_um / here - 1) > _SAME:
                raise ValueError(
                    f"{answer.where}: tiles of {answer.tile_um:g} µm were reviewed, those of {self._data.root} have "
                    f"{here:g} µm; index the slides at the µm per pixel that sscl predict took"
                )
        if answer.id.startswith(BLIND):
            return self._named(answer.report, answer.slide, slide).get(answer.id)
        return self._rows(slide).get(corner)

    def _slide(self, answer: Answer, name: str) -> int | None:
        known = self._slide_of.get(name)
        hashes = self._places.quickhashes
        if not answer.quickhash or not hashes or (known is not None and hashes[known] == answer.quickhash):
            return known
        same = [number for number, quickhash in enumerate(hashes) if quickhash == answer.quickhash]
        if known is not None and not same:
            raise ValueError(
                f"{answer.where}: {short(name)} of {self._data.root} is another slide than the one that was reviewed "
                "(by its quickhash); leave this worksheet out"
            )
        return same[0] if len(same) == 1 else None

    def _corners(self, slide: int) -> dict[str, int]:
        start, end = self._places.starts[slide : slide + 2].tolist()
        return {f"{x}_{y}": start + row for row, (x, y) in enumerate(self._places.xy[start:end].tolist())}

    def _blind(self, report: str, name: str, slide: int) -> dict[str, int]:
        rows = self._rows(slide)
        return dict(zip(blind_names(report, f"{name}/", list(rows)), rows.values(), strict=True))

    def _blind_of_all(self, report: str) -> dict[str, int]:
        slides = enumerate(self._places.names)
        return {tile: row for slide, name in slides for tile, row in self._blind(report, name, slide).items()}


# --- splits ---


def _among(whole: Tiles, part: Tiles) -> NDArray[np.int64]:
    """Return the rows of the whole set that are in a part of it."""
    if isinstance(part.ids, TileIds):
        return part.ids.rows
    row_of = {name: row for row, name in enumerate(whole.ids)}
    return np.array([row_of[name] for name in part.ids if name in row_of], dtype=np.int64)


def _parts(whole: Tiles, rows: NDArray[np.int64], mine: NDArray[np.int64], *, split: str, own: bool) -> dict[str, int]:
    """Return how many of the rows are in each split; `mine`: the rows of one of them."""
    given = {} if whole.account is None else whole.account.parts
    if own and sum(given.values()) == len(whole) and "all" not in given:
        starts = np.cumsum([0, *given.values()])
        counted = np.histogram(rows, starts)[0].tolist() if len(rows) else [0] * len(given)
        return dict(zip(given, counted, strict=True))
    here = len(np.intersect1d(rows, mine))
    other = {"train": "test", "test": "train"}.get(split, "other splits")
    found = {split: here, other: len(rows) - here}
    return {name: found[name] for name in sorted(found, key=lambda name: SPLITS.index(name) if name in SPLITS else 9)}
