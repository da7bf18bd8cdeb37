"""The cache on disk: decoded tiles, and numbers that take long to compute (features, clusters of near-duplicates)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import locks
from sscl.places import expanded
from sscl.words import readable
from sscl.writing import remove_dead, replacing

# Part of the key of every array: raise it when features or clusters get other numbers from the same input.
_ARRAYS_VERSION = 1
_BIG = 2**30  # bytes of decoded tiles


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
    compute: Callable[[], torch.Tensor],
    *,
    key: Sequence[object],
    rows: int,
    cache_dir: Path | str | None = None,
) -> torch.Tensor:
    """Return what `compute` returns, float32 (rows, C), from the cache if it was computed before.

    Args:
        compute: called when the cache has no complete file for the key.
        key: everything that the numbers depend on, as strings and numbers.
        rows: expected number of rows.
        cache_dir: see `cache_folder`.

    Raises:
        ValueError: the cache folder cannot be written.
    """
    name = hashlib.sha256(repr((_ARRAYS_VERSION, *key)).encode()).hexdigest()[:32]
    folder = cache_folder(cache_dir)
    file = folder / f"features-{name}.npy"
    try:
        found = np.load(file)
    except (OSError, ValueError, EOFError):  # absent or damaged: compute again
        found = None
    if isinstance(found, np.ndarray) and found.ndim == 2 and len(found) == rows and found.dtype == np.float32:
        _mark_used(file)
        return torch.from_numpy(found)
    computed = compute()
    with (
        _written(folder, what="features", size=computed.nbytes),
        replacing(file) as temporary,
        temporary.open("wb") as handle,
    ):
        np.save(handle, computed.numpy())
    return computed


def cached_tiles(
    key: str,
    shape: tuple[int, int, int, int],
    fill: Callable[[NDArray[np.uint8]], None],
    *,
    cache_dir: Path | str | None = None,
) -> NDArray[np.uint8]:
    """Return the cached tiles under `key` as a read-only memmap, uint8 `shape`; `fill` writes them the first time.

    Args:
        key: fingerprint of everything the pixels depend on.
        shape: (N, H, W, 3).
        fill: writes every row of the array it is given; if it raises, nothing stays in the cache.
        cache_dir: see `cache_folder`.

    Where they are is printed when they are written or many.

    Raises:
        ValueError: the cache folder cannot be written; and what `fill` raises.
    """
    folder = cache_folder(cache_dir)
    file = folder / f"tiles-{key}.npy"
    size = int(np.prod(shape))
    known = _is_complete(file, shape)
    if not known:
        with _written(folder, what="decoded tiles", size=size), replacing(file) as temporary:
            _fill_memmap(temporary, shape, fill)
    _mark_used(file)
    if not known or size >= _BIG:
        print(f"decoded tiles: {readable(size)} in {folder}; sscl cache lists them")
    images: NDArray[np.uint8] = np.load(file, mmap_mode="r")
    return images


@contextlib.contextmanager
def _written(folder: Path, *, what: str, size: int) -> Iterator[None]:
    """Make the folder, and clear away what killed processes left; turn an OSError into one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_dead(folder)
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ValueError(
            f"{folder}: cannot write the cache of {what} ({reason}), which needs "
            f"{readable(size)}; free some space, or set cache_dir or $SSCL_CACHE to another folder"
        ) from error


def _is_complete(file: Path, shape: tuple[int, ...]) -> bool:
    try:
        return bool(np.load(file, mmap_mode="r").shape == shape)
    except (OSError, ValueError):  # absent or damaged: decode again
        return False


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
        """Of the array in it; empty where it cannot be read."""
        try:
            return tuple(np.load(self.path, mmap_mode="r").shape)
        except (OSError, ValueError, EOFError):
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


def _fill_memmap(path: Path, shape: tuple[int, ...], fill: Callable[[NDArray[np.uint8]], None]) -> None:
    """Have `fill` write a new .npy file."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # A mapped file on a full disk ends the process with a bus error; reserving the space now gives an OSError.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    fill(images)
    images.flush()
