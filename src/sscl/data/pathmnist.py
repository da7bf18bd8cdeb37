"""PathMNIST, and any other RGB set in the .npz layout of MedMNIST v2.

    train_images (n, s, s, 3) uint8, train_labels (n, 1) whole numbers, and the same for val and test; val may lack,
    and labels may be (n,), floats or bools, which is said

sscl adds, all optional: `classes`, str (K,), the names; label -1 in train for a tile without label; and
`train_groups`, `val_groups`, `test_groups`, str (n,), the patient or slide of each tile.

Source of the layout and of PathMNIST's facts: Yang et al. 2023, MedMNIST v2, and the `medmnist` package 3.0.2.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sscl.data import npz
from sscl.data.cache import cached_tiles
from sscl.data.images import resized
from sscl.data.ingest import group_ids
from sscl.data.listing import Account
from sscl.data.tiles import UNLABELLED, Tiles
from sscl.places import missing
from sscl.progress import Bar
from sscl.words import short, some

# Classes of the sets of 2-D RGB images, from `INFO` of the `medmnist` package. RetinaMNIST's are grades.
PATHMNIST_CLASSES = (
    "adipose",
    "background",
    "debris",
    "lymphocytes",
    "mucus",
    "smooth muscle",
    "normal colon mucosa",
    "cancer-associated stroma",
    "colorectal adenocarcinoma epithelium",
)
PATHMNIST_COUNTS = {"train": 89996, "val": 10004, "test": 7180}
_BLOODMNIST_CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
_DERMAMNIST_CLASSES = (
    "actinic keratoses and intraepithelial carcinoma",
    "basal cell carcinoma",
    "benign keratosis-like lesions",
    "dermatofibroma",
    "melanoma",
    "melanocytic nevi",
    "vascular lesions",
)
_CLASSES_OF = {
    "pathmnist": PATHMNIST_CLASSES,
    "bloodmnist": _BLOODMNIST_CLASSES,
    "dermamnist": _DERMAMNIST_CLASSES,
    "retinamnist": tuple("01234"),
}
_COUNTS_OF = {
    "bloodmnist": {"train": 11959, "val": 1712, "test": 3421},
    "dermamnist": {"train": 7007, "val": 1003, "test": 2005},
    "retinamnist": {"train": 1080, "val": 120, "test": 400},
}
SPLITS = tuple(PATHMNIST_COUNTS)

_NAME_OF_SET = re.compile(rf"({'|'.join(_CLASSES_OF)})(_\d+)?\.npz", re.IGNORECASE)
_MOST_TILES = 10**7  # of a split: their ids alone take a gigabyte
_MOST_SIDE_PX = 4096
_NAMES = {"val": "validation"}
_CHUNK_BYTES = 4 * 2**20
_CACHE_FORMAT = 1


@dataclass(frozen=True)
class Contents:
    """A file's content except its pixels.

    Attributes:
        side: of a tile, pixels.
        labels: of each split, int64 (n,).
        groups: of each split, str (n,); None = the file has none.
        notes: what a reader must know, as that there is no validation part.
    """

    side: int
    classes: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]
    groups: dict[str, NDArray[np.str_]] | None
    notes: tuple[str, ...] = ()


def load_pathmnist(
    path: Path | str,
    *,
    split: str,
    size_px: int | None = None,
    cache_dir: Path | str | None = None,
    progress: bool = False,
) -> Tiles:
    """Return the tiles of a split of a MedMNIST .npz file; ids are `train/000000`, `val/000000`, `test/000000`.

    Only the pixels of that split are unpacked, in small pieces, into the cache of tiles (see `cached_tiles`); later
    calls map it. The class names are those in the file (`classes`), else MedMNIST's if the file's name or its counts
    are those of one of its sets, else 0, 1, ... A file may lack val.

    Args:
        split: "train", "validation" (or "val"), "test", or "all" (the three in this order).
        size_px: working size, pixels; None = the file's own.
        cache_dir: see `cache.cache_folder`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not in the layout above; the line names the file and the key.
    """
    path = Path(path)
    chosen = {"train": ("train",), "validation": ("val",), "val": ("val",), "test": ("test",), "all": SPLITS}.get(split)
    if chosen is None:
        raise ValueError(f"split: got {split!r}, allowed are train, validation, test, all")
    if size_px is not None and size_px < 1:
        raise ValueError(f"size_px: got {size_px}, expected a whole number of pixels, 1 or more")
    index = read_contents(path)
    if split == "all":
        chosen = tuple(index.labels)
    elif chosen[0] not in index.labels:
        raise ValueError(f"{path}: has no validation part (val_images, val_labels); validation is taken from train")
    size_px = size_px or index.side
    count = sum(len(index.labels[part]) for part in chosen)

    def fill(images: NDArray[np.uint8]) -> None:
        row = 0
        with Bar(count, desc="unpack" if progress else None, unit="tile", leave=True) as bar:
            for part in chosen:
                for tiles in _pieces(path, f"{part}_images"):
                    rows = images[row : row + len(tiles)]
                    if size_px == index.side:
                        rows[:] = tiles
                    else:
                        for target, tile in zip(rows, tiles, strict=True):
                            target[:] = np.asarray(resized(Image.fromarray(tile), size_px))
                    row += len(tiles)
                    bar.update(len(tiles))

    parts = {_NAMES.get(part, part): len(values) for part, values in index.labels.items()}
    stat = path.stat()
    facts = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    key = hashlib.sha256(repr((_CACHE_FORMAT, *facts, chosen, size_px)).encode()).hexdigest()[:32]
    return Tiles(
        images=cached_tiles(key, (count, size_px, size_px, 3), fill, cache_dir=cache_dir)[0],
        labels=np.concatenate([index.labels[part] for part in chosen]),
        classes=index.classes,
        ids=tuple(f"{part}/{row:06d}" for part in chosen for row in range(len(index.labels[part]))),
        groups=None if index.groups is None else np.concatenate([index.groups[part] for part in chosen]),
        account=Account("tile", parts, notes=index.notes),
    )


def has_validation(path: Path | str) -> bool:
    """Return whether a MedMNIST .npz file has a validation part; of a file that cannot be read, as it mostly has."""
    try:
        return "val_images" in npz.keys_in(Path(path))
    except (OSError, ValueError):
        return True


def read_contents(path: Path | str) -> Contents:
    """Return a file's content with every key, shape and label checked; of the pixels only the headers are read.

    Raises:
        FileNotFoundError, ValueError: as `load_pathmnist`.
    """
    path = Path(path)
    if not path.is_file():
        fault = f"{path}: is a folder; give the .npz file in it" if path.is_dir() else missing(path, "file")
        if path.exists() and not path.is_dir():
            npz.keys_in(path)  # says what it is
        raise FileNotFoundError(f"{fault} (`sscl data download pathmnist` fetches PathMNIST)")
    keys = npz.keys_in(path)
    parts = tuple(part for part in SPLITS if part != "val" or {"val_images", "val_labels"} & set(keys))
    for part in parts:
        for key in (f"{part}_images", f"{part}_labels"):
            if key not in keys:
                raise ValueError(
                    f"{path}: key {key!r} is missing, found {some([short(name) for name in keys]) or 'none'}; "
                    "expected images and labels of train, val and test (MedMNIST layout)"
                )
    shapes = {part: _image_shape(path, f"{part}_images") for part in parts}
    sides = {part: shape[1] for part, shape in shapes.items()}
    if len(set(sides.values())) > 1:
        found = ", ".join(f"{part} {side} px" for part, side in sides.items())
        raise ValueError(f"{path}: the splits' tiles differ in size ({found}); expected one size")
    notes = [] if "val" in parts else ["the file has no validation part (val_images, val_labels)"]
    labels = {}
    for part in parts:
        labels[part], note = _labels(path, f"{part}_labels", count=shapes[part][0])
        notes += [note] if note and note not in notes else []
    classes = _classes(path, keys, labels)
    _check_classes(path, labels, classes)
    groups = _groups(path, keys, labels)
    return Contents(side=sides["train"], classes=classes, labels=labels, groups=groups, notes=tuple(notes))


def _pieces(path: Path, key: str) -> Iterator[NDArray[np.uint8]]:
    """Yield the rows of an image array in order, some MiB at a time, each uint8 (b, s, s, 3)."""
    side = _image_shape(path, key)[1]
    for tiles in npz.pieces(path, key, rows=max(1, _CHUNK_BYTES // (side * side * 3))):
        yield tiles.view(np.uint8)


def _image_shape(path: Path, key: str) -> tuple[int, int, int, int]:
    """Return the shape (n, s, s, 3) of an image array from its header."""
    header = npz.header_of(path, key)
    shape, dtype = header.shape, short(str(header.dtype))
    where = f"{path}: {key}"
    if len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
        raise ValueError(f"{where}: 1 channel, sscl needs RGB (3 channels); repeat the channel or use another set")
    if len(shape) != 4 or shape[3] != 3 or header.dtype != np.uint8:
        raise ValueError(f"{where}: expected uint8 (n, s, s, 3), got {dtype} {shape}")
    if shape[1] != shape[2]:
        raise ValueError(f"{where}: tiles of {shape[2]}×{shape[1]} pixels; tiles must be square, crop them first")
    if shape[0] == 0 or shape[1] == 0:
        raise ValueError(f"{where}: shape {shape}, so this split is empty; expected at least one tile in each split")
    if shape[0] > _MOST_TILES or shape[1] > _MOST_SIDE_PX:
        raise ValueError(
            f"{where}: shape {shape}; at most {_MOST_TILES:,} tiles of {_MOST_SIDE_PX:,} px are read from one array"
        )
    if header.fortran_order:
        raise ValueError(f"{where}: is in Fortran order; save np.ascontiguousarray of it")
    return (shape[0], shape[1], shape[2], 3)


def _labels(path: Path, key: str, *, count: int) -> tuple[NDArray[np.int64], str]:
    """Return the labels of a split, int64 (n,), as many as it has tiles; and what to say of their form, or nothing."""
    labels = npz.small_array(path, key)
    form = f"{short(str(labels.dtype))} {labels.shape}"
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ValueError(
            f"{path}: {key}: {labels.shape[1]} labels per tile (multi-label); sscl needs one, shape (n, 1)"
        )
    if labels.dtype.kind not in "iubf" or labels.ndim not in (1, 2) or labels.shape[1:] not in ((), (1,)):
        raise ValueError(f"{path}: {key}: expected whole numbers (n, 1), got {form}")
    if len(labels) != count:
        raise ValueError(f"{path}: {key}: {len(labels)} labels for {count} images; expected one label per image")
    numbers = labels.reshape(count)
    if labels.dtype.kind == "f" and not (np.isfinite(numbers) & (numbers == np.trunc(numbers))).all():
        raise ValueError(f"{path}: {key}: has labels that are no whole numbers, {form}; expected 0, 1, ...")
    lowest, highest = int(numbers.min()), int(numbers.max())
    if lowest < UNLABELLED or highest >= 2**31:
        raise ValueError(f"{path}: {key}: labels {lowest} to {highest}; allowed are 0, 1, ... and -1 in train")
    if lowest == UNLABELLED and key != "train_labels":
        unlabelled = int((numbers == UNLABELLED).sum())
        raise ValueError(f"{path}: {key}: {unlabelled} tiles without a label (-1); only train may have such tiles")
    other = labels.ndim == 1 or labels.dtype.kind in "bf"
    shape = "(n,)" if labels.ndim == 1 else "(n, 1)"
    note = f"labels of dtype {labels.dtype} and shape {shape} taken as whole numbers" if other else ""
    return numbers.astype(np.int64), note


def _classes(path: Path, keys: Sequence[str], labels: Mapping[str, NDArray[np.int64]]) -> tuple[str, ...]:
    """Return the class names: the file's own, PathMNIST's, or numbers."""
    if "classes" in keys:
        names = npz.small_array(path, "classes")
        if names.ndim != 1 or not np.issubdtype(names.dtype, np.str_) or len(names) == 0:
            raise ValueError(f"{path}: classes: expected names, str (K,), got {short(str(names.dtype))} {names.shape}")
        classes = tuple(str(name) for name in names)
        if not all(name.isprintable() for name in classes):
            raise ValueError(f"{path}: classes: {short(' '.join(classes))} cannot be printed; rename them")
        if len(set(classes)) != len(classes):
            raise ValueError(f"{path}: classes: names repeat in {some([short(name) for name in classes])}")
        return classes
    counts = {part: len(values) for part, values in labels.items()}
    highest = max(int(values.max()) for values in labels.values())
    named = _NAME_OF_SET.fullmatch(path.name)
    if named is not None:
        return _CLASSES_OF[named[1].lower()]
    for name, known in {"pathmnist": PATHMNIST_COUNTS, **_COUNTS_OF}.items():
        if counts == known and highest == len(_CLASSES_OF[name]) - 1:
            return _CLASSES_OF[name]
    numbers = len(set().union(*(values.tolist() for values in labels.values())) - {UNLABELLED})
    if numbers != highest + 1:
        raise ValueError(
            f"{path}: {numbers} different labels, the highest is {highest}; without `classes` (names, in the file) "
            "they must be 0, 1, ... without gaps"
        )
    return tuple(str(label) for label in range(highest + 1))


def _check_classes(path: Path, labels: Mapping[str, NDArray[np.int64]], classes: Sequence[str]) -> None:
    """Raise ValueError where a label has no name, or a class of val or test has no tile in train."""
    for part, values in labels.items():
        if values.max() >= len(classes):
            raise ValueError(
                f"{path}: {part}_labels: label {values.max()}, allowed are 0 to {len(classes) - 1} "
                f"for the {len(classes)} classes {some([short(name) for name in classes])}"
            )
    for part in [name for name in labels if name != "train"]:
        unseen = sorted(set(labels[part].tolist()) - set(labels["train"].tolist()))
        if unseen:
            raise ValueError(
                f"{path}: {part}_labels: class {classes[unseen[0]]!r} (label {unseen[0]}) has no tile in train, "
                "so a classifier cannot learn it; add such tiles to train or remove them"
            )


def _groups(
    path: Path, keys: Sequence[str], labels: Mapping[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.str_]] | None:
    there = [part for part in labels if f"{part}_groups" in keys]
    if not there:
        return None
    groups = {}
    for part in labels:
        key = f"{part}_groups"
        if part not in there:
            raise ValueError(f"{path}: has {there[0]}_groups but no {key}; give the groups of all splits or of none")
        values = npz.small_array(path, key)
        if values.shape != labels[part].shape or not np.issubdtype(values.dtype, np.str_):
            raise ValueError(
                f"{path}: {key}: expected str ({len(labels[part])},), one group per tile, "
                f"got {short(str(values.dtype))} {values.shape}"
            )
        groups[part] = values.astype(np.str_)
    every = group_ids([name for part in labels for name in groups[part].tolist()], where=f"{path}: groups")
    ends = np.cumsum([len(groups[part]) for part in labels])
    return dict(zip(labels, np.split(every, ends[:-1]), strict=True))
