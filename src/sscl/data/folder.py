"""Folders of tiles: one folder per class, already split or split here, or no classes at all.

root/train/CLASS/*.png + root/test/CLASS/*.png     split as the folders say
root/CLASS/*.png                                   split here, stratified, by group where groups are given
root/*.png                                         unlabelled, for pretraining
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sscl.data.ingest import decode_tiles, read_groups
from sscl.data.split import stratified_split
from sscl.data.tiles import UNLABELLED, Tiles

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})


def load_folder(
    root: Path | str,
    *,
    split: str,
    groups_csv: Path | str | None = None,
    group_of: Mapping[str, str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    size_px: int = 224,
    cache_dir: Path | str | None = None,
    progress: bool = False,
) -> Tiles:
    """Return the tiles of a folder in one of the layouts above; ids are posix paths relative to `root`.

    Only images count (png, jpg, jpeg, tif, tiff, bmp, webp in any case); other files and hidden ones are
    ignored. Classes are the folder names in alphabetical order. Images are square, of any size; they are
    resized to `size_px`.

    Args:
        split: "train", "test" or "all". A folder without classes has no test part.
        groups_csv: CSV with the columns path,group (path relative to root) and a row for every tile.
        group_of: the group of every id; replaces those in groups_csv.
        test_fraction, seed: of the split made here; unused where train/ and test/ exist.
        size_px: working size, pixels.
        cache_dir, progress: see `decode_tiles`.

    Raises:
        FileNotFoundError: the folder, the CSV or the wanted part is missing.
        ValueError: the layout, the CSV or an image is not as above; the line names the folder or file.
    """
    root = Path(root)
    if split not in ("train", "test", "all"):
        raise ValueError(f"split: got {split!r}, allowed are train, test, all")
    classes, parts = _list_tiles(root)
    if split == "test" and parts.keys() == {"train"}:
        raise FileNotFoundError(
            f"{root} has train/ but no test/; add test/ with the same class folders, "
            "or move the class folders into the root itself to have sscl split them"
        )
    if split == "test" and not classes:
        raise ValueError(f"{root} has no class folders, so no test split; use split train or all")

    listed = [tile for part in parts.values() for tile in part]
    ids = tuple(name for name, _ in listed)
    groups = None
    if group_of is not None:
        groups = np.array([group_of[name] for name in ids])
    elif groups_csv is not None:
        groups = read_groups(Path(groups_csv), ids, columns=("path", "group"))
    paths = [os.path.join(root, name) for name in ids]
    tiles = Tiles(
        images=decode_tiles(paths, size_px=size_px, root=root, cache_dir=cache_dir, progress=progress),
        labels=np.array([label for _, label in listed], dtype=np.int64),
        classes=classes,
        ids=ids,
        groups=groups,
    )
    if split == "all" or not classes:
        return tiles
    if "all" in parts:
        for name, count in tiles.class_counts().items():
            if count < 2:
                raise ValueError(f"{root / name}: 1 image; a class needs at least 2, one for train and one for test")
        train, test = stratified_split(tiles.labels, fraction=test_fraction, seed=seed, groups=groups, classes=classes)
        return tiles.subset(train if split == "train" else test)
    # train lies before test, so either is one contiguous range of the memmap and is not copied.
    count = len(parts["train"])
    return tiles.subset(np.arange(count) if split == "train" else np.arange(count, len(tiles)))


_Listed = list[tuple[str, int]]  # id and label of each tile


def _list_tiles(root: Path) -> tuple[tuple[str, ...], dict[str, _Listed]]:
    """Return the classes and the tiles of each part: train and test, or all where sscl makes the split."""
    files, folders = _scan(root)
    if "train" in folders:
        return _list_given_split(root, has_test="test" in folders)
    if "test" in folders:
        raise ValueError(f"{root} has test/ but no train/; add train/ with the same class folders")
    if folders and files:
        raise ValueError(
            f"{root} has both folders ({folders[0]}, …) and images ({files[0]}, …); "
            "expected class folders or images, move one of them away"
        )
    if folders:
        return tuple(folders), {"all": _list_classes(root, "", tuple(folders))}
    if files:
        return (), {"all": [(name, UNLABELLED) for name in files]}
    raise ValueError(f"{root} has no images (looked for {', '.join(sorted(EXTENSIONS))})")


def _scan(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the images and of the folders in `folder`, sorted, without hidden ones."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    files.append(entry.name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder}: no such folder") from error
    except OSError as error:
        raise ValueError(f"{folder}: cannot be listed ({error.strerror}); expected a folder of tiles") from error
    for name in (*files, *folders):
        # Both would break the lines and files that name tiles and classes; the second is a name that is not UTF-8.
        if not name.isprintable() and any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise ValueError(
                f"{folder}: {name!r} has a line break or another character that cannot be printed; rename it"
            )
    return sorted(files), sorted(folders)


def _list_given_split(root: Path, *, has_test: bool) -> tuple[tuple[str, ...], dict[str, _Listed]]:
    """Return the classes, and the tiles of train/ and, if it exists, test/."""
    class_lists = {part: tuple(_scan(root / part)[1]) for part in (("train", "test") if has_test else ("train",))}
    for part, names in class_lists.items():
        if not names:
            raise ValueError(f"{root / part}: has no class folders; put its images into one folder per class")
        differing = sorted(set(names) ^ set(class_lists["train"]))
        if differing:
            raise ValueError(
                f"{root}: train/ and test/ must have the same class folders, "
                f"but only one of them has {', '.join(differing)}"
            )
    classes = class_lists["train"]
    return classes, {part: _list_classes(root, f"{part}/", classes) for part in class_lists}


def _list_classes(root: Path, prefix: str, classes: tuple[str, ...]) -> _Listed:
    """Return (id, label) of every image in the class folders below `root / prefix`."""
    listed = []
    for label, name in enumerate(classes):
        files, folders = _scan(root / f"{prefix}{name}")
        if folders:
            raise ValueError(
                f"{root / f'{prefix}{name}' / folders[0]}: a folder inside a class folder; "
                "expected images only (give slides or patients in groups_csv)"
            )
        if not files:
            raise ValueError(
                f"{root / f'{prefix}{name}'}: class folder without images; add images or remove the folder"
            )
        listed += [(f"{prefix}{name}/{file}", label) for file in files]
    return listed
