"""From files to arrays: images decoded once into a memmap, and the groups that a CSV file gives them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.data.cache import cached_tiles
from sscl.data.csv_files import read_table, whole_number
from sscl.data.decode import decode_into
from sscl.data.images import Fit, describe_changes
from sscl.places import one_form
from sscl.reading import why_unreadable
from sscl.words import short

# Part of every cache key: raise it when the pixels that decode_into writes change.
_CACHE_FORMAT = 2
_UNLABELLED = -1  # tiles.UNLABELLED, which would import torch


def decode_tiles(
    paths: Sequence[Path | str],
    *,
    size_px: int,
    root: Path,
    cache_dir: Path | str | None = None,
    exact_size_px: int | None = None,
    fit: Fit = "refuse",
    progress: bool = False,
) -> NDArray[np.uint8]:
    """Return the images as one read-only memmap, uint8 (N, size_px, size_px, 3), row i from `paths[i]`.

    The first call decodes on all cores, resizes with an antialiasing filter where the size differs, and writes one
    `.npy` file to the cache; later calls map that file. Its name is a fingerprint of the folder, the files' relative
    names, sizes, times (of content and of change) and inodes, `size_px` and `fit`, so changed files are decoded again,
    as are files that were copied or moved. How many images were turned, converted or made square is printed each time.

    Args:
        paths: the files, all below `root`.
        cache_dir: see `cache.cache_folder`.
        exact_size_px: the only size of file allowed; None = any square size.
        fit: of images that are not square, see `images.decode_image`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files that cannot be used (one line: the first, and how many more), or a cache folder that
            cannot be written.
    """
    if size_px < 1:
        raise ValueError(f"size_px: got {size_px}, expected a whole number of pixels, 1 or more")
    key = _files_key(paths, root, size_px, exact_size_px, fit)

    def fill(images: NDArray[np.uint8]) -> dict[str, int]:
        return decode_into(images, paths, exact_size_px=exact_size_px, fit=fit, progress=progress)

    images, changes = cached_tiles(key, (len(paths), size_px, size_px, 3), fill, cache_dir=cache_dir)
    for line in describe_changes(changes, of=len(paths)):
        print(f"{root}: {line}")
    return images


@contextlib.contextmanager
def each_line_once() -> Iterator[None]:
    """Print what the loaders say once, at the end: a set is loaded split by split, and again as a task."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        for line in dict.fromkeys(said.getvalue().splitlines()):
            print(line)


def _files_key(paths: Sequence[Path | str], root: Path, size_px: int, exact_size_px: int | None, fit: Fit) -> str:
    """Return the fingerprint of the files. The folder counts too: archives can unpack different tiles with
    equal names, sizes and times."""
    digest = hashlib.sha256(repr((_CACHE_FORMAT, str(root.resolve()), size_px, exact_size_px, fit)).encode())
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise FileNotFoundError(f"{path}: {why_unreadable(path, error)}") from error
        name = str(path).removeprefix(str(root))
        # Time of the last change and inode: a copy may keep size and time of the file that it replaces (rsync -t).
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0{stat.st_ino}\n".encode())
    return digest.hexdigest()[:32]


def group_ids(values: Sequence[str], *, where: str, what: str = "slide") -> NDArray[np.str_]:
    """Return ids of slides or patients without blanks around them and in one Unicode form, (N,).

    Args:
        values: as they were read, (N,). where: the file and column, for the message. what: has these ids.

    Raises:
        ValueError: two ids differ only by case, blanks or a final .0, so that one slide may have two ids.
    """
    ids = [one_form(value).strip() for value in values]
    spelled: dict[str, str] = {}
    for name in dict.fromkeys(ids):
        plain = re.sub(r"[.,]0+$", "", "".join(name.casefold().split()))
        other = spelled.setdefault(plain, name)
        if other != name:
            raise ValueError(
                f"{where}: {short(other)!r} and {short(name)!r} differ only by case, blanks or '.0', so one {what} "
                "would count as two; write each in one way"
            )
    return np.array(ids, dtype=np.str_)


def classes_of(values: Sequence[str | None], *, where: str) -> tuple[tuple[str, ...], list[int]]:
    """Return the classes that values name, and the index of each value's class, -1 of None.

    They are in alphabetical order, or by number where all are whole numbers.

    Raises:
        ValueError: as `group_ids`.
    """
    given = group_ids([value for value in values if value is not None], where=where, what="class").tolist()
    distinct = set(given)
    by_number = all(whole_number(name, at_most=2**63) is not None for name in distinct)
    classes = sorted(distinct, key=int) if by_number else sorted(distinct)
    index = {name: label for label, name in enumerate(classes)}
    named = iter(given)
    return tuple(classes), [_UNLABELLED if value is None else index[next(named)] for value in values]


def read_groups(path: Path, ids: Sequence[str], *, columns: tuple[str, str]) -> NDArray[np.str_]:
    """Return the group (slide, patient) of each tile, (N,), from a CSV with the columns (id, group); see `group_ids`.

    Raises:
        FileNotFoundError, ValueError: as `read_table` and `group_ids`; also an id that occurs twice, an empty group, or
            a tile without a row. Rows of other tiles are ignored.
    """
    group_of: dict[str, str] = {}
    for line, (name, group) in read_table(path, columns=columns):
        name = plain_path(name)
        if name in group_of:
            raise ValueError(f"{path}: line {line}: {short(name)!r} occurs twice; expected one row per tile")
        if not group:
            raise ValueError(f"{path}: line {line}: {short(name)!r} has an empty {columns[1]!r}; fill it in")
        group_of[name] = group
    names = [plain_path(name) for name in ids]
    without = [name for name in names if name not in group_of]
    if without:
        raise ValueError(
            f"{path}: no row for {len(without)} of {len(ids)} tiles, the first is {short(without[0])!r}; "
            f"expected every tile in column {columns[0]!r}"
        )
    return group_ids([group_of[name] for name in names], where=f"{path}: column {columns[1]!r}")


def read_sites(path: Path, ids: Sequence[str]) -> NDArray[np.str_] | None:
    """Return the site of each tile, (N,), from the column `site` of a CSV that `read_groups` has read; None: no such.

    Raises:
        FileNotFoundError, ValueError: as `read_table` and `group_ids`; also a tile whose site is empty where others
            have one.
    """
    site_of = {plain_path(name): site for _, (name, site) in read_table(path, columns=("path",), optional=("site",))}
    sites = [site_of[plain_path(name)] for name in ids]
    if not any(sites):
        return None
    if not all(sites):
        empty = ids[sites.index("")]
        raise ValueError(f"{path}: {short(empty)!r} has an empty 'site'; give every tile a site, or none")
    return group_ids(sites, where=f"{path}: column 'site'", what="site")


def listed_file(folder: str, name: str) -> str:
    """Return the file that a table names, relative to the table's folder, as the disk has it.

    A table written on Windows has "\\" between folders; one written elsewhere may have names in another Unicode form.
    """
    file = os.path.join(folder, name)
    if os.path.lexists(file):
        return file
    plain = os.path.join(folder, plain_path(name))
    spellings = (plain, unicodedata.normalize("NFD", plain))
    return next((spelling for spelling in spellings if os.path.lexists(spelling)), plain)


def plain_path(name: str) -> str:
    """Return a path of a table in one spelling: "/" between folders, no "./" before them, one Unicode form."""
    return one_form(name.replace("\\", "/").removeprefix("./"))
