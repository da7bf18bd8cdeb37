"""From files to arrays: images decoded once into a memmap, and small CSV files read strictly."""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.data.decode import decode_into

# Part of every cache key: raise it when the pixels that decode_into writes change.
_CACHE_FORMAT = 1
_STALE_SECONDS = 3600


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

    The first call decodes with all cores, resizes with an antialiasing filter where the size differs, and
    leaves one `.npy` file in the cache; later calls map that file. Its name is a fingerprint of the folder,
    the files' relative names, sizes and times, and `size_px`, so changed files are decoded afresh.

    Args:
        paths: the files, all below `root`.
        size_px: working size, pixels.
        cache_dir: where the memmap goes; None = $SSCL_CACHE, else ~/.cache/sscl.
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


def cached_tiles(
    key: str,
    shape: tuple[int, int, int, int],
    fill: Callable[[NDArray[np.uint8]], None],
    *,
    cache_dir: Path | str | None = None,
) -> NDArray[np.uint8]:
    """Return the cached tiles under `key` as a read-only memmap, uint8 `shape`; `fill` writes them the first time.

    Args:
        key: fingerprint of all that the pixels depend on.
        shape: (N, H, W, 3).
        fill: writes every row of the array it is given; what it raises leaves nothing in the cache.
        cache_dir: where the memmap goes; None = $SSCL_CACHE, else ~/.cache/sscl.

    Raises:
        ValueError: the cache folder cannot be written; and what `fill` raises.
    """
    folder = Path(cache_dir or os.environ.get("SSCL_CACHE") or Path.home() / ".cache" / "sscl")
    cached = folder / f"tiles-{key}.npy"
    if not _is_complete(cached, shape):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_stale(folder)
            part = cached.with_name(f"{cached.stem}-{uuid.uuid4().hex}.part")
            try:
                _write_array(part, shape, fill)
                os.replace(part, cached)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"{folder}: the cache of decoded tiles cannot be written there "
                f"({error.strerror or error}); it needs {np.prod(shape) / 2**30:.2f} GiB: "
                "free some space, or name another folder with data.cache_dir or $SSCL_CACHE"
            ) from error
    images: NDArray[np.uint8] = np.load(cached, mmap_mode="r")
    return images


def _files_key(paths: Sequence[Path | str], root: Path, size_px: int, exact_size_px: int | None) -> str:
    """Return the fingerprint of the files. The folder counts too: archives can unpack different tiles with
    equal names, sizes and times."""
    digest = hashlib.sha256(repr((_CACHE_FORMAT, str(root.resolve()), size_px, exact_size_px)).encode())
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise FileNotFoundError(f"{path}: cannot be opened ({error.strerror})") from error
        digest.update(f"{str(path).removeprefix(str(root))}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _is_complete(cached: Path, shape: tuple[int, ...]) -> bool:
    try:
        return bool(np.load(cached, mmap_mode="r").shape == shape)
    except (OSError, ValueError):  # absent, or shortened by other hands: decode again
        return False


def _remove_stale(folder: Path) -> None:
    """Delete what killed ingests left; one that is alive wrote to its file within the last hour."""
    for part in folder.glob("tiles-*.part"):
        with contextlib.suppress(FileNotFoundError):  # its writer has just finished
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink()


def _write_array(part: Path, shape: tuple[int, ...], fill: Callable[[NDArray[np.uint8]], None]) -> None:
    """Have `fill` write the new .npy file `part`, and bring it to the disk."""
    images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # A mapped file on a full disk ends the process with a bus error; asked for now, it is an OSError.
        with open(part, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(part))
    fill(images)
    images.flush()
    with open(part, "r+b") as file:
        os.fsync(file.fileno())


def read_table(path: Path, *, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Return (line number, values in the order of `columns`) for every row of a CSV file with a header.

    Other columns are ignored, and so are blank lines; a byte-order mark (spreadsheets write one) is skipped.

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
                    near = difflib.get_close_matches(column, header, n=1, cutoff=0.5)
                    found = f"found {near[0]!r} instead" if near else f"found only {', '.join(header)}"
                    raise ValueError(f"{path}: line 1: column {column!r} is missing, {found}; rename or add it")
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
        raise ValueError(f"{path}: is not a CSV file in UTF-8 ({error})") from error
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
