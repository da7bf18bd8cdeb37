"""The cache on disk: decoded tiles, and numbers that take long to compute (features, clusters of near-duplicates)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl import locks
from sscl.data.digests import Digests, Footer, all_digests, digests_of, read_footer, write_footer
from sscl.data.rows import Rows, new_array
from sscl.memory import raise_if_short
from sscl.places import expanded
from sscl.words import readable
from sscl.writing import remove_dead, replacing

# Part of the key of every array: raise it when features or clusters get other numbers from the same input.
_ARRAYS_VERSION = 1
_BEGIN = np.lib.format.magic(1, 0)
_BIG = 2**30  # bytes of decoded tiles
# Tiles that are compared with their digests when a file is mapped: so many, of so many bytes.
_LOOKED_AT = (4, 32)
_LOOKED_AT_BYTES = 2**23


def cache_folder(given: Path | str | None) -> Path:
    """Return the cache folder: the given one, else $SSCL_CACHE, else ~/.cache/sscl; it may not exist yet.

    Raises:
        ValueError: none is given, and this user has no home folder.
    """
    chosen = given or os.environ.get("SSCL_CACHE")
    if chosen:
        return Path(expanded(str(chosen)))
    try:
        return Path.home() / ".cache" / "sscl"
    except RuntimeError as error:  # as in a container, under a user id without a name
        raise ValueError(
            "the cache of decoded tiles lies in the home folder, and this user has none: set SSCL_CACHE to a folder, "
            "or HOME"
        ) from error


def cached_outputs(
    compute: Callable[[], NDArray[np.float32]],
    *,
    key: Sequence[object],
    rows: int,
    cache_dir: Path | str | None = None,
) -> NDArray[np.float32]:
    """Return what `compute` returns, float32 (rows, C), from the cache if it was computed before.

    Args:
        key: everything that the numbers depend on, as strings and numbers.
        cache_dir: see `cache_folder`.

    Raises:
        ValueError: the cache folder cannot be written.
    """
    file = outputs_file(key, cache_dir=cache_dir)
    folder = file.parent
    if os.path.lexists(file):
        try:
            found = _mapped(file, np.float32, rows=rows, dims=2)
            values = np.array(found.array)
            _compare(digests_of(values), found.footer.digests, what="rows")
        except Unusable as error:
            print(f"{file}: {error}; computed again")
        else:
            _mark_used(file)
            return values
    computed = compute()
    remove_dead(folder)
    with _written(folder, what="features", size=computed.nbytes), replacing(file) as temporary:
        with temporary.open("wb") as handle:
            np.save(handle, computed)
        write_footer(temporary, Footer(digests_of(computed), {}))
    return computed


def outputs_file(key: Sequence[object], *, cache_dir: Path | str | None = None) -> Path:
    """Return the file in which `cached_outputs` keeps the numbers of a key; it may not exist yet."""
    name = hashlib.sha256(repr((_ARRAYS_VERSION, *key)).encode()).hexdigest()[:32]
    return cache_folder(cache_dir) / f"features-{name}.npy"


def tiles_file(key: str, *, cache_dir: Path | str | None = None) -> Path:
    """Return the file in which `cached_tiles` keeps the tiles of a key; it may not exist yet."""
    return cache_folder(cache_dir) / f"tiles-{key}.npy"


def cached_tiles(
    key: str,
    shape: tuple[int, int, int, int],
    fill: Callable[[NDArray[np.uint8]], Mapping[str, int] | None],
    *,
    cache_dir: Path | str | None = None,
) -> tuple[NDArray[np.uint8], Mapping[str, int]]:
    """Return the cached tiles under `key` as a read-only memmap, uint8 `shape`, and what `fill` noted.

    The first time `fill` writes them. Later some are compared with their digests, others each time: where one differs,
    or the file is cut or no such file, it is written again, and that is said.

    Args:
        key: fingerprint of everything the pixels depend on.
        shape: (N, H, W, 3).
        fill: writes every row of the array it is given and returns counts to keep with them, or None; if it raises,
            nothing stays in the cache.
        cache_dir: see `cache_folder`.

    Where they are is printed when they are written or many.

    Raises:
        ValueError: the cache folder cannot be written; and what `fill` raises.
    """
    file = tiles_file(key, cache_dir=cache_dir)
    folder = file.parent
    remove_dead(folder)
    size = int(np.prod(shape))
    found = None
    if os.path.lexists(file):
        try:
            found = _mapped(file, np.uint8, rows=shape[0], dims=4)
            _check_some(found, shape)
        except (Unusable, FileNotFoundError) as error:  # another command may delete it just now
            print(f"{file}: {error}; decoded again")
            found = None
    known = found is not None
    if found is None:
        with _written(folder, what="decoded tiles", size=size), replacing(file) as temporary:
            images = new_array(temporary, shape)
            notes = fill(images) or {}
            images.flush()
            digests = all_digests(images.__getitem__, rows=len(images), row_bytes=int(np.prod(shape[1:])))
            write_footer(temporary, Footer(digests, notes))
        found = _mapped(file, np.uint8, rows=shape[0], dims=4)
    _mark_used(file)
    if not known or size >= _BIG:
        print(f"decoded tiles: {readable(size)} in {folder}; sscl cache lists them")
    return found.array, found.footer.notes


@contextlib.contextmanager
def _written(folder: Path, *, what: str, size: int) -> Iterator[None]:
    """Make the folder; turn an OSError into one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise_if_short(error)
        reason = os.strerror(error.errno) if error.errno else error
        raise ValueError(
            f"{folder}: cannot write the cache of {what} ({reason}), which needs "
            f"{readable(size)}; free some space, or set cache_dir or $SSCL_CACHE to another folder"
        ) from error


class Unusable(ValueError):
    """A file of the cache is not what was written there; the message says why, and goes on after its name."""


@dataclass(frozen=True)
class Mapped:
    """A file of the cache: its array, a read-only memmap, and what stands behind that."""

    array: np.memmap[Any, np.dtype[Any]]
    footer: Footer


def _mapped(file: Path, dtype: type[np.generic], *, rows: int | None, dims: int) -> Mapped:
    """Return a file of the cache. rows: that it must have; None = any number.

    Raises:
        Unusable: it is not whole, or not of such an array.
    """
    if not file.is_file():
        raise Unusable("is no file")
    try:
        with file.open("rb") as opened:
            if opened.read(len(_BEGIN)) != _BEGIN:  # later versions may claim gigabytes, and numpy asks for them
                raise ValueError("another header than is written here")
        array = np.load(file, mmap_mode="r")
    except Exception as error:  # of whatever the file holds: numpy's reader raises many kinds
        raise_if_short(error)  # to map it
        raise Unusable("is empty, cut, or no array of numpy") from error
    if not isinstance(array, np.memmap) or array.dtype != dtype or array.ndim != dims or not array.flags.c_contiguous:
        raise Unusable("holds another array")
    if rows not in (None, len(array)):
        raise Unusable(f"holds {len(array):,} rows, not {rows:,}")
    footer = read_footer(file, start=array.offset + array.nbytes, rows=len(array))
    if footer is None:
        raise Unusable("is cut, or without the digests of its rows")
    return Mapped(array, footer)


def _compare(found: Digests, written: Digests, *, what: str) -> None:
    """Raise Unusable where digests differ."""
    wrong = int((found != written).sum())
    if wrong:
        raise Unusable(f"{wrong:,} of the {len(found):,} {what} looked at differ from what was written")


def _check_some(found: Mapped, shape: tuple[int, ...]) -> None:
    """Raise Unusable unless these are tiles of a shape and some of them are as they were written.

    The first and the last, and others each time.
    """
    if found.array.shape != shape:
        raise Unusable(f"holds tiles of {found.array.shape[1:]}, not {shape[1:]}")
    if not len(found.array):
        return
    size = found.array[0].nbytes
    most = min(len(found.array), int(np.clip(_LOOKED_AT_BYTES // size, *_LOOKED_AT)))
    drawn = np.random.default_rng().choice(len(found.array), size=most, replace=False, shuffle=False)
    rows = np.unique([0, len(found.array) - 1, *drawn])
    starts = found.array.offset + rows * size
    # Read, not mapped: a page fault is a request of its own.
    tiles = np.stack([np.fromfile(str(found.array.filename), np.uint8, size, offset=start) for start in starts])
    _compare(digests_of(tiles), found.footer.digests[rows], what="tiles")


def _mark_used(file: Path) -> None:
    """Let the time of a file say when it was last used."""
    with contextlib.suppress(OSError):  # of another user, or gone
        os.utime(file)


# --- what is there ---


class Kind(Enum):
    """What a file of the cache is."""

    TILES = "decoded tiles"
    FEATURES = "features"
    WRITTEN = "being written"
    LEFT = "left by processes that died"


@dataclass(frozen=True)
class CachedFile:
    """A file of the cache: its size in bytes, and the seconds since it was last used."""

    path: Path
    kind: Kind
    size: int
    age: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tiles in it; empty where it cannot be read."""
        try:
            return tuple(_mapped(self.path, np.uint8, rows=None, dims=4).array.shape)
        except (Unusable, OSError):
            return ()


def cached_files(folder: Path) -> list[CachedFile]:
    """Return the files of sscl in the cache folder; others are left out."""
    found = []
    for pattern, kind in (("tiles-*.npy", Kind.TILES), ("features-*.npy", Kind.FEATURES)):
        for path in (*folder.glob(pattern), *folder.glob(f".{pattern}.*.tmp")):
            with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                facts = path.stat()
                age = max(0.0, time.time() - facts.st_mtime)
                unfinished = Kind.WRITTEN if locks.in_use(path) else Kind.LEFT
                kind_of = unfinished if path.suffix == ".tmp" else kind
                found.append(CachedFile(path, kind_of, facts.st_size, age))
    return found


def delete(files: Iterable[CachedFile]) -> None:
    """Delete files of the cache. A process that reads one goes on reading."""
    for file in files:
        file.path.unlink(missing_ok=True)
        locks.lock_of(file.path).unlink(missing_ok=True)


def differing(file: CachedFile) -> tuple[int, int]:
    """Return how many rows of a file differ from what was written, and how many it has; every row is read.

    Raises:
        Unusable: it is not whole, or no file of the cache.
        OSError: it cannot be read.
    """
    if file.kind is Kind.TILES:
        found = _mapped(file.path, np.uint8, rows=None, dims=4)
        read = Rows([found.array]).__getitem__ if len(found.array) else found.array.__getitem__
    else:
        found = _mapped(file.path, np.float32, rows=None, dims=2)
        read = found.array.__getitem__
    now = all_digests(read, rows=len(found.array), row_bytes=found.array.nbytes // max(1, len(found.array)))
    return int((now != found.footer.digests).sum()), len(now)
