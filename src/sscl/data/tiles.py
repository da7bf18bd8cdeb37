"""Tiles: the set every loader returns, its order in an epoch, and where its pixels are kept during training.

Shapes: N tiles, B tiles of one batch, H = W pixels. Tiles are uint8 NHWC; `permute(0, 3, 1, 2)` of that is
channels_last already, so nothing is copied for the network.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sscl.data.groups import Grouped, Groups, numbered
from sscl.data.listing import Account
from sscl.data.rows import Images, Rows
from sscl.device import free_memory
from sscl.slides.places import ComputedIds, TileIds
from sscl.words import count, some

UNLABELLED = -1
_AHEAD = 2  # batches that are read while one is used


@dataclass(frozen=True, eq=False, repr=False)
class Tiles:
    """A set of tiles and what is known about each.

    Args:
        images: uint8, (N, H, W, 3); an array, a read-only memmap, or `Rows` of some.
        labels: int64, (N,); index into `classes`, -1 = unlabelled.
        classes: class names; empty when nothing is labelled.
        ids: N unique names (a file name, or a posix path relative to the data folder); computed for tiles of slides.
        groups: str, (N,), slide or patient of each tile; None = unknown. `Grouped` keeps each name once.
        sites: str, (N,), hospital or scanner of each tile; None = unknown.
        votes: int64, (N,), annotators who chose class 1; None = not recorded.
        mpp: float64, (N,), µm per pixel of each file, NaN = unknown; None = not recorded.
        account: where everything that the set has went; None = it was not loaded from a disk.

    Raises:
        ValueError: a shape, a dtype, a label or the ids are not as described.
    """

    images: Images
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    ids: Sequence[str]
    groups: Groups | None = None
    sites: NDArray[np.str_] | None = None
    votes: NDArray[np.int64] | None = None
    mpp: NDArray[np.float64] | None = None
    account: Account | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[3] != 3 or self.images.dtype != np.uint8:
            raise ValueError(f"images: expected uint8 (N, H, W, 3), got {self.images.dtype} {self.images.shape}")
        n = len(self.images)
        for name, values, kind in (
            ("labels", self.labels, np.int64),
            ("groups", self.groups, np.str_),
            ("sites", self.sites, np.str_),
            ("votes", self.votes, np.int64),
            ("mpp", self.mpp, np.float64),
        ):
            if values is not None and (values.shape != (n,) or not np.issubdtype(values.dtype, kind)):
                raise ValueError(
                    f"{name}: expected {kind.__name__} ({n},), one value per tile, got {values.dtype} {values.shape}"
                )
        differ = len(self.ids) if isinstance(self.ids, ComputedIds) else len(set(self.ids))
        if len(self.ids) != n or differ != n:
            raise ValueError(
                f"ids: expected {n} different ids, one per tile, got {len(self.ids)} of which {differ} differ"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: names repeat in {self.classes}")
        low, high = (int(self.labels.min()), int(self.labels.max())) if n else (UNLABELLED, UNLABELLED)
        if low < UNLABELLED or high >= len(self.classes):
            raise ValueError(
                f"labels: found {low} to {high}, allowed are -1 (unlabelled) to {len(self.classes) - 1} "
                f"for the {len(self.classes)} classes {self.classes}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        each = some([f"{number:,} {name}" for name, number in self.class_counts().items()])
        return f"<sscl tiles: {count(len(self), 'tile')} of {self.images.shape[2]} px: {each}>"

    def subset(self, indices: ArrayLike) -> Tiles:
        """Return the tiles at `indices` (ints, each at most once), in that order.

        Pixels of a memmap or of `Rows` are not copied (a contiguous ascending range of a memmap stays a memmap), nor is
        a contiguous ascending range of an array; other rows of an array are copied.
        """
        rows = np.asarray(indices, dtype=np.int64)
        contiguous = len(rows) > 0 and bool((np.diff(rows) == 1).all()) and rows[0] >= 0
        images: Images
        if isinstance(self.images, Rows):
            images = self.images.select(rows)
        elif contiguous:
            images = self.images[rows[0] : rows[-1] + 1]
        elif isinstance(self.images, np.memmap):
            images = Rows([self.images]).select(rows)
        else:
            images = self.images[rows]
        ids = self.ids.take(rows) if isinstance(self.ids, TileIds) else tuple(self.ids[row] for row in rows)
        given = ((name, getattr(self, name)) for name in ("groups", "sites", "votes", "mpp"))
        known = {name: values[rows] for name, values in given if values is not None}
        return replace(self, images=images, labels=self.labels[rows], ids=ids, **known)

    def class_counts(self) -> dict[str, int]:
        """Return the number of tiles per class, in class order; `unlabelled` comes last, if there are any."""
        counts = {name: int((self.labels == index).sum()) for index, name in enumerate(self.classes)}
        unlabelled = int((self.labels == UNLABELLED).sum())
        return {**counts, "unlabelled": unlabelled} if unlabelled else counts

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits that depend on the ids, labels, groups, classes, tile size and pixels of all tiles.

        Pixels from the cache count as they were when they were decoded; `cached_tiles` looks whether they still are.
        """
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        _update(digest, self.ids)
        digest.update(self.labels.astype("<i8").tobytes())
        if self.groups is not None:
            _update(digest, self.groups)
        digest.update(as_rows(self.images).digests().astype("<u8").tobytes())
        return digest.hexdigest()


class JoinedIds(ComputedIds):
    """The ids of several sets, each behind the number of its set, as in "1/a.png"."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def at(self, row: int) -> str:
        """Return the id at a row."""
        part = bisect.bisect_right(self._starts, row) - 1
        return f"{part}/{self.parts[part][row - self._starts[part]]}"

    def __iter__(self) -> Iterator[str]:
        for number, part in enumerate(self.parts):
            yield from (f"{number}/{name}" for name in part)


def _update(digest: hashlib._Hash, names: Sequence[str] | Groups) -> None:
    """Add the names of all tiles to a digest; of those that are computed, what they are made of."""
    if isinstance(names, JoinedIds):
        for part in names.parts:
            digest.update(f"{len(part)} ".encode())
            _update(digest, part)
    elif isinstance(names, TileIds):
        slides, number, corner = names.parts()
        digest.update("\n".join(slides).encode() + number.tobytes() + corner.tobytes())
    elif isinstance(names, Grouped):
        groups, number = numbered(names)
        digest.update("\n".join(groups.tolist()).encode() + number.tobytes())
    else:
        digest.update("\n".join(names).encode())


def epoch_order(n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a permutation of 0..n-1, int64 (n,): a function of (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(n).astype(np.int64, copy=False)


# --- the pixels during training ---


class TileStore:
    """Tiles that can be gathered as batches on `device`; `place_store` decides where the pixels are kept."""

    def __init__(self, images: Images | torch.Tensor, *, device: torch.device) -> None:
        self.images = images
        self.device = device
        self._rows = None if isinstance(images, torch.Tensor) else as_rows(images)

    @property
    def on_device(self) -> bool:
        """Whether all tiles are in one tensor on the device."""
        return isinstance(self.images, torch.Tensor)

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the tiles at `indices` (int64, (B,), any device) as uint8 (B, H, W, 3) on the device."""
        if isinstance(self.images, torch.Tensor):
            return self.images[upload(indices, self.device)]
        rows = indices.cpu().numpy()
        return upload(self._read(rows, self._host_batch(rows)), self.device)

    def batches(self, order: Iterable[NDArray[np.int64]]) -> Generator[torch.Tensor, None, None]:
        """Yield for each row of `order`, int64 (B,) each, what `gather` would return.

        A thread reads the next batches while the current one is used, unless the tiles are on the device; nothing here
        waits for the device. The thread ends with the loop, also if that breaks off; its errors are raised in the loop.
        """
        if self.on_device:
            for rows in order:
                yield self.gather(torch.from_numpy(rows))
            return
        coming: deque[Future[torch.Tensor]] = deque()
        pool = ThreadPoolExecutor(1, thread_name_prefix="tiles")
        try:
            for rows in order:
                # This thread allocates the memory and copies it: the reading thread does nothing on the device, so
                # everything is in the order of this thread's stream.
                coming.append(pool.submit(self._read, rows, self._host_batch(rows)))
                if len(coming) > _AHEAD:
                    yield upload(coming.popleft().result(), self.device)
            while coming:
                yield upload(coming.popleft().result(), self.device)
        finally:
            pool.shutdown(cancel_futures=True)

    def _host_batch(self, rows: NDArray[np.int64]) -> torch.Tensor:
        return host_memory((len(rows), *self.images.shape[1:]), device=self.device)

    def _read(self, rows: NDArray[np.int64], batch: torch.Tensor) -> torch.Tensor:
        """Return `batch`, filled with the tiles at `rows`."""
        assert self._rows is not None
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"got rows {rows.min()} to {rows.max()}, the store has {len(self)}")
        self._rows.take(rows, out=batch.numpy())
        return batch


def host_memory(shape: Sequence[int], *, device: torch.device, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Return memory of the host for what goes to `device`; pinned for CUDA, so that the copy overlaps with the network.

    torch's caching allocator makes this cheap for each batch and keeps the block until the copy is done.
    """
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


def upload(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on the device without waiting for that: from memory that is not pinned, a copy may wait."""
    if device.type == "cuda" and values.device.type == "cpu" and not values.is_pinned():
        values = host_memory(values.shape, device=device, dtype=values.dtype).copy_(values)
    return values.to(device, non_blocking=True)


def tile_budget_gb(given: float | None, *, free: int | None) -> float:
    """Return up to which size tiles are kept on a device, GiB: what is `given`, else 4 or a quarter of what is free.

    Args:
        free: bytes of the device that nobody uses, before the work starts; None where that is not known.
    """
    if given is not None:
        return given
    return 4.0 if free is None else min(4.0, free / 4 / 2**30)


def place_store(images: Images, *, device: torch.device | str, budget_gb: float | None) -> TileStore:
    """Return a store of `images`, uint8 (N, H, W, 3), on the device if they fit there.

    On a CPU the images stay where they are (a memmap is read row by row, never as a whole). To another device they are
    copied as a whole if they take at most `budget_gb` (GiB, None: see `tile_budget_gb`); else batch by batch.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return TileStore(images, device=device)
    if budget_gb is None:
        budget_gb = tile_budget_gb(None, free=free_memory(device))
    if images.nbytes > budget_gb * 2**30:
        return TileStore(images, device=device)
    rows = as_rows(images)
    resident = torch.empty(rows.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(rows), 1024):  # block by block, to limit the host's memory
        resident[start : start + 1024] = torch.from_numpy(rows[start : start + 1024]).to(device)
    return TileStore(resident, device=device)


def as_rows(images: Images) -> Rows:
    """Return the images as `Rows`."""
    return images if isinstance(images, Rows) else Rows([images])
