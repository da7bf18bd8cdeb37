"""MHIST: hyperplastic polyps against sessile serrated adenomas. Its facts, and a loader that checks them.

Source: Wei et al. 2021, "A Petri Dish for Histopathology Image Analysis", arXiv:2101.12355. The set is
behind an access form; it publishes no slide or patient ids, so any split may put one patient on both sides.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sscl.data.csv_files import read_table, whole_number
from sscl.data.images import Fit, open_image, size_of
from sscl.data.ingest import decode_tiles, read_groups
from sscl.data.listing import Account, PassedOver, list_images
from sscl.data.split import balance_down, stratified_split
from sscl.data.synthetic import is_synthetic
from sscl.data.tiles import Tiles
from sscl.places import missing
from sscl.words import count, short

CLASSES = ("HP", "SSA")
COLUMNS = (
    "Image Name",
    "Majority Vote Label",
    "Number of Annotators who Selected SSA (Out of 7)",
    "Partition",
)
SLIDE_COLUMNS = ("Image Name", "Slide")  # of slides.csv, which is ours: MHIST publishes no slide ids
ANNOTATORS = 7
MAJORITY = 4
PUBLISHED_SIZE_PX = 224
PUBLISHED_COUNTS = {"train": {"HP": 1545, "SSA": 630}, "test": {"HP": 617, "SSA": 360}}
# The test fraction of Jain & Lynn 2025 (doi 10.6026/973206300211836): 198 of 1980 tiles.
PAPER_TEST_FRACTION = 0.1

_GET_MHIST = 'see README, "Getting MHIST"'


@dataclass(frozen=True)
class _Row:
    name: str
    label: int
    votes: int
    partition: str


def load_mhist(
    root: Path | str,
    *,
    protocol: str,
    split: str,
    seed: int = 0,
    size_px: int = 224,
    fit: Fit = "refuse",
    published: bool = True,
    group_of: Mapping[str, str] | None = None,
    cache_dir: Path | str | None = None,
    progress: bool = False,
) -> Tiles:
    """Return tiles of MHIST, or of a set in its layout; label 1 is SSA, ids are the image names.

    `root` holds annotations.csv, images/, and optionally slides.csv (columns Image Name,Slide), which fills
    `groups`. There are two protocols; never compare numbers across them:

    - official: the column Partition; 2175 train and 977 test tiles.
    - paper_balanced: all SSA and as many HP drawn by the seed, then stratified 90:10 by the seed; 1782 and
      198 tiles. Tiles, not slides, are split, as the paper does, unless `group_of` is given.

    Args:
        protocol: "official" or "paper_balanced".
        split: "train", "test" or "all" (both).
        seed: of the draw and the split of paper_balanced.
        size_px: working size, pixels.
        fit: of images that are not square, see `images.decode_image`; any size then goes, except with `published`.
        published: require the published counts and 224×224 files; False (synthetic, a part of MHIST) allows any
            counts and any one square size.
        group_of: the group of every id; replaces those in slides.csv, and paper_balanced then splits whole groups.
        cache_dir, progress: see `decode_tiles`.

    Raises:
        FileNotFoundError: the folder, annotations.csv or an image is missing.
        ValueError: annotations.csv, slides.csv or an image is not as above; the line names the file.
    """
    root = Path(root)
    if protocol not in ("official", "paper_balanced"):
        raise ValueError(f"protocol: got {protocol!r}, allowed are official, paper_balanced")
    if split not in ("train", "test", "all"):
        raise ValueError(f"split: got {split!r}, allowed are train, test, all")
    rows = _read_annotations(root)
    if published:
        _check_published(root, rows)
    # Train before test, so that the official splits are one contiguous range of the memmap each and are not copied.
    rows.sort(key=lambda row: row.partition != "train")
    paths = _find_images(root, [row.name for row in rows])
    exact = PUBLISHED_SIZE_PX if published else _width(paths[0]) if fit == "refuse" else None
    tiles = Tiles(
        images=decode_tiles(
            paths, size_px=size_px, root=root, exact_size_px=exact, fit=fit, cache_dir=cache_dir, progress=progress
        ),
        labels=np.array([row.label for row in rows], dtype=np.int64),
        classes=CLASSES,
        ids=tuple(row.name for row in rows),
        groups=_groups(root, rows, group_of),
        votes=np.array([row.votes for row in rows], dtype=np.int64),
    )
    account = Account("tile", dict(Counter(row.partition for row in rows)), passed_over=_passed_over(root, rows))
    if protocol == "official":
        tiles = replace(tiles, account=account)
        return tiles if split == "all" else tiles.subset(_partition(root, rows, split))
    parts = _paper_balanced(root, tiles, split, seed=seed, grouped=group_of is not None)
    left = len(tiles) - sum(len(part) for part in parts.values())
    notes = (f"{count(left, 'tile')} of the larger class left out by the protocol",) if left else ()
    account = replace(account, parts={name: len(part) for name, part in parts.items()}, notes=notes)
    return replace(tiles, account=account).subset(parts[split])


def _passed_over(root: Path, rows: list[_Row]) -> PassedOver:
    """Return what lies in the folder beside the tiles and their tables."""
    found = list_images(root, known=("annotations.csv", "slides.csv"))
    names = {f"images/{row.name}" for row in rows}
    for image in found.images:
        if image not in names:
            mask = image.startswith("masks/")
            found.passed_over.add("mask of the tiles" if mask else "image not in annotations.csv", image)
    return found.passed_over


def _groups(root: Path, rows: list[_Row], group_of: Mapping[str, str] | None) -> NDArray[np.str_] | None:
    """Return the group of each row: as given, else from slides.csv, else None."""
    if group_of is not None:
        return np.array([group_of[row.name] for row in rows])
    slides = root / "slides.csv"
    return read_groups(slides, [row.name for row in rows], columns=SLIDE_COLUMNS) if slides.is_file() else None


def _partition(root: Path, rows: list[_Row], split: str) -> list[int]:
    chosen = [index for index, row in enumerate(rows) if row.partition == split]
    missing = {0, 1} - {rows[index].label for index in chosen}
    if missing:
        raise ValueError(
            f"{root / 'annotations.csv'}: partition {split} has no {CLASSES[min(missing)]} tile; "
            "expected both classes in train and in test"
        )
    return chosen


def _paper_balanced(root: Path, tiles: Tiles, split: str, *, seed: int, grouped: bool) -> dict[str, NDArray[np.int64]]:
    """Return the rows of train and test, or of "all", of the protocol `paper_balanced`; grouped: by whole groups."""
    balanced = balance_down(tiles.labels, seed=seed)
    if split == "all":
        return {"all": balanced}
    if min(tiles.class_counts().values()) < 2:
        raise ValueError(f"{root / 'annotations.csv'}: the smaller class has 1 tile; paper_balanced needs at least 2")
    groups = tiles.groups[balanced] if grouped and tiles.groups is not None else None
    train, test = stratified_split(
        tiles.labels[balanced], fraction=PAPER_TEST_FRACTION, seed=seed, groups=groups, classes=CLASSES
    )
    return {"train": balanced[train], "test": balanced[test]}


def load_truth_masks(root: Path | str, ids: Sequence[str], *, size_px: int) -> NDArray[np.bool_] | None:
    """Return the truth masks of the tiles `ids` as bool (N, size_px, size_px), True = decides the class.

    Only synthetic sets have them, in masks/ under the tile's own name; None where there is no such folder.

    Raises:
        FileNotFoundError: a tile has no mask.
        ValueError: a mask is not a square 8-bit grey image.
    """
    folder = Path(root) / "masks"
    if not folder.is_dir():
        return None
    masks = np.zeros((len(ids), size_px, size_px), dtype=bool)
    for index, name in enumerate(ids):
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file}: this tile's truth mask is missing")
        with open_image(file) as image:
            if image.mode != "L" or image.width != image.height:
                raise ValueError(
                    f"{file}: is {image.mode} of {image.width}×{image.height} pixels, expected a square 8-bit grey "
                    "mask (0 and 255)"
                )
            try:
                # The box filter gives each pixel the fraction that is covered; half covered counts as inside.
                resized = image.resize((size_px, size_px), Image.Resampling.BOX)
            except Exception as error:  # whatever a decoder raises
                raise ValueError(f"{file}: is truncated or damaged ({error}); copy it again") from error
        masks[index] = np.asarray(resized) >= 128
    return masks


def _read_annotations(root: Path) -> list[_Row]:
    """Return the checked rows of annotations.csv in file order."""
    path = root / "annotations.csv"
    if not root.is_dir():
        raise FileNotFoundError(f"{missing(root, 'folder')} ({_GET_MHIST})")
    if not path.is_file():
        raise FileNotFoundError(f"{root} has no annotations.csv ({_GET_MHIST})")
    rows: dict[str, _Row] = {}
    for line, (name, label, votes, partition) in read_table(path, columns=COLUMNS):
        where = f"{path}: line {line}"
        if not name or "/" in name or "\\" in name or name in (".", ".."):
            raise ValueError(f"{where}: image name {short(name)!r}; expected a plain file name inside images/")
        if name in rows:
            raise ValueError(f"{where}: image name {short(name)!r} occurs twice; expected one row per image")
        if label not in CLASSES:
            raise ValueError(f"{where}: label {short(label)!r}, allowed are {', '.join(CLASSES)}")
        number = whole_number(votes, at_most=ANNOTATORS)
        if number is None:
            raise ValueError(f"{where}: {short(votes)!r} votes for SSA, allowed is a whole number 0 to {ANNOTATORS}")
        if (label == "SSA") != (number >= MAJORITY):
            raise ValueError(
                f"{where}: label {label} contradicts {votes} of {ANNOTATORS} votes for SSA; SSA is {MAJORITY} or more"
            )
        if partition not in PUBLISHED_COUNTS:
            raise ValueError(f"{where}: partition {short(partition)!r}, allowed are {', '.join(PUBLISHED_COUNTS)}")
        rows[name] = _Row(name, CLASSES.index(label), number, partition)
    for index, name in enumerate(CLASSES):
        if all(row.label != index for row in rows.values()):
            raise ValueError(f"{path}: no tile of class {name}; expected both {' and '.join(CLASSES)}")
    return list(rows.values())


def _check_published(root: Path, rows: list[_Row]) -> None:
    way = "get the file again, or set data.published=false for a set that is not all of MHIST"
    if is_synthetic("mhist", [row.name for row in rows]):
        way = "these are tiles of sscl data synth: set data.source=synthetic"
    for partition, counts in PUBLISHED_COUNTS.items():
        for index, name in enumerate(CLASSES):
            found = sum(row.partition == partition and row.label == index for row in rows)
            if found != counts[name]:
                raise ValueError(
                    f"{root / 'annotations.csv'}: {found} {name} tiles in partition {partition}, MHIST has "
                    f"{counts[name]}; {way}"
                )


def _find_images(root: Path, names: list[str]) -> list[str]:
    folder = root / "images"
    if not folder.is_dir():
        raise FileNotFoundError(f"{root} has no folder images/ ({_GET_MHIST})")
    with os.scandir(folder) as entries:
        present = {entry.name for entry in entries if entry.is_file()}
    missing = [name for name in names if name not in present]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(names)} images of annotations.csv are missing, "
            f"the first is {missing[0]} ({_GET_MHIST})"
        )
    return [os.path.join(folder, name) for name in names]  # a Path each takes ten times as long


def _width(path: str) -> int | None:
    """Return the width in pixels, which all other images must share; None if unreadable (decoding says why)."""
    try:
        return size_of(path)[0]
    except ValueError:
        return None
