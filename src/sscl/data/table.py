"""Tiles listed in a table: a CSV with a row for each image.

    path      the image, relative to the folder of the table; "/" or "\\" between folders
    label     its class; empty, -1, or a word of MISSING: unlabelled
    group     its slide or patient
    site      its hospital or scanner
    split     train, val or test, in any spelling that `layout.split_named` knows
    mpp       µm per pixel of the file

Only `path` must be there. Values are separated by commas, semicolons or tabs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.config.data import detect_source
from sscl.data.csv_files import MISSING, read_mpp, read_table
from sscl.data.images import Fit
from sscl.data.ingest import classes_of, decode_tiles, group_ids, listed_file, plain_path
from sscl.data.listing import Account
from sscl.data.split import take_split
from sscl.data.split_names import SPLITS, check_split, split_named
from sscl.data.tiles import UNLABELLED, Tiles
from sscl.words import count, listed, short

COLUMNS = ("label", "group", "site", "split", "mpp")
SUFFIXES = (".csv", ".tsv")
_NO_LABEL = frozenset({"", "-1", "-1.0"})


@dataclass(frozen=True)
class _Table:
    """What a table says of its images, part by part: train, validation, test, or "all" where it has no splits.

    Attributes:
        ids: their paths, with "/". files: where they are.
        labels: index into classes, -1 = unlabelled. groups, sites, mpp: None where the table has none.
        parts: number of images in each part. notes: what a reader must know.
    """

    ids: tuple[str, ...]
    files: tuple[str, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_] | None
    sites: NDArray[np.str_] | None
    mpp: NDArray[np.float64] | None
    parts: dict[str, int]
    notes: tuple[str, ...]


def load_table(
    path: Path | str,
    *,
    split: str,
    whole: bool = False,
    group_of: Mapping[str, str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    size_px: int = 224,
    fit: Fit = "refuse",
    cache_dir: Path | str | None = None,
    progress: bool = False,
) -> Tiles:
    """Return the tiles of a table; ids are their paths as listed, with "/" between folders.

    Classes are the labels in alphabetical order, or by number if all are whole numbers. Without the column `split` sscl
    splits the labelled tiles, stratified, by group where groups are given; those without a label are for training.

    Args:
        split: "train", "validation", "test" or "all".
        whole: for pretraining: take no labels and no groups, and all tiles where the table has no splits.
        group_of: the group of every id; replaces those of the table.
        test_fraction, seed: of the split made here.
        size_px: working size, pixels. fit: of images that are not square, see `images.decode_image`.
        cache_dir, progress: see `decode_tiles`.

    Raises:
        FileNotFoundError: the table, an image, or the wanted part is missing.
        ValueError: the table or an image is not as above; the line names the file.
    """
    path = Path(path)
    table = _read(path, whole=whole)
    check_split(split, table.parts, classes=table.classes, root=path, given_by="the column split")
    groups = table.groups if group_of is None else np.array([group_of[name] for name in table.ids])
    account = Account(what="row", parts=table.parts, notes=table.notes)
    tiles = Tiles(
        images=decode_tiles(
            table.files, size_px=size_px, root=path.parent, fit=fit, cache_dir=cache_dir, progress=progress
        ),
        labels=table.labels,
        classes=table.classes,
        ids=table.ids,
        groups=groups,
        sites=table.sites,
        mpp=table.mpp,
        account=account,
    )
    return take_split(tiles, table.parts, split, test_fraction=test_fraction, seed=seed)


def own_splits(path: Path | str) -> set[str]:
    """Return which splits a table has of its own: none without a column `split`, or where it cannot be read."""
    try:
        rows = read_table(Path(path), columns=("split",))
    except (OSError, ValueError):
        return set()
    return {found for _, (name,) in rows if (found := split_named(name)) is not None}


def has_groups(path: Path | str) -> bool:
    """Return whether a table says which slide or patient each image is of."""
    try:
        return any(group for _, (group,) in read_table(Path(path), columns=("group",)))
    except (OSError, ValueError):
        return False


def listed_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the line and the values of each row: `path`, then COLUMNS, of which those that are not there are empty."""
    try:
        return read_table(path, columns=("path",), optional=COLUMNS)
    except ValueError:
        if path.name == "annotations.csv" and detect_source(str(path.parent)) in ("mhist", "synthetic"):
            raise ValueError(f"{path}: the annotations of MHIST; give its folder, {path.parent}") from None
        raise


def _read(path: Path, *, whole: bool) -> _Table:
    """Return the checked rows of a table, those of train first, then validation, then test."""
    rows = listed_rows(path)
    lines = [line for line, _ in rows]
    names, labels, groups, sites, splits, mpp = (
        list(column) for column in zip(*(values for _, values in rows), strict=True)
    )
    _check_paths(path, lines, names)
    words = Counter(value for value in labels if value.casefold() in MISSING)
    labels, groups, sites = (
        ["" if value.casefold() in MISSING else value for value in of] for of in (labels, groups, sites)
    )
    files = [listed_file(str(path.parent), name) for name in names]
    _check_files(path, lines, files)
    folder = str(path.parent)
    ids = [
        name if file == os.path.join(folder, name) else plain_path(name)
        for name, file in zip(names, files, strict=True)
    ]
    parts = _parts(path, lines, splits)
    order = sorted(range(len(rows)), key=lambda row: SPLITS.index(parts[row]) if parts[row] != "all" else 0)
    named = [None if value in _NO_LABEL else value for value in labels]
    classes, indices = ((), [UNLABELLED] * len(rows)) if whole else classes_of(named, where=f"{path}: column 'label'")
    found = {name: parts.count(name) for name in (*SPLITS, "all")}
    given, places = (
        None if whole else _filled(path, lines, values, column=column)
        for values, column in ((groups, "group"), (sites, "site"))
    )
    scale = read_mpp(path, lines, mpp)
    notes = ["labels are not used (data.labels=true would)"] if whole and any(labels) else []
    if scale is not None:
        notes.append(_span(scale))
    if words and not whole:
        notes.append(f"{count(words.total(), 'label')} {listed(list(words))}: missing, so unlabelled")
    return _Table(
        ids=tuple(ids[row] for row in order),
        files=tuple(files[row] for row in order),
        classes=classes,
        labels=np.array([indices[row] for row in order], dtype=np.int64),
        groups=None if given is None else given[order],
        sites=None if places is None else places[order],
        mpp=None if scale is None else scale[order],
        parts={name: number for name, number in found.items() if number},
        notes=tuple(notes),
    )


def _check_paths(path: Path, lines: Sequence[int], names: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for line, name in zip(lines, names, strict=True):
        if not name:
            raise ValueError(f"{path}: line {line}: column 'path' is empty; fill it in or remove the row")
        other = first.setdefault(os.path.normpath(plain_path(name)), line)
        if other != line:
            raise ValueError(f"{path}: line {line}: {short(name)!r} is in line {other} too; expected one row per image")


def _check_files(path: Path, lines: Sequence[int], files: Sequence[str]) -> None:
    """Raise FileNotFoundError where images are missing: how many, and the first."""
    absent = [row for row, file in enumerate(files) if not os.path.isfile(file)]
    if absent:
        raise FileNotFoundError(
            f"{path}: {len(absent):,} of {count(len(files), 'image')} are missing, the first is "
            f"{short(files[absent[0]], most=1000)} "
            f"(line {lines[absent[0]]}); paths are relative to the folder of the table"
        )


def _parts(path: Path, lines: Sequence[int], values: Sequence[str]) -> list[str]:
    """Return the part of each row: its split, or "all" where the table names none."""
    if not any(values):
        return ["all"] * len(values)
    parts = []
    for line, value in zip(lines, values, strict=True):
        split = split_named(value)
        if split is None:
            got = f"got {short(value)!r}" if value else "is empty"
            raise ValueError(f"{path}: line {line}: split {got}; allowed are train, val and test, or no split at all")
        parts.append(split)
    return parts


def _filled(path: Path, lines: Sequence[int], values: Sequence[str], *, column: str) -> NDArray[np.str_] | None:
    """Return the group or site of each row; None where the table has none."""
    if not any(values):
        return None
    empty = [line for line, value in zip(lines, values, strict=True) if not value]
    if empty:
        raise ValueError(
            f"{path}: line {empty[0]}: column {column!r} is empty, in {count(len(empty), 'row')}; give every image a "
            f"{column}, or none"
        )
    return group_ids(values, where=f"{path}: column {column!r}", what="slide" if column == "group" else column)


def _span(mpp: NDArray[np.float64]) -> str:
    """Return the lowest and the highest µm per pixel, in words."""
    known = mpp[~np.isnan(mpp)]
    low, high = known.min(), known.max()
    unknown = f", {len(mpp) - len(known):,} unknown" if len(known) < len(mpp) else ""
    return f"{f'{low:g}' if low == high else f'{low:g} to {high:g}'} µm per pixel{unknown}"
