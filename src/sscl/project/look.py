"""What `sscl init` sees in a folder or file of tiles: sizes, classes, splits, slides, copies.

The tiles are decoded at the size that will be trained on, so that training finds them in the cache.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl.config import DataConfig, SourceConfig
from sscl.data import duplicates, hashes, load
from sscl.data.folder import read_layout
from sscl.data.images import size_of
from sscl.data.listing import SUFFIXES, list_images
from sscl.data.mhist import PUBLISHED_COUNTS, PUBLISHED_SIZE_PX
from sscl.data.pathmnist import read_contents
from sscl.data.scale import Scale, scale_of
from sscl.data.slide_files import instead_of_tiles
from sscl.data.slide_set import MOST_KEPT
from sscl.data.sources import slide_numbers
from sscl.data.table import listed_rows
from sscl.data.tiles import Tiles
from sscl.progress import Bar
from sscl.slides.index import read_index
from sscl.words import count, readable, some

LOOKED_AT = 200  # files whose header is read
COMPARED = 3000  # tiles that are searched for copies; takes seconds
MOST_GROUPED = 20_000  # tiles among which all near-duplicates are searched; takes some 10 minutes
UNEVEN = 2.0  # a slide with more tiles, in medians, is drawn from
LARGE_PX = 1024  # tiles of more pixels a side hold thousands of cells


@dataclass(frozen=True)
class Sizes:
    """The sides of image files, from the headers of some of them.

    Attributes:
        usual: the shorter side of most files. shortest, longest: of any. looked_at: number of files.
        not_square: number of those that are not square. unreadable: why a file cannot be read, the first; or None.
        files: of the set; None: not known, in a file of arrays.
        slides: an index of slides: their number, whose tiles all have one side.
    """

    usual: int
    shortest: int
    longest: int
    looked_at: int
    not_square: int = 0
    unreadable: str | None = None
    files: int | None = None
    slides: int | None = None


@dataclass(frozen=True)
class Found:
    """A set of tiles.

    Attributes:
        data: its section, as it will be trained on. sizes: of its files. scale: of its tiles.
        chosen: keys of the section besides root, source and size_px that are not the default, with why.
        parts: its splits by name: train, validation if it has its own, and test; or all, without classes.
        made_here: whether sscl splits it into train and test.
        copies: pairs of tiles that show the same. compared: number of tiles searched for them.
        across: number of pairs on two sides of the split. apart: number of pairs in two classes.
        of_slides: how many tiles each slide of the pretraining has; empty where it is no index of slides.
    """

    data: SourceConfig
    sizes: Sizes
    chosen: Mapping[str, tuple[Any, str]]
    parts: Mapping[str, Tiles]
    made_here: bool
    copies: int
    across: int
    apart: int
    compared: int
    scale: Scale
    of_slides: NDArray[np.int64]

    @property
    def tiles_per_slide(self) -> int | None:
        """How many tiles to draw of each slide an epoch, where some slides have far more than others."""
        if not len(self.of_slides) or self.of_slides.max() <= UNEVEN * np.median(self.of_slides):
            return None
        return int(np.median(self.of_slides))

    @property
    def epoch_tiles(self) -> int:
        """How many tiles an epoch of pretraining takes."""
        drawn = self.tiles_per_slide
        return len(self.train) if drawn is None else int(np.minimum(self.of_slides, drawn).sum())

    @property
    def classes(self) -> tuple[str, ...]:
        """Its classes; empty where it has no labels, or they are not wanted."""
        return next(iter(self.parts.values())).classes if self.data.labels else ()

    @property
    def train(self) -> Tiles:
        """The tiles that pretraining sees."""
        return self.parts.get("train") or next(iter(self.parts.values()))

    @property
    def total(self) -> int:
        return sum(map(len, self.parts.values()))


def sizes_of(data: DataConfig) -> Sizes:
    """Return the sizes of a set's files.

    Raises:
        FileNotFoundError, ValueError: there is no set, or it has no image.
    """
    if data.source == "pathmnist":
        side = read_contents(data.root).side
        return Sizes(side, side, side, looked_at=1)
    if data.source == "slides":
        index = read_index(data.root)
        side = index.size_px
        return Sizes(side, side, side, looked_at=1, files=len(index), slides=len(index.slides))
    names = _names(data)
    if not names:
        load.load_tiles(data, split="all", progress=False)  # raises: says what is there instead
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, LOOKED_AT).astype(int))]
    found, why = [], None
    for name in chosen:
        try:
            found.append(size_of(str(load.tile_file(data, name))))
        except ValueError as error:
            why = why or str(error)
    if not found:
        raise ValueError(f"data.root: {why}")
    shorter = [min(size) for size in found]
    return Sizes(
        usual=Counter(shorter).most_common(1)[0][0],
        shortest=min(shorter),
        longest=max(map(max, found)),
        looked_at=len(chosen),
        not_square=sum(width != height for width, height in found),
        unreadable=why,
        files=len(names),
    )


def _names(data: DataConfig) -> list[str]:
    """Return the ids of a set's tiles, before anything is decoded."""
    if data.source == "auto":
        load.load_tiles(data, split="all", progress=False)  # raises: says what is there
    if data.source == "table":
        return [values[0] for _, values in listed_rows(Path(data.root))]
    if data.source == "folder":
        return list_images(data.root).images
    folder = Path(data.root) / "images"
    return sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in SUFFIXES)


def look(data: DataConfig, *, sizes: Sizes, labels: bool, progress: bool) -> Found:
    """Return what is in a set, of which every tile is decoded.

    Args:
        data: its section as given, with the size to train on.
        sizes: of its files.
        labels: whether its classes are to be taken.

    Raises:
        FileNotFoundError, ValueError: as its loader.
    """
    given = {key: (getattr(data, key), "as given") for key in DataConfig.model_fields if key in data.model_fields_set}
    chosen = {key: reason for key, reason in given.items() if key not in ("root", "source", "size_px")}
    if data.source == "slides":
        chosen |= _of_slides(data, sizes) | {key: chosen[key] for key in ("keep",) if key in chosen}
    if sizes.not_square and "fit" not in chosen:
        chosen["fit"] = ("crop", f"{sizes.not_square} of {sizes.looked_at} files are not square")
    changed = {key: value for key, (value, _) in chosen.items()}
    if data.source == "mhist":
        changed["published"] = False  # compared below
    section = SourceConfig(**{**dict(data), **changed, "labels": labels})
    if labels and data.source == "folder":
        _check_layout(section)
    parts = load.load_splits(section, progress=progress)
    if data.source == "mhist" and "published" not in chosen and not _is_mhist(parts, sizes):
        chosen["published"] = (False, "MHIST's layout, but not all of MHIST")
    made_here = load.split_is_made_here(section)
    # One slide under two names is told by its content; glass and stroma look alike on all of them.
    copies = NOT_SEARCHED if data.source == "slides" else _copies(parts, progress=progress)
    first = parts.get("train") or next(iter(parts.values()))
    numbers = slide_numbers(first) if data.source == "slides" else np.empty(0, np.int64)
    of_slides = np.bincount(numbers)
    scale = scale_of(section, first)
    found = Found(section, sizes, chosen, parts, made_here, **copies, scale=scale, of_slides=of_slides[of_slides > 0])
    if made_here and found.classes and data.source in ("folder", "table", "slides"):
        chosen.setdefault("test_fraction", (data.test_fraction, "of each class, held out to be measured on"))
        if data.source != "slides" and found.across and len(found.train) <= MOST_GROUPED:
            chosen.setdefault("group_near_duplicates", (True, "copies were found: they stay on one side of the split"))
    return found


def _of_slides(data: DataConfig, sizes: Sizes) -> dict[str, tuple[Any, str]]:
    """Return keys of the section of an index of slides, each with why."""
    decoded = (sizes.files or 0) * 3 * sizes.usual**2
    keep = f"{readable(decoded)} decoded; up to {readable(MOST_KEPT)} go into the cache, more is read from the slides"
    return {"mpp": (data.mpp, "µm per pixel of the index; the checkpoint keeps it"), "keep": (data.keep, keep)}


def _check_layout(data: DataConfig) -> None:
    """Raise ValueError where the folders are no classes; what else can be done with the images."""
    try:
        read_layout(data.root, groups_given=data.groups_csv is not None)
    except ValueError as error:
        raise ValueError(f"data.root: {instead_of_tiles(data.root, error) or f'{error}{OR_PRETRAIN}'}") from None


OR_PRETRAIN = "; or give labels=false for pretraining alone"


def _is_mhist(parts: Mapping[str, Tiles], sizes: Sizes) -> bool:
    counts = {name: tiles.class_counts() for name, tiles in parts.items()}
    return counts == PUBLISHED_COUNTS and sizes.shortest == sizes.longest == PUBLISHED_SIZE_PX


NOT_SEARCHED = {"copies": 0, "across": 0, "apart": 0, "compared": 0}


def _copies(parts: Mapping[str, Tiles], *, progress: bool) -> dict[str, int]:
    """Return how many pairs of tiles show the same, across the split, and in two classes; and of how many tiles.

    It is a quick search among tiles spread over the set: `sscl data audit` finds crops and recoloured copies too.
    """
    total = sum(map(len, parts.values()))
    step = max(1, -(-total // COMPARED))
    small, places = [], []
    with Bar(total // step, desc="look for copies" if progress else None, unit="tile") as bar:
        for split, tiles in parts.items():
            for row in range(0, len(tiles), step):
                small.append(hashes.thumbnail(duplicates.luma_of(tiles.images[row])).astype(np.float16))
                places.append((split, int(tiles.labels[row])))
                bar.update()
    pairs = [(places[pair.first], places[pair.second]) for pair in hashes.same_pictures(np.stack(small))]
    return {
        "copies": len(pairs),
        "across": sum((one[0] == "test") != (other[0] == "test") for one, other in pairs),
        "apart": sum(one[1] != other[1] for one, other in pairs),
        "compared": len(places),
    }


def lines(found: Found) -> list[str]:
    """Return what was found, a sentence each."""
    data, sizes = found.data, found.sizes
    said = [f"{data.root}: {LAYOUTS[data.source]}, {count(found.total, 'tile')}"]
    account = found.train.account
    if account is not None and account.passed_over:
        said.append(f"passed over: {account.passed_over}")
    if sizes.slides is not None:
        said.append(f"sizes: {sizes.usual} x {sizes.usual} px, from {count(sizes.slides, 'slide')}")
    elif sizes.shortest == sizes.longest:
        said.append(f"sizes: all {sizes.usual} x {sizes.usual} px (headers of {count(sizes.looked_at, 'file')})")
    else:
        said.append(f"sizes: {sizes.shortest} to {sizes.longest} px, mostly {sizes.usual}")
    said.append(f"scale: {found.scale}" if found.scale.span else "scale: not known (data.mpp=0.5 would say it)")
    if found.classes and sizes.slides is not None and data.weak_labels:
        said.append("labels: each tile has that of its slide (a weak label)")
    if not found.classes:
        said.append("classes: none, so these tiles are for pretraining alone")
    for split, tiles in found.parts.items():
        if found.classes:
            counts = some([f"{number:,} of {name}" for name, number in tiles.class_counts().items()])
            whose = ", split off here" if found.made_here and split == "test" else ""
            said.append(f"{split}{whose}: {count(len(tiles), 'tile')} ({counts})")
    groups = [tiles.groups for tiles in found.parts.values()]
    if all(part is not None for part in groups):
        slides = len(np.unique(np.concatenate([part for part in groups if part is not None])))
        said.append(f"groups: {count(slides, 'slide or patient', 'slides or patients')}, each on one side of a split")
    elif found.classes:
        said.append("groups: not known; tiles of one slide may be on both sides of a split")
    where = f" of {found.compared:,} looked at" if found.compared < found.total else ""
    if found.compared:
        said.append(f"copies: {count(found.copies, 'pair') if found.copies else 'none'}{where} (a quick look)")
    return said


LAYOUTS = {
    "mhist": "MHIST's layout (annotations.csv, images/)",
    "synthetic": "synthetic polyps of sscl data synth",
    "folder": "a folder of images",
    "table": "a table of images",
    "pathmnist": "an .npz file in MedMNIST's layout",
    "slides": "an index of whole slides",
}


def warnings(found: Found) -> list[str]:
    """Return what is doubtful about the tiles, a sentence each."""
    sizes, said = found.sizes, []
    if sizes.unreadable is not None:
        said.append(f"a file cannot be read: {sizes.unreadable}")
    if sizes.longest > LARGE_PX:
        said.append(
            f"files of {sizes.longest} px are shrunk to {found.data.size_px} px, at which no cell can be seen; cut "
            "them into tiles of 224 to 512 px"
        )
    elif sizes.longest > 1.5 * sizes.shortest:
        said.append("files of different sizes are all resized to one, which shows tissue at different scales")
    if sizes.not_square:
        said.append(
            f"{sizes.not_square} of {count(sizes.looked_at, 'file')} are not square: the square in the middle is used "
            "(data.fit)"
        )
    if found.across:
        to_do = (
            "they are kept on one side (data.group_near_duplicates)"
            if found.made_here
            else "metrics will be too good; sscl data audit lists them"
        )
        said.append(
            f"{count(found.across, 'pair')} of copies, of which one tile is in the test and one is not: {to_do}"
        )
    if found.apart:
        said.append(f"{count(found.apart, 'pair')} of copies are in two classes: one of the two labels is wrong")
    return said + _of_classes(found)


FEW_TEST_TILES = 10


def _of_classes(found: Found) -> list[str]:
    if not found.classes:
        return []
    said = []
    if "test" not in found.parts:
        said.append("there is no test split: nothing can be evaluated until there is one (test/ with the same classes)")
        return said
    counts = {name: found.parts["test"].class_counts().get(name, 0) for name in found.classes}
    name = min(counts, key=lambda name: counts[name])
    if counts[name] < FEW_TEST_TILES:
        said.append(
            f"the test has {count(counts[name], 'tile')} of {name}: too few to measure anything; add tiles "
            f"({FEW_TEST_TILES} of each class or more)"
        )
    if (
        found.data.source == "folder"
        and len(found.classes) > 12
        and not all(tiles.groups is not None for tiles in found.parts.values())
    ):
        said.append(
            f"{len(found.classes)} folders were taken for classes; if they are slides, put them into folders of "
            "classes (CLASS/SLIDE/*), or give labels=false for pretraining alone"
        )
    return said
