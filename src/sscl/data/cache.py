"""Numbers that take long to compute, kept on disk: features of tiles, clusters of near-duplicates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from sscl.writing import replacing

_CACHE_FORMAT = 1  # part of every cache key: raise it when `outputs` gives other numbers for the same input


def cached_outputs(
    compute: Callable[[], torch.Tensor], *, key: Sequence[object], rows: int, cache_dir: Path | str | None = None
) -> torch.Tensor:
    """Return what `compute` gives, float32 (rows, C), from the cache on disk where it has been computed before.

    Args:
        compute: called when the cache has no whole file for the key.
        key: everything that the numbers depend on, as strings and numbers.
        rows: how many rows there must be.
        cache_dir: where the `.npy` file lies; None = $SSCL_CACHE, else ~/.cache/sscl.

    Raises:
        ValueError: the cache folder cannot be written.
    """
    folder = Path(cache_dir or os.environ.get("SSCL_CACHE") or Path.home() / ".cache" / "sscl")
    name = hashlib.sha256(repr((_CACHE_FORMAT, *key)).encode()).hexdigest()[:32]
    file = folder / f"features-{name}.npy"
    try:
        found = np.load(file)
    except (OSError, ValueError, EOFError):  # absent, or shortened by other hands: compute again
        found = None
    if isinstance(found, np.ndarray) and found.ndim == 2 and len(found) == rows and found.dtype == np.float32:
        return torch.from_numpy(found)
    computed = compute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary, temporary.open("wb") as handle:
            np.save(handle, computed.numpy())
    except OSError as error:
        raise ValueError(
            f"{folder}: the cache of features cannot be written there ({error.strerror or error}); "
            "free some space, or name another folder with cache_dir or $SSCL_CACHE"
        ) from error
    return computed
