"""Folders of tiles: one folder per class, already split or split here, or no classes at all.

root/train/CLASS/* + root/val/CLASS/* + root/test/CLASS/*     split as the folders say; val/ may be missing
root/CLASS/*                                                  split here, stratified, by group where groups are given
root/CLASS/SLIDE/*, root/train/CLASS/SLIDE/*                  the folder below the class is the group
root/*                                                        unlabelled, for pretraining
root/**, root/train/**                                        listed whole, for pretraining: no classes
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.data import layout
from sscl.data.images import Fit
from sscl.data.ingest import decode_tiles, group_ids, read_groups, read_sites
from sscl.data.layout import Layout
from sscl.data.listing import Account, is_folder, list_images, passed_whole
from sscl.data.split import take_split
from sscl.data.split_names import check_split
from sscl.data.tiles import Tiles


def load_folder(
    root: Path | str,
    *,
    split: str,
    whole: bool = False,
    groups_csv: Path | str | None = None,
    group_of: Mapping[str, str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    size_px: int = 224,
    fit: Fit = "refuse",
    cache_dir: Path | str | None = None,
    progress: bool = False,
) -> Tiles:
    """Return the tiles of a folder in one of the layouts above; ids are posix paths relative to `root`.

    `listing` says which files count. Split folders may be written in any case and as training, val, valid, validation
    or testing. Classes are the folder names in alphabetical order; both Unicode forms of a name are one class. Images
    are square, of any size; they are resized to `size_px`.

    Args:
        split: "train", "validation", "test" or "all". A folder without classes has no test part.
        whole: for pretraining: take all images below train/, or below `root` where there is no such folder, at any
            depth, without classes or groups.
        groups_csv: CSV with the columns path,group and, where known, site (path relative to root) and a row for every
            tile.
        group_of: the group of every id; replaces those of the folders and of groups_csv.
        test_fraction, seed: of the split made here; unused where train/ and test/ exist.
        size_px: working size, pixels. fit: of images that are not square, see `images.decode_image`.
        cache_dir, progress: see `decode_tiles`.

    Raises:
        FileNotFoundError: the folder, the CSV or the wanted part is missing.
        ValueError: the layout, the CSV or an image is not as above; the line names the folder or file.
    """
    found, account = read_layout(root, whole=whole, groups_given=groups_csv is not None)
    check_split(split, found.parts, classes=found.classes, root=root, given_by="the folders train/, val/ and test/")
    entries = [entry for part in found.parts.values() for entry in part]
    ids = tuple(entry.id for entry in entries)
    groups: NDArray[np.str_] | None = None
    sites: NDArray[np.str_] | None = None
    if groups_csv is not None:
        try:
            groups = read_groups(Path(groups_csv), ids, columns=("path", "group"))
            sites = read_sites(Path(groups_csv), ids)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"groups_csv: {error}") from None
    elif found.grouped:
        groups = group_ids([entry.group or "" for entry in entries], where=f"{root}: folders below the classes")
    if group_of is not None:
        groups = np.array([group_of[name] for name in ids])
    tiles = Tiles(
        images=decode_tiles(
            [os.path.join(root, name) for name in ids],
            size_px=size_px,
            root=Path(root),
            fit=fit,
            cache_dir=cache_dir,
            progress=progress,
        ),
        labels=np.array([entry.label for entry in entries], dtype=np.int64),
        classes=found.classes,
        ids=ids,
        groups=groups,
        sites=sites,
        account=account,
    )
    return take_split(tiles, account.parts, split, test_fraction=test_fraction, seed=seed)


def read_layout(root: Path | str, *, whole: bool = False, groups_given: bool = False) -> tuple[Layout, Account]:
    """Return where the images of a folder belong, and the account of everything in it; nothing is decoded.

    Raises:
        FileNotFoundError, ValueError: as `load_folder`.
    """
    if os.path.isfile(root):
        raise ValueError(
            f"{root}: is a file; expected a folder of tiles (a CSV with a column path is data.source=table, an .npz "
            "file of MedMNIST is data.source=pathmnist)"
        )
    listing = list_images(root, once=whole)
    found = layout.whole(str(root), listing) if whole else layout.classed(str(root), listing, groups_given=groups_given)
    for name in found.outside:
        listing.passed_over.add("image outside these folders", name)
    account = Account(
        what="image",
        parts={name: len(part) for name, part in found.parts.items()},
        places=found.places,
        passed_over=listing.passed_over,
        notes=found.notes,
    )
    return found, account


def own_splits(root: Path | str) -> dict[str, str]:
    """Return the folders that are a folder's own splits, by split; empty where it has none, or is no folder."""
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if is_folder(entry) and not passed_whole(entry))
    except OSError:
        return {}
    return layout.split_folders(names, root=str(root))


def knows_groups(root: Path | str) -> bool:
    """Return whether the folders below the classes say which slide or patient each image is of."""
    try:
        return read_layout(root)[0].grouped
    except (OSError, ValueError):
        return False
