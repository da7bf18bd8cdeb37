"""From files to arrays: images decoded once into a memmap, and small CSV files, checked line by line."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.data.cache import cached_tiles
from sscl.data.decode import decode_into
from sscl.data.images import why_unreadable

# Part of every cache key: raise it when the pixels that decode_into writes change.
_CACHE_FORMAT = 2


def decode_tiles(
    paths: Sequence[Path | str],
    *,
    size_px: int,
    root: Path,
    cache_dir: Path | str | None = None,
    exact_size_px: int | None = None,
    progress: bool = False,
) -> NDArray[np.uint8]:
    """Return the images as one read-only memmap, uint8 (N, size_px, size_px, 3), row i from `paths[i]`.

    The first call decodes on all cores, resizes with an antialiasing filter where the size differs, and writes one
    `.npy` file to the cache; later calls map that file. Its name is a fingerprint of the folder, the files' relative
    names, sizes and times, and `size_px`, so changed files are decoded again.

    Args:
        paths: the files, all below `root`.
        size_px: working size, pixels.
        cache_dir: see `cache.cache_folder`.
        exact_size_px: the only size of file allowed; None = any square size.
        progress: show a bar.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files that cannot be used (one line: the first, and how many more), or a cache folder that
            cannot be written.
    """
    if size_px < 1:
        raise ValueError(f"size_px: got {size_px}, expected a whole number of pixels, 1 or more")
    if not paths:
        raise ValueError(f"{root}: no image to decode")
    key = _files_key(paths, root, size_px, exact_size_px)

    def fill(images: NDArray[np.uint8]) -> None:
        decode_into(images, paths, exact_size_px=exact_size_px, progress=progress)

    return cached_tiles(key, (len(paths), size_px, size_px, 3), fill, cache_dir=cache_dir)


def _files_key(paths: Sequence[Path | str], root: Path, size_px: int, exact_size_px: int | None) -> str:
    """Return the fingerprint of the files. The folder counts too: archives can unpack different tiles with
    equal names, sizes and times."""
    digest = hashlib.sha256(repr((_CACHE_FORMAT, str(root.resolve()), size_px, exact_size_px)).encode())
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise FileNotFoundError(f"{path}: {why_unreadable(path, error)}") from error
        digest.update(f"{str(path).removeprefix(str(root))}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def read_table(path: Path, *, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Return (line number, values in the order of `columns`) for every row of a CSV file with a header.

    Other columns and blank lines are ignored; a byte-order mark (spreadsheets write one) is skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a row is too short or too long, there are no rows, or the file is not
            UTF-8 text.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if not header:
                raise ValueError(f"{path}: is empty; expected the header {','.join(columns)}")
            for column in columns:
                if column not in header:
                    raise ValueError(
                        f"{path}: line 1: column {column!r} is missing, found {', '.join(header)}; rename or add it"
                    )
            places = [header.index(column) for column in columns]
            table = []
            for row in reader:
                if row and len(row) != len(header):
                    raise ValueError(
                        f"{path}: line {reader.line_num}: {len(row)} values, expected {len(header)} as in line 1"
                    )
                if row:
                    table.append((reader.line_num, [row[place] for place in places]))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: is not a CSV file in UTF-8 ({error}); save it as CSV UTF-8") from error
    if not table:
        raise ValueError(f"{path}: has a header but no rows")
    return table


def read_groups(path: Path, ids: Sequence[str], *, columns: tuple[str, str]) -> NDArray[np.str_]:
    """Return the group (slide, patient) of each tile, (N,), from a CSV with the columns (id, group).

    Raises:
        FileNotFoundError, ValueError: as `read_table`; also an id that occurs twice, an empty group, or a tile
            without a row. Rows of other tiles are ignored.
    """
    group_of: dict[str, str] = {}
    for line, (name, group) in read_table(path, columns=columns):
        if name in group_of:
            raise ValueError(f"{path}: line {line}: {name!r} occurs twice; expected one row per tile")
        if not group:
            raise ValueError(f"{path}: line {line}: {name!r} has an empty {columns[1]!r}; fill it in")
        group_of[name] = group
    without = [name for name in ids if name not in group_of]
    if without:
        raise ValueError(
            f"{path}: no row for {len(without)} of {len(ids)} tiles, the first is {without[0]!r}; "
            f"expected every tile in column {columns[0]!r}"
        )
    return np.array([group_of[name] for name in ids])
